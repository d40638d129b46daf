"""The exchange of whole nodes: the mean of a node's weights, mixed with that of another node.

The weights are cut into as many segments as the node has learners, and each learner works on one of them for all:

    1. mean_A[s] = mean over the learners k of this node of w_k[s]     read in place, once everyone has published w(t)
    2. mixed[s]  = (1-c) mean_A[s] + c mean_B[s]                       by Rget from partner node B, if there is one
    3. w_s       = mixed, all segments                                 read in place

So a learner reads two models' worth of memory however many share its node, and a node of another node only one. With
more than one node 1 and 2 run in the progress engine, during forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import IDLE, Job, ProgressEngine, completion
from horovod_dpsgd.gossip.slots import SlotExchange, mix_into
from horovod_dpsgd.gossip.window import COUNTERS, Window
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import ALIGNMENT, FlatParameters
from horovod_dpsgd.topology import Hierarchical
from horovod_dpsgd.waiting import wait_until

# Counters: for how many steps, from step 0 on, this learner has ...
PUBLISHED, AVERAGED, MIXED, CONSUMED = range(4)  # w, its segment of the mean, of the mix; read what it reads by Rget
MEAN, RESULT = 2, 4  # the areas behind the two slots: the means of even and of odd steps, and what is mixed


class Piece(NamedTuple):
    """The part of this learner's segment that a learner of another node holds the mean of there."""

    rank: int
    theirs: int  # where it begins in that learner's segment
    start: int  # and where in this learner's
    stop: int


