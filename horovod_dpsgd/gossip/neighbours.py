"""The exchange with the few partners a topology names: pairwise, without a barrier.

A learner waits for two things only, both in the past of others: that its partners of step t have published w(t), and
that its partners of step t-1 have read w(t-1), before that slot is written over. Looking back in time, waits cannot
form a circle. Partners of this node are read in place, and the window's counters say when; with partners on other nodes
messages are exchanged during forward and backward, and a message that has come or gone says it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import Pending
from horovod_dpsgd.gossip.slots import BlockUpdate, SlotExchange, mix_into
from horovod_dpsgd.gossip.staging import staging
from horovod_dpsgd.gossip.window import COUNTERS, Window
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.topology import Topology
from horovod_dpsgd.waiting import wait_until

CONSUMED, LEFT = 2, 3  # the counters behind those of the two parities of published steps


@dataclass(frozen=True)
class Counters:
    """What a learner says of itself; each value was true at some moment before now, and none falls while learners
    exchange.

    published: for even and for odd t, the last t at which w(t) was complete, and the slot it is in, as (t, slot).
    consumed: how many steps' reads this learner has finished. left: whether it has left the exchange.
    """

    published: tuple[tuple[int, int], tuple[int, int]]
    consumed: int
    left: bool = False

    @classmethod
    def read(cls, counters: Sequence[int]) -> Counters:
        """From a window's counters."""
        even, odd, consumed, left = (int(value) for value in counters[:COUNTERS])
        return cls(((even >> 1, even & 1), (odd >> 1, odd & 1)), consumed, bool(left))

    @property
    def last_published(self) -> int:
        return max(version for version, _ in self.published)


