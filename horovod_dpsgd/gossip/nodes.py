"""The exchange of whole nodes: the mean of a node's weights, mixed with that of another node.

The weights are cut into as many segments as the node has learners, and each learner works on one of them for all:

    1. mean_A[s] = mean over the learners k of this node of w_k[s]     read in place, once everyone has published w(t)
    2. mixed[s]  = (1-c) mean_A[s] + c mean_B[s]                       by messages with partner node B, if there is one
    3. w_s       = mixed, all segments                                 read in place

So a learner reads two models' worth of memory however many share its node, and a node is sent only one. With more than
one node 1 and 2 run in the progress engine, during forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import IDLE, Job
from horovod_dpsgd.gossip.slots import SlotExchange, mix_into
from horovod_dpsgd.gossip.window import Window
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.topology import Hierarchical
from horovod_dpsgd.waiting import wait_until

PUBLISHED, MIXED = 0, 1  # the counters: for how many steps, from step 0 on, there are w, and this learner's segment
SEGMENT_UNIT = 64  # elements: copies out of segments are of whole cache lines, whatever the dtype
MEAN = 2  # the area behind the two slots: this learner's segment of the mean, and of the mix


class Piece(NamedTuple):
    """The part of this learner's segment that a learner of another node works on there."""

    rank: int
    start: int  # in the segment
    stop: int


class NodeExchange(SlotExchange):
    """Mixes by a `Hierarchical` topology; on one node that is the mean over all learners."""

    def __init__(self, learners: Learners, parameters: FlatParameters, topology: Hierarchical) -> None:
        if parameters.device.type != "cpu":
            raise ValueError("weights are mixed by nodes on the CPU only")
        if topology.node_of != learners.node_of:
            raise ValueError(
                f"the topology has the learners on nodes {topology.node_of}, but they are {learners.node_of}"
            )
        self.topology = topology
        self._node = learners.node_of[learners.rank]
        self._ranks: dict[int, list[int]] = {}  # the learners of each node, in order
        for rank, node in enumerate(learners.node_of):
            self._ranks.setdefault(node, []).append(rank)
        self._locals = self._ranks[self._node]
        self._segments = [segment(learners, rank, parameters.numel) for rank in range(learners.size)]
        self.start, self.stop = self._segments[learners.rank]
        self.window = Window(learners, lambda rank: _areas(learners, rank, parameters.numel), parameters.dtype)
        self.window.touch()
        self._inbox = torch.zeros(self.stop - self.start, dtype=parameters.dtype)
        self._waits_for = learners.rank  # for stall messages
        self._done: Callable[[], bool] = lambda: True  # what `begin` started
        super().__init__(learners, parameters, self.window.areas[:2])

    def restart(self, step: int) -> None:
        super().restart(step)
        self.window.post(MIXED, step)
        self.window.post(PUBLISHED, step + 1)
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

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """Of the weights and the mix, what the others of this node read; of the mean, what another node is sent."""
        own, others = self.stop - self.start, self.learners.local_size - 1
        away = own if self.topology.partner_node(step, self._node) is not None else 0
        here = self.parameters.numel - own + others * own
        return (away if between_nodes else here + away) * self.parameters.dtype.itemsize

    def _free(self) -> None:
        self.window.free()

    def _wait_for_others(self) -> None:
        self._finish_job()
        for k in self._locals:
            wait_until(partial(self._has_mixed, k), partial(self._late, k), self.learners.stall_timeout)

    def _mixing(self, blocks: Sequence[Tensor], sizes: list[int]) -> Iterator[Tensor]:
        segments = [(*self._segments[k], self.window.area(k, MEAN)) for k in self._locals]
        begin = 0
        for block in blocks:
            end = begin + block.numel()
            for start, stop, mixed in segments:
                low, high = max(begin, start), min(end, stop)
                if low < high:
                    block[low - begin : high - begin].copy_(mixed[low - start : high - start])
            begin = end
            yield block

    # 1 and 2. Everyone who read the last step's mean here has published since.

    def _average(self, step: int, slot: int) -> Job:
        for k in self._locals:
            self._waits_for = k
            while self.window.counters(k)[PUBLISHED] <= step:
                yield IDLE
        own = slice(self.start, self.stop)
        terms = [self.window.area(k, slot)[own] for k in self._locals]
        mean = self.window.areas[MEAN]
        mix_into(mean, terms, [1 / len(terms)] * len(terms))
        other = self.topology.partner_node(step, self._node)
        if other is not None:
            yield from self._mix_with(other, step, mean)
        self.window.post(MIXED, step + 1)

    def _mix_with(self, node: int, step: int, mean: Tensor) -> Job:
        assert self._engine, "all learners are on this node"
        pieces = self._pieces_on(node)
        coming = [self._engine.receive(self._inbox[start:stop], rank, step) for rank, start, stop in pieces]
        going = [self._engine.send(mean[start:stop], rank, step) for rank, start, stop in pieces]
        for piece, *both in zip(pieces, coming, going, strict=True):
            self._waits_for = piece.rank
            while not all(pending.ended for pending in both):
                yield IDLE
        share = self.topology.share_of(node, self._node)
        mix_into(mean, [mean, self._inbox], [1 - share, share])

    def _pieces_on(self, node: int) -> list[Piece]:
        pieces = []
        for rank in self._ranks[node]:
            start, stop = self._segments[rank]
            low, high = max(start, self.start), min(stop, self.stop)
            if low < high:
                pieces.append(Piece(rank, low - self.start, high - self.start))
        return pieces

    def _finish_job(self) -> None:
        """Wait for steps 1 and 2 in the progress engine, or do them here."""
        wait_until(self._done, self._nothing_new, self.learners.stall_timeout)

    def _has_mixed(self, k: int) -> bool:
        return self.window.counters(k)[MIXED] > self.step

    def _late(self, k: int) -> str:
        return f"{self._here()}: learner {k} has mixed no more than {self.window.counters(k)[MIXED]} steps"

    def _nothing_new(self) -> str:
        return f"{self._here()}: nothing new from learner {self._waits_for} on {self.learners.hosts[self._waits_for]}"


def _advance(job: Job) -> bool:
    """Go on with a job; whether it has ended."""
    return next(job, None) is None


def segment(learners: Learners, rank: int, numel: int) -> tuple[int, int]:
    """The part of `numel` elements that a learner works on for its node, as (start, stop)."""
    place, size = learners.local_rank_of(rank), learners.node_of.count(learners.node_of[rank])
    units = -(-numel // SEGMENT_UNIT)
    start, stop = (units * end // size * SEGMENT_UNIT for end in (place, place + 1))
    return min(numel, start), min(numel, stop)


def _areas(learners: Learners, rank: int, numel: int) -> list[int]:
    start, stop = segment(learners, rank, numel)
    return [numel, numel, stop - start]
