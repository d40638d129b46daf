"""The progress engine: a thread that reads from other nodes, and answers their reads, while this learner computes.

"One-sided" is not asynchronous by itself: over TCP a Get completes when its target next enters the MPI library, which a
learner does not do during forward and backward (pmodels/mpich#5565, open-mpi/ompi#9759). So where learners are on more than
one node, and only there, this thread enters it for them. All reads from other nodes are made here, on one thread, as some
transports demand (open-mpi/ompi#13347).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator

from horovod_dpsgd.learners import Learners
from horovod_dpsgd.waiting import Backoff

# A job yields whenever it has to wait, True if it got something done since the last time.
Job = Generator[bool, None, None]

IDLE_SLEEP = 0.5e-3  # seconds between two looks into MPI while nothing is under way: below 5 % of a core


class Pending:
    """A job under way; `wait` for it before using what it brings."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.error: BaseException | None = None
        self._finished = threading.Event()

    def finish(self, error: BaseException | None = None) -> None:
        self.error = error
        self._finished.set()

    def done(self) -> bool:
        """Whether the job has ended. Raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._finished.is_set()


class ProgressEngine:
    """Runs jobs one after the other on a thread, and lets MPI answer other learners' requests between them."""

    def __init__(self, learners: Learners) -> None:
        self._comm = learners.world.Dup()
        self._jobs: queue.SimpleQueue[Pending | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="horovod_dpsgd-progress", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> Pending:
        pending = Pending(job)
        self._jobs.put(pending)
        return pending

    def close(self) -> None:
        """Finish what was submitted, then end the thread."""
        self._jobs.put(None)
        self._thread.join()
        self._comm.Free()

    def _run(self) -> None:
        while (pending := self._next()) is not None:
            try:
                self._complete(pending.job)
            except BaseException as error:  # handed to the learner, who raises it where it waits
                pending.finish(error)
            else:
                pending.finish()

    def _next(self) -> Pending | None:
        while True:
            try:
                return self._jobs.get(timeout=IDLE_SLEEP)
            except queue.Empty:
                self._answer()

    def _complete(self, job: Job) -> None:
        backoff = Backoff(longest=IDLE_SLEEP)
        for progressed in job:
            self._answer()
            if progressed:
                backoff.reset()
            else:
                backoff.pause()

    def _answer(self) -> None:
        self._comm.Iprobe()  # matches nothing; entering the library is what counts