class NeighbourExchange(SlotExchange):
    """The exchange with partners of this and of other nodes.

    staged: the model's weights are kept outside the window and copied into it when published; so it has to be for
    weights on a GPU. Otherwise the weights live in the window, and nothing is copied to be published. From a GPU the
    copy is started by `publish`, and others hear of it when this learner next looks: in `begin` if its partner is on
    another node (the GPU has then nothing queued), else in `mix`, when the host has queued all the rest of the step. So
    the partner of a learner that is late with its step is late as well; from a CPU it would have had w(t) before.

    compressed: what is published is rounded to bfloat16: half the bytes on the wire, one more pass over memory. With
    c(w) the rounded weights, w_s,j = w_j + sum_k T_t[j,k] (c(w_k) - c(w_j)): both sides of a pair know both rounded
    values, so mixing still keeps the mean of the weights.
    """

    def __init__(
        self,
        learners: Learners,
        parameters: FlatParameters,
        topology: Topology,
        staged: bool | None = None,
        compressed: bool = False,
    ) -> None:
        self.topology = topology
        self.compressed = compressed
        self.staged = (parameters.device.type != "cpu" if staged is None else staged) or compressed
        self.window = Window(
            learners, lambda _: [parameters.numel] * 2, torch.bfloat16 if compressed else parameters.dtype
        )
        self._inboxes: list[Tensor] = []  # landing places, for as many as ever came at once
        self._inbox: dict[int, Tensor] = {}  # which of them is this step's of which learner
        self._staging = staging(parameters.device)
        if learners.size > 1:
            self.window.touch()
            if parameters.device.type == "cuda":
                self.window.pin()
        slots = self.window.areas
        if self.staged:
            slots = [parameters.zeros() for _ in range(2)]
        super().__init__(learners, parameters, slots)

    def restart(self, step: int) -> None:
        super().restart(step)
        self._readers: list[int] = []  # the learners that read w(step - 1) of this one
        # Messages, by the learner on another node: with w(step) from it and to it, and with w(step - 1) to it
        self._coming: dict[int, Pending] = {}
        self._going: dict[int, Pending] = {}
        self._gone: dict[int, Pending] = {}
        for counter in range(COUNTERS):  # forget what was published and consumed; nobody looks now
            self.window.post(counter, 0)
        self.window.post(CONSUMED, step)
        self._copy_out()
        self._show()
        self.learners.barrier("the start of the exchange")  # everyone has published

    def begin(self, step: int) -> None:
        super().begin(step)
        self.row = self.topology.row(step, self.learners.rank)
        self.partners = [k for k in self.row if k != self.learners.rank]
        self._gone = self._going
        self._coming, self._going = {}, {}
        if self._engine:
            away = self.learners.elsewhere(self.partners)
            if away:
                self._show()
            while len(self._inboxes) < len(away):
                self._inboxes.append(torch.empty_like(self.window.areas[0], pin_memory=self.weights.is_cuda))
            self._inbox = dict(zip(away, self._inboxes, strict=False))
            for k in away:
                self._coming[k] = self._engine.receive(self._inbox[k], k, step)
                self._going[k] = self._engine.send(self.window.areas[self.slot], k, step)

    def mix(self, update: BlockUpdate | None = None) -> None:
        self._show()
        super().mix(update)
        self.window.post(CONSUMED, self.step + 1)
        self._readers = self.partners

    def _mixes(self) -> bool:
        return bool(self.partners)  # a learner that sits out stays in its slot, which nobody reads this step

    def _mixing(self, blocks: Sequence[Tensor], sizes: list[int]) -> Iterator[Tensor]:
        own = self._slots[1 - self.slot]
        terms: dict[int, tuple[float, Tensor]] = {self.learners.rank: (self.row[self.learners.rank], own)}
        areas = [self._weights_of(k) for k in self.partners]
        if self.compressed:
            areas.append(self.window.areas[1 - self.slot])
        theirs = self._staging.copy_in(areas)
        for k, weights in zip(self.partners, theirs, strict=False):
            terms[k] = (self.row[k], weights)
        # Added up in the order of the ranks, so that learners with equal rows get equal bits.
        ordered = [terms[k] for k in sorted(terms)]
        if self.compressed:
            ordered = [(1.0, own), (terms[self.learners.rank][0] - 1, theirs[-1]), *(terms[k] for k in self.partners)]
        coefficients = [coefficient for coefficient, _ in ordered]
        parts = zip(*(term.split(sizes) for _, term in ordered), strict=True)
        for block, part in zip(blocks, parts, strict=True):
            mix_into(block, part, coefficients)
            yield block

    def publish(self) -> None:
        super().publish()
        self._copy_out()
        if self._staging.at_once:
            self._show()

    def settle(self) -> None:
        self._show()
        self._wait_for_messages(self._coming, self._gone, self._going)
        self.learners.barrier("the end of the exchange")

    def close(self) -> None:
        self._show()
        self.window.post(LEFT, 1)  # whoever still waits for a step of this learner's waits in vain
        super().close()

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """A model, as it is published, for each partner."""
        partners = self.topology.partners(step, self.learners.rank)
        counted = self.learners.elsewhere(partners) if between_nodes else partners
        return len(counted) * self.parameters.numel * self.window.dtype.itemsize

    def _free(self) -> None:
        self.window.free()

    def _copy_out(self) -> None:
        """Start to copy w(step) to where others find it, if it is not there anyway and there are others."""
        if self.staged and self.learners.size > 1:
            self._staging.copy_out(self.weights, self.window.areas[self.slot])
        self._shown = False

    def _show(self) -> None:
        """Let others read w(step), unless they may already."""
        if not self._shown:
            self._staging.finish_copy_out()
            self.window.post(self.step % 2, self.step << 1 | self.slot)
            self._shown = True

    def _weights_of(self, k: int) -> Tensor:
        """w_k(step) in this node's memory."""
        if not self.learners.shares_memory_with(k):
            return self._inbox[k]
        _, slot = self._counters(k).published[self.step % 2]
        return self.window.area(k, slot)

    # Waiting, at the end of a step

    def _wait_for_others(self) -> None:
        """Until the partners have published w(step), and w(step - 1), about to be written over, has been read."""
        timeout = self.learners.stall_timeout
        for k in filter(self.learners.shares_memory_with, self.partners):
            wait_until(partial(self._has_published, k), partial(self._late, k), timeout)
        for k in filter(self.learners.shares_memory_with, self._readers):
            wait_until(partial(self._has_read, k), partial(self._late, k), timeout)
        self._wait_for_messages(self._coming, self._gone)

    def _wait_for_messages(self, *messages: dict[int, Pending]) -> None:
        for each in messages:
            for k, pending in each.items():
                wait_until(pending.done, partial(self._nothing_new, k), self.learners.stall_timeout)

    def _counters(self, k: int) -> Counters:
        return Counters.read(self.window.counters(k))

    def _has_published(self, k: int) -> bool:
        counters = self._counters(k)
        if counters.left:
            counters = self._counters(k)  # what it published before it left is seen now
        version, _ = counters.published[self.step % 2]
        if version > self.step:
            raise RuntimeError(f"learner {k} published step {version} over step {self.step} before it was read")
        if counters.left and version < self.step:
            raise RuntimeError(
                f"learner {k} has left after {counters.last_published} steps, but learner "
                f"{self.learners.rank} goes on to step {self.step + 1}: all must take equally many"
            )
        return version == self.step

    def _has_read(self, k: int) -> bool:
        return self._counters(k).consumed >= self.step

    # Words for those who wait

    def _late(self, k: int) -> str:
        return f"{self._here()}: learner {k} has published {self._counters(k).last_published}"

    def _nothing_new(self, k: int) -> str:
        return f"{self._here()}: nothing new from learner {k} on {self.learners.hosts[k]}"
