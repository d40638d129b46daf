"""Averaging with one partner at any time, without waiting for its step: the communication of AD-PSGD.

Learner j's weights x_j lie in the window, under a lock; it computes on a copy of them, w_j. Of two learners of a node
one takes both locks, for as long as a pass over the weights takes, and sets both x to their mean. A partner on another
node is sent a snapshot, x_i'; its progress engine, under its own lock, adds d = (x_i' - x_k) / 2 to x_k and sends d
back, and learner i subtracts it from x_i at the end of whatever step it is in. Either way one side gains what the other
loses, so the mean of all weights (with what is on its way) stays.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import IDLE, MOVING, Job, Pending, ProgressEngine, completion
from horovod_dpsgd.gossip.slots import BlockUpdate
from horovod_dpsgd.gossip.window import Window
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.waiting import wait_until

AVERAGES = 0  # the counter: how many averages have changed x_j; written under its lock
REQUEST, ANSWER = 1, 2  # the tags of messages; steps, after which the engine names its own, exchange none here


class PairAveraging:
    """x_j in shared memory, w_j under the model's parameters. Creating, settling and closing it is collective.

    staleness: how many steps had how many averages change x_j between the copy w_j, which the gradient was taken at,
    and the update, the step's own included. (Under DPSGD it would be 1 for all.)
    skipped: averages not begun because an earlier one, with another node, was still under way.
    exposed_seconds: of the last step, for waiting for locks and for averaging.
    """

    def __init__(self, learners: Learners, parameters: FlatParameters) -> None:
        self.learners = learners
        self.parameters = parameters
        self.window = Window(learners, lambda _: [parameters.numel], parameters.dtype)
        self.shared = self.window.areas[0]
        self.weights = parameters.zeros()
        self._host = self.weights if self.weights.device.type == "cpu" else torch.zeros_like(self.shared)
        self.staleness: Counter[int] = Counter()
        self.skipped = 0
        self.exposed_seconds = 0.0
        self._closed = False
        self._pending: Pending | None = None  # an average with another node
        self._serving = learners.nodes > 1
        self._engine = ProgressEngine(learners) if self._serving else None
        if self._engine:
            self._messages = self._engine.messages
            self._outbox, self._inbox, self._asked = (torch.zeros_like(self.shared) for _ in range(3))
            self._service = self._engine.submit(self._serve())
        parameters.gather(out=self.weights)
        parameters.point_to(parameters.views(self.weights))
        self.restart(0)

    def restart(self, step: int) -> None:
        """Begin (again) at `step` with the weights the model has now. Collective, and after `settle`."""
        self.shared.copy_(self.weights)
        self.step = step
        self.window.post(AVERAGES, 0)
        self._seen = 0  # of them, when w_j was copied
        self.learners.barrier("the start of the exchange")

    def begin(self, partner: int | None) -> None:
        """Ask a partner on another node for an average; returns at once, and nothing happens if there is none."""
        self._partner = partner
        if partner is None or self.learners.shares_memory_with(partner):
            return
        if self._pending is not None:
            self.skipped += 1
        elif self._engine:
            self._asks = partner
            self._pending = self._engine.submit(self._ask(partner))

    def mix(self, update: BlockUpdate) -> None:
        """Average x_j with a partner of this node, or with what came from another, and apply `update` to x_j.

        The update is done on w_j, block by block, and w_j = x_j afterwards.
        """
        partner = self._partner
        near = partner if partner is not None and self.learners.shares_memory_with(partner) else None
        if self._host is not self.weights:  # locks are held for averaging, and not for the rest of the backward pass
            torch.cuda.current_stream(self.weights.device).synchronize()
        difference = self._arrived()
        start = time.perf_counter()
        with self._locked({self.learners.rank} | ({near} if near is not None else set())) as held:
            self.exposed_seconds = time.perf_counter() - start
            if difference is not None:
                self._count(self.learners.rank)
            if near is not None:
                self._count(self.learners.rank, near)
            self.staleness[self.averages - self._seen] += 1
            self._seen = self.averages
            self._mix(update, near, difference, held)
        self.step += 1

    def settle(self) -> None:
        """Finish all that is under way between learners; then w_j = x_j everywhere. Collective."""
        if self._closed:
            return
        if self._pending is not None:
            wait_until(self._pending.done, self._unanswered, self.learners.stall_timeout)
            difference = self._arrived()
            assert difference is not None
            with self._locked({self.learners.rank}):
                self._count(self.learners.rank)
                self.shared.sub_(difference)
        self.learners.barrier("the settling of averages")
        self.weights.copy_(self.shared)
        self._seen = self.averages
        self.learners.barrier("the end of the settling")  # before anybody averages again

    @property
    def averages(self) -> int:
        """How many averages have changed x_j since the (re)start, begun by whomever."""
        return self.window.counters(self.learners.rank)[AVERAGES]

    def close(self) -> None:
        """Leave; the model keeps its weights. Collective."""
        self.settle()
        self._closed = True
        self._serving = False
        if self._engine:
            wait_until(self._service.done, lambda: "the service of averages does not end", self.learners.stall_timeout)
            self._engine.close()
        self.learners.barrier("the end of the exchange")
        self.window.free()

    def _count(self, *ranks: int) -> None:
        """Another average is about to change the weights of these learners, under their locks."""
        for rank in ranks:
            self.window.count(rank, AVERAGES)

    def _mix(self, update: BlockUpdate, near: int | None, difference: Tensor | None, held: list[int]) -> None:
        sizes = update.sizes
        theirs = self.window.area(near, 0).split(sizes) if near is not None else None
        less = difference.split(sizes) if difference is not None else None
        blocks = zip(self.shared.split(sizes), self._host.split(sizes), self.weights.split(sizes), strict=True)
        for index, (shared, host, weights) in enumerate(blocks):
            start = time.perf_counter()
            mine = shared if less is None else torch.sub(shared, less[index], out=host)
            if near is not None and theirs is not None:
                torch.lerp(mine, theirs[index], 0.5, out=host)
                theirs[index].copy_(host)
                if index == len(sizes) - 1:
                    self._unlock(near, held)  # the update is this learner's own affair
            elif mine is shared:
                host.copy_(shared)
            if self._host is not self.weights:
                weights.copy_(host)
            self.exposed_seconds += time.perf_counter() - start
            update(index, weights)
            shared.copy_(weights)

    # Locks: taken in the order of the ranks, and held for a pass over the weights; one's own also for the update

    @contextmanager
    def _locked(self, ranks: set[int]) -> Iterator[list[int]]:
        held: list[int] = []
        try:
            for rank in sorted(ranks):
                wait_until(partial(self.window.try_lock, rank), partial(self._taken, rank), self.learners.stall_timeout)
                held.append(rank)
            yield held
        finally:
            for rank in list(held):
                self._unlock(rank, held)

    def _unlock(self, rank: int, held: list[int]) -> None:
        held.remove(rank)
        self.window.unlock(rank)

    # Between nodes, in the progress engine

    def _ask(self, partner: int) -> Job:
        yield from self._own_lock()
        try:
            self._outbox.copy_(self.shared)
        finally:
            self.window.unlock(self.learners.rank)
        answer = self._messages.Irecv(self._inbox.numpy(), partner, ANSWER)
        yield from completion(self._messages.Isend(self._outbox.numpy(), partner, REQUEST))
        yield from completion(answer)

    def _arrived(self) -> Tensor | None:
        """The difference d that an average with another node has brought, once. Raises what the service raised."""
        if self._engine:
            _ = self._service.ended
        if self._pending is None or not self._pending.ended:
            return None
        self._pending = None
        return self._inbox

    def _serve(self) -> Job:
        from mpi4py import MPI

        status = MPI.Status()
        while self._serving:
            message = self._messages.Improbe(tag=REQUEST, status=status)
            if message is None:
                yield IDLE
                continue
            yield from completion(message.Irecv(self._asked.numpy()))
            yield from self._own_lock()
            try:
                self._count(self.learners.rank)
                self.shared.add_(self._asked.sub_(self.shared).mul_(0.5))
            finally:
                self.window.unlock(self.learners.rank)
            yield from completion(self._messages.Isend(self._asked.numpy(), status.Get_source(), ANSWER))

    def _own_lock(self) -> Job:
        while not self.window.try_lock(self.learners.rank):
            yield MOVING

    # Words for those who wait

    def _taken(self, rank: int) -> str:
        return f"{self._here()}: learner {self.window.holder(rank)} has learner {rank}'s weights"

    def _unanswered(self) -> str:
        return f"{self._here()}: learner {self._asks} has not answered"

    def _here(self) -> str:
        return f"learner {self.learners.rank}, step {self.step}"
