"""A number that all learners draw from, each value going to exactly one of them."""

from __future__ import annotations

import numpy as np

from horovod_dpsgd.learners import Learners


class SharedCounter:
    """first, first + 1, ...: every `take`, on whichever learner, gives the next. Making and freeing it is collective.

    It lies in learner 0's memory; between nodes learner 0 needs a progress engine, or takes come as slowly as it enters
    MPI.
    """

    def __init__(self, learners: Learners, first: int = 0) -> None:
        from mpi4py import MPI

        self._learners = learners
        self._window = MPI.Win.Allocate(8 if learners.rank == 0 else 0, 8, comm=learners.world)
        self._window.Lock_all()
        if learners.rank == 0:
            self._window.Fetch_and_op(np.array([first]), np.empty(1, np.int64), 0, op=MPI.REPLACE)
            self._window.Flush(0)
        self._add = MPI.SUM
        learners.barrier("the making of a counter")

    def take(self) -> int:
        one, taken = np.ones(1, np.int64), np.empty(1, np.int64)
        self._learners.wait(self._window.Rget_accumulate(one, taken, 0, op=self._add), "taking from a counter")
        return int(taken[0])

    def free(self) -> None:
        self._window.Unlock_all()
        self._window.Free()
