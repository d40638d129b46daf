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

ROUND_SECONDS = 1.0  # so long a round should last; a request is acted on after two of them, or three steps, at most


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

    save_seconds: after so many without a checkpoint one is asked for (0: never); by_signal: the name of the signal that
    asked for the end.
    """

    def __init__(self, save_seconds: float = 0.0) -> None:
        self.save_seconds = save_seconds
        self.by_signal = ""
        self._asked = Asked.NOTHING
        self._outside: dict[signal.Signals, Handler] = {}
        self._saved_at = time.monotonic()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Inside the block signals are requests. A second one of those that ask for the end does what it does outside.

        What is asked before training is done in its first steps; what is asked after them is not done any more.
        """
        self._outside = {each: signal.signal(each, self._hear) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in self._outside.items():
                signal.signal(each, handler)

    def saved(self) -> None:
        """There is a new checkpoint."""
        self._saved_at = time.monotonic()
        if self._asked is Asked.SAVE:
            self._asked = Asked.NOTHING

    def take(self) -> Asked:
        """What was asked; it is not asked any more."""
        asked, self._asked = self._asked, Asked.NOTHING
        if 0 < self.save_seconds <= time.monotonic() - self._saved_at:
            return max(asked, Asked.SAVE)
        return asked

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        heard = signal.Signals(number)
        self._asked = max(self._asked, SIGNALS[heard])
        if SIGNALS[heard] is Asked.END:
            self.by_signal = self.by_signal or heard.name
            signal.signal(heard, self._outside[heard])


class Pace:
    """How many steps fit into some seconds, from how long the slowest learner's took; the same on all learners.

    It begins with one step, and at most doubles, as the first steps of a run are not like the others.
    """

    def __init__(self, seconds: float) -> None:
        self.steps = 1
        self._seconds = seconds
        self._since = time.monotonic()

    def microseconds(self, steps: int) -> int:
        """A step of this learner took so many, over the `steps` since the last time; to be compared among learners."""
        now = time.monotonic()
        passed, self._since = now - self._since, now
        return int(1e6 * passed / max(1, steps))

    def adapt(self, slowest: int) -> None:
        """slowest: the most microseconds any learner took for a step."""
        self.steps = max(1, min(2 * self.steps, int(1e6 * self._seconds / max(1, slowest))))


class Rounds:
    """Learners that keep step tell each other what they were asked, without stopping for it.

    A round begins at a step with a non-blocking reduction of what everyone has been asked, and ends some steps later,
    at the same step on all, when the result should have been there for long.
    """

    def __init__(self, learners: Learners, requests: Requests) -> None:
        self._learners = learners
        self._requests = requests
        self._pace = Pace(ROUND_SECONDS)
        self._begun_at = 0
        self._request: MPI.Request | None = None

    def asked(self, step: int) -> Asked:
        """What any learner had been asked when the round that ends at `step` began. Collective, at every step."""
        if self._request is None:  # not at once when one has ended: first what was asked is to be done
            self._begin(step)
            return Asked.NOTHING
        if step < self._begun_at + self._pace.steps:
            self._request.Test()  # a reduction of several hops goes on only where somebody looks at it
            return Asked.NOTHING
        asked, slowest = self._finish()
        self._pace.adapt(slowest)
        return Asked(asked)

    def close(self) -> None:
        """End the round that is under way. Collective."""
        if self._request is not None:
            self._finish()

    def _begin(self, step: int) -> None:
        from mpi4py import MPI

        own = self._pace.microseconds(step - self._begun_at)
        self._begun_at = step
        self._all = np.array([self._requests.take(), own], dtype=np.int64)
        self._request = self._learners.world.Iallreduce(MPI.IN_PLACE, self._all, MPI.MAX)

    def _finish(self) -> list[int]:
        assert self._request is not None
        self._learners.wait(self._request, "a round of what signals have asked")
        self._request = None
        numbers: list[int] = self._all.tolist()
        return numbers