class NodeExchange(SlotExchange):
    """Mixes by a `Hierarchical` topology; on one node that is the mean over all learners."""

    def __init__(self, learners: Learners, parameters: FlatParameters, topology: Hierarchical) -> None:
        if parameters.device.type != "cpu":
            raise ValueError("weights are mixed by nodes on the CPU only")
        self.topology = topology
        self.start, self.stop = segment(learners, learners.rank, parameters.numel)
        self.window = Window(learners, lambda rank: _areas(learners, rank, parameters.numel), parameters.dtype)
        self._inbox = torch.zeros(self.stop - self.start, dtype=parameters.dtype)
        self._engine = ProgressEngine(learners) if learners.nodes > 1 else None
        self._waits_for = "nobody"
        self._done: Callable[[], bool] = lambda: True  # what `begin` started
        super().__init__(learners, parameters, self.window.areas[:2])

    def restart(self, step: int) -> None:
        super().restart(step)
        self._readers: dict[int, list[int]] = {}  # by step: who on another node reads this learner's mean
        for counter, steps in ((PUBLISHED, step + 1), (AVERAGED, step), (MIXED, step), (CONSUMED, step)):
            self.window.post(counter, steps)
        self.learners.barrier("the start of the exchange")

    def begin(self, step: int) -> None:
        super().begin(step)
        job = self._average(step, self.slot)
        self._done = self._engine.submit(job).done if self._engine else partial(_advance, job)

    def publish(self) -> None:
        super().publish()
        self.window.post(PUBLISHED, self.step + 1)

    def settle(self) -> None:
        self._finish_job()
        self.learners.barrier("the end of the exchange")

    def bytes_sent(self, step: int) -> int:
        """Bytes of the weights, the mean and the mix that other learners read here."""
        own, others = self.stop - self.start, self.learners.local_size - 1
        elsewhere = self.topology.partner_node(step, self._node()) is not None
        return (self.parameters.numel - own + (others + elsewhere) * own) * self.parameters.dtype.itemsize

    def _free(self) -> None:
        if self._engine:
            self._engine.close()
        self.window.free()

    def _wait_for_others(self) -> None:
        self._finish_job()
        for k in self._locals():
            wait_until(
                lambda k=k: self.window.counters(k)[MIXED] > self.step,  # type: ignore[misc]
                lambda k=k: (
                    f"{self._here()}: learner {k} has mixed no more than {self.window.counters(k)[MIXED]} steps"
                ),  # type: ignore[misc]
                self.learners.stall_timeout,
            )

    def _mixing(self, blocks: Sequence[Tensor], sizes: list[int]) -> Iterator[None]:
        segments = [
            (*segment(self.learners, k, self.parameters.numel), self.window.area(k, self._result(self.step)))
            for k in self._locals()
        ]
        begin = 0
        for block in blocks:
            end = begin + block.numel()
            for start, stop, mixed in segments:
                low, high = max(begin, start), min(end, stop)
                if low < high:
                    block[low - begin : high - begin].copy_(mixed[low - start : high - start])
            begin = end
            yield

    # Steps 1 and 2

    def _average(self, step: int, slot: int) -> Job:
        yield from self._until(self._locals(), PUBLISHED, step + 1)
        yield from self._until(self._readers.pop(step - 2, []), CONSUMED, step - 1)  # the mean is about to be replaced
        own = slice(self.start, self.stop)
        terms = [self.window.area(k, slot)[own] for k in self._locals()]
        mean = self.window.areas[MEAN + step % 2]
        mix_into(mean, terms, [1 / len(terms)] * len(terms))
        self.window.post(AVERAGED, step + 1)
        other = self.topology.partner_node(step, self._node())
        if other is not None:
            yield from self._mix_with(other, step, mean)
        elif self._result(step) == RESULT:
            self.window.areas[RESULT].copy_(mean)
        self.window.post(CONSUMED, step + 1)
        self.window.post(MIXED, step + 1)

    def _mix_with(self, node: int, step: int, mean: Tensor) -> Job:
        pieces = self._pieces_on(node)
        self._readers[step] = [piece.rank for piece in pieces]  # segments overlap both ways
        for piece in pieces:
            yield from self._until([piece.rank], AVERAGED, step + 1)
            inbox = self._inbox[piece.start : piece.stop]
            yield from completion(self.window.get_area(piece.rank, MEAN + step % 2, inbox, piece.theirs))
        share = self.topology.share_of(node, self._node())
        mix_into(self.window.areas[RESULT], [mean, self._inbox], [1 - share, share])

    def _pieces_on(self, node: int) -> list[Piece]:
        pieces = []
        for rank in self._ranks(node):
            start, stop = segment(self.learners, rank, self.parameters.numel)
            low, high = max(start, self.start), min(stop, self.stop)
            if low < high:
                pieces.append(Piece(rank, low - start, low - self.start, high - self.start))
        return pieces

    def _until(self, ranks: list[int], counter: int, steps: int) -> Job:
        for rank in ranks:
            self._waits_for = f"learner {rank} on {self.learners.hosts[rank]}"
            while (yield from self._counters(rank))[counter] < steps:
                yield IDLE

    def _counters(self, rank: int) -> Generator[float, None, list[int]]:
        if self.learners.shares_memory_with(rank):
            return self.window.counters(rank)
        memory = np.zeros(COUNTERS, np.int64)
        yield from completion(self.window.get_counters(rank, memory))
        return [int(value) for value in memory]

    def _finish_job(self) -> None:
        """Wait for steps 1 and 2 in the progress engine, or do them here."""
        wait_until(
            self._done, lambda: f"{self._here()}: nothing new from {self._waits_for}", self.learners.stall_timeout
        )

    def _result(self, step: int) -> int:
        return RESULT if self.learners.nodes > 1 else MEAN + step % 2

    def _node(self) -> int:
        return self.learners.node_of[self.learners.rank]

    def _locals(self) -> list[int]:
        return self._ranks(self._node())

    def _ranks(self, node: int) -> list[int]:
        return [rank for rank in range(self.learners.size) if self.learners.node_of[rank] == node]

    def _here(self) -> str:
        return f"learner {self.learners.rank}, step {self.step}"


def _advance(job: Job) -> bool:
    """Go on with a job; whether it has ended."""
    return next(job, None) is None


def segment(learners: Learners, rank: int, numel: int) -> tuple[int, int]:
    """The part of `numel` elements that a learner works on for its node, as (start, stop)."""
    place, size = learners.local_rank_of(rank), learners.node_of.count(learners.node_of[rank])
    unit = ALIGNMENT  # elements: no two learners write one cache line, whatever the dtype
    units = -(-numel // unit)
    return min(numel, units * place // size * unit), min(numel, units * (place + 1) // size * unit)


def _areas(learners: Learners, rank: int, numel: int) -> list[int]:
    start, stop = segment(learners, rank, numel)
    return [numel, numel] + [stop - start] * (2 if learners.nodes == 1 else 3)
