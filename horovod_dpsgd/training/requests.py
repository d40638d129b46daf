"""What is asked of a run from outside while it trains: to save, or to save and end.

SIGUSR1 asks for a checkpoint; SIGUSR2, SIGTERM and SIGINT ask for one and for the end. (Open MPI's mpirun passes on the
first two; at a SIGTERM of its own it kills the learners within half a second. MPICH's passes on all but SIGUSR2, of
which it dies.)

A signal reaches learners at different steps, or only one of them, and a checkpoint must be of one step of all. So
learners tell each other what they were asked, in rounds, and all act on it at the step where a round ends.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_dpsgd.learners import Learners

if TYPE_CHECKING:
    from mpi4py import MPI

ROUND_SECONDS = 1.0  # so long a round should last; a request is acted on after two of them at most


Handler = Callable[[int, FrameType | None], Any] | int | None  # as `signal.signal` has it


class Asked(IntEnum):
    """The larger one counts."""

    NOTHING = 0
    SAVE = 1
    END = 2


SIGNALS = {
    signal.SIGUSR1: Asked.SAVE,
    signal.SIGUSR2: Asked.END,
    signal.SIGTERM: Asked.END,
    signal.SIGINT: Asked.END,
}


class Requests:
    """What this learner was asked since it was last looked at.

    save_seconds: after so many without a checkpoint one is asked for (0: never); by_signal: the last signal's name.
    """

    def __init__(self, save_seconds: float = 0.0) -> None:
        self.save_seconds = save_seconds
        self.by_signal = ""
        self._asked = Asked.NOTHING
        self._outside: dict[signal.Signals, Handler] = {}
        self._saved_at = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block signals are requests. A second one of those that ask for the end does
        what it does outside."""
        self._outside = {each: signal.signal(each, self._hear) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in self._outside.items():
                signal.signal(each, handler)

    def saved(self) -> None:
        """There is a new checkpoint."""
        self._saved_at = time.monotonic()

    def take(self) -> Asked:
        """What was asked; it is not asked any more."""
        asked, self._asked = self._asked, Asked.NOTHING
        if 0 < self.save_seconds <= time.monotonic() - self._saved_at:
            return max(asked, Asked.SAVE)
        return asked

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        heard = signal.Signals(number)
        self.by_signal = heard.name
        self._asked = max(self._asked, SIGNALS[heard])
        if SIGNALS[heard] is Asked.END:
            signal.signal(heard, self._outside[heard])


class Rounds:
    """Learners that keep step tell each other what they were asked, without stopping for it.

    A round begins at a step with a non-blocking reduction of what everyone has been asked, and ends some steps later,
    at the same step on all, when the result has long been there. How many steps make a round all learners compute
    alike, from how long the slowest of them took for a step in the round before.
    """

    def __init__(self, learners: Learners, requests: Requests, step: int) -> None:
        self._learners = learners
        self._requests = requests
        self._steps = 1
        self._begin(step, microseconds=0)

    def asked(self, step: int) -> Asked:
        """What any learner had been asked when the round that ends at `step` began. Collective; ask at every step."""
        if step < self._begun_at + self._steps:
            return Asked.NOTHING
        asked, slowest = self._finish()
        own = 1e6 * (time.monotonic() - self._begun) / self._steps
        fitting = int(1e6 * ROUND_SECONDS / max(1, slowest))
        self._steps = max(1, min(2 * self._steps, fitting))
        self._begin(step, int(own))
        return Asked(asked)

    def close(self) -> None:
        """End the round that is under way. Collective."""
        self._finish()

    def _begin(self, step: int, microseconds: int) -> None:
        from mpi4py import MPI

        self._begun_at, self._begun = step, time.monotonic()
        self._all = np.array([self._requests.take(), microseconds], dtype=np.int64)
        self._request: MPI.Request = self._learners.world.Iallreduce(MPI.IN_PLACE, self._all, MPI.MAX)

    def _finish(self) -> list[int]:
        self._learners.wait(self._request, "a round of what signals have asked")
        numbers: list[int] = self._all.tolist()
        return numbers
