"""The progress engine: a thread that exchanges messages with other nodes while this learner computes.

No transfer gets on by itself over TCP, be it a message or a one-sided Get: it waits until both sides enter the MPI
library, which a learner does not do during forward and backward (pmodels/mpich#5565, open-mpi/ompi#9759). So where
learners are on more than one node, and only there, this thread enters it for them.

Since both sides need it, and know from the topology whom they exchange with, weights travel as messages. A Get would
ask first whether they are published, and Open MPI 5.0.11 moves three bytes over TCP for every byte of a Get (MPICH
4.3.2 moves one); it also takes a window over all nodes, which Open MPI 4.1 cannot make there with threads.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd.learners import Learners, abort

if TYPE_CHECKING:
    from mpi4py import MPI

# A job yields, whenever it has to wait, for how many seconds nothing need be looked at.
Job = Generator[float, None, None]

QUIET = 10e-3  # seconds between two looks into MPI when no job is under way: what was sent may still be in a buffer
IDLE = 0.5e-3  # the same while a job waits for something that others do
MOVING = 200e-6  # the same while data comes in: a socket's buffer must not run full, but the learner needs its core
AWAITED = 20e-6  # the same once the learner does nothing but wait for the data
TAGS = 2**15  # message tags that every MPI library has


def completion(request: MPI.Request) -> Job:
    """The job of driving an MPI operation to its end."""
    while not request.Test():
        yield MOVING


class Pending:
    """A job under way; wait until it is `done` before using what it brings.

    ended: whether it has; awaited: whether anybody has asked whether it is `done`.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.awaited = False
        self._error: BaseException | None = None
        self._finished = threading.Event()

    def finish(self, error: BaseException | None = None) -> None:
        self._error = error
        self._finished.set()

    @property
    def ended(self) -> bool:
        """Whether the job has ended. Raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._finished.is_set()

    def done(self) -> bool:
        """The same, asked by who does nothing but wait for it."""
        self.awaited = True
        return self.ended


class ProgressEngine:
    """Runs jobs side by side on a thread, and lets MPI answer other learners' requests all the time.

    messages: the communicator of `send` and `receive`; jobs that go without these may use it as they like.
    Raises RuntimeError if MPI was started without MPI_THREAD_MULTIPLE.
    """

    def __init__(self, learners: Learners) -> None:
        from mpi4py import MPI

        if MPI.Query_thread() != MPI.THREAD_MULTIPLE:
            raise RuntimeError(
                "more than one node needs MPI_THREAD_MULTIPLE: start MPI by mpi4py, or ask for that level"
            )
        self.messages = learners.world.Dup()
        self._new: deque[Pending] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="horovod_dpsgd-progress", daemon=True)
        self._thread.start()

    def send(self, weights: Tensor, rank: int, step: int) -> Pending:
        """Start to send `weights` to another learner; they may be changed when it is done."""
        return self.submit(self._send(weights, rank, step))

    def receive(self, weights: Tensor, rank: int, step: int) -> Pending:
        """Start to receive into the contiguous `weights` what another learner sends for `step`."""
        return self.submit(self._receive(weights, rank, step))

    def _send(self, weights: Tensor, rank: int, step: int) -> Job:
        yield from completion(self.messages.Isend(_buffer(weights), rank, step % TAGS))

    def _receive(self, weights: Tensor, rank: int, step: int) -> Job:
        yield from completion(self.messages.Irecv(_buffer(weights), rank, step % TAGS))

    def submit(self, job: Job) -> Pending:
        """Start a job; returns at once."""
        pending = Pending(job)
        self._new.append(pending)
        self._wake.set()
        return pending

    def close(self) -> None:
        """Finish what was started, then end the thread. Collective."""
        self._closing = True
        self._wake.set()
        self._thread.join()
        self.messages.Free()

    def _run(self) -> None:
        under_way: list[Pending] = []
        try:
            while under_way or self._new or not self._closing:
                while self._new:
                    under_way.append(self._new.popleft())
                pauses = [_advance(pending) for pending in under_way]
                under_way = [pending for pending, pause in zip(under_way, pauses, strict=True) if pause is not None]
                self.messages.Iprobe()  # what it finds is not used: entering the library is what counts
                longest = AWAITED if any(pending.awaited for pending in under_way) else QUIET
                self._pause(min([longest, *filter(None, pauses)]))
        except BaseException as error:  # the thread is lost, and other learners would wait for its answers
            abort(f"the progress engine failed: {type(error).__name__}: {error}")

    def _pause(self, seconds: float) -> None:
        # No timed `get` of a SimpleQueue: with short times it may wait without end (seen in Python 3.11).
        if seconds < QUIET:
            time.sleep(seconds)
        elif self._wake.wait(seconds):
            self._wake.clear()


def _buffer(weights: Tensor) -> np.ndarray:
    """The memory of `weights`, in a type that NumPy has: bfloat16 as int16."""
    return (weights.view(torch.int16) if weights.dtype == torch.bfloat16 else weights).numpy()


def _advance(pending: Pending) -> float | None:
    """Go on with a job; return for how long it has nothing to do, or None if it has ended."""
    try:
        return next(pending.job)
    except StopIteration:
        pending.finish()
    except BaseException as error:  # raised again in the learner's thread, where it waits for the job
        pending.finish(error)
    return None
