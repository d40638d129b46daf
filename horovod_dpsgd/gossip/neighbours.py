"""The exchange with the few partners a topology names, through the window: pairwise, without a barrier.

A learner waits for two things only, both in the past of others: that its partners of step t have published w(t), and
that its partners of step t-1 have read w(t-1), before that slot is written over. Looking back in time, waits cannot
form a circle.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import IDLE, Job, Pending, ProgressEngine, completion
from horovod_dpsgd.gossip.window import COUNTERS, Counters, Window
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.topology import Topology
from horovod_dpsgd.waiting import wait_until


class NeighbourExchange:
    """Reads partners of this node in place, those of other nodes by Rget during forward and backward.

    staged: the model's weights are kept outside the window and copied into it when published; so it has to be for
    weights on a GPU. Otherwise the weights live in the window, and nothing is copied to be published.
    """

    def __init__(
        self, learners: Learners, parameters: FlatParameters, topology: Topology, staged: bool | None = None
    ) -> None:
        self.learners = learners
        self.parameters = parameters
        self.topology = topology
        self.staged = parameters.device.type != "cpu" if staged is None else staged
        self.window = Window(learners, parameters.numel, parameters.dtype)
        slots = self.window.slots
        self._slots: list[Tensor] = [slot.to(parameters.device, copy=True) for slot in slots] if self.staged else slots
        self._views = [parameters.views(slot) for slot in self._slots]
        self._fetched: Pending | None = None
        self._fetching = learners.rank  # the learner that is being asked, for stall messages
        self._inbox: dict[int, Tensor] = {}  # a landing place for each partner on another node, made when first needed
        self._engine = ProgressEngine(learners) if learners.nodes > 1 else None
        parameters.gather(out=self._slots[0])
        self._turn_to(0)
        self.restart(0)

    @property
    def weights(self) -> Tensor:
        """w_j(t), flat [numel]; the model's parameters are views of it."""
        return self._slots[self.slot]

    def restart(self, step: int) -> None:
        """Begin (again) at `step` with the weights the model has now. Collective, and after `settle`."""
        self.step = step
        self.exposed_seconds = 0.0
        self._readers: list[int] = []  # the learners that read w(step - 1) of this one
        self.window.reset()
        self.window.consume(step)
        self._show(step)
        self.learners.barrier("the start of the exchange")  # everyone has published

    def begin(self, step: int) -> None:
        """Start to read the partners' w(step); returns at once."""
        if step != self.step:
            raise RuntimeError(f"step {step} begun, but the weights are those of step {self.step}")
        self.row = self.topology.row(step, self.learners.rank)
        self.partners = [k for k in self.row if k != self.learners.rank]
        self._fetched = self._engine.submit(self._fetch()) if self._engine else None

    def mix(self) -> None:
        """Wait for what is still missing, then turn the model to w_s(step) = sum_k T[j,k] w_k(step)."""
        start = time.perf_counter()
        self._wait_for_others()
        if self.partners:
            weights = {k: self._weights_of(k) for k in self.row}
            mix_into(self._slots[1 - self.slot], weights, self.row)
            self._turn_to(1 - self.slot)
        # A learner that sits out stays in its slot, which nobody reads this step.
        self.window.consume(self.step + 1)
        self._readers = self.partners
        self.exposed_seconds = time.perf_counter() - start

    def publish(self) -> None:
        """Say that the model's weights are now w(step + 1)."""
        self.step += 1
        self._show(self.step)

    def settle(self) -> None:
        """Return when no learner reads any more: what `begin` started is done, and not used. Collective."""
        if self._fetched:
            wait_until(self._fetched.done, self._nothing_new, self.learners.stall_timeout)
        self.learners.barrier("the end of the exchange")

    def bytes_sent(self, step: int) -> int:
        """Bytes that other learners read of this one at `step`."""
        return len(self.topology.partners(step, self.learners.rank)) * self.parameters.nbytes

    def close(self) -> None:
        """Leave the exchange; the model keeps its weights, in memory of its own. Collective."""
        own = self.weights.clone()
        self.settle()
        if self._engine:
            self._engine.close()
        self._slots, self._views = [own], [self.parameters.views(own)]  # the window's memory is about to go
        self._turn_to(0)
        self.window.free()

    def _turn_to(self, slot: int) -> None:
        self.slot = slot
        self.parameters.point_to(self._views[slot])

    def _show(self, version: int) -> None:
        if self.staged:
            self.window.slots[self.slot].copy_(self.weights)
        self.window.publish(version, self.slot)

    def _weights_of(self, k: int) -> Tensor:
        if k == self.learners.rank:
            return self.weights
        if not self.learners.shares_memory_with(k):
            return self._inbox[k].to(self.weights.device)
        _, slot = self.window.counters(k).published[self.step % 2]
        return self.window.slot(k, slot).to(self.weights.device)

    # Waiting for learners of this node, at the end of a step

    def _wait_for_others(self) -> None:
        """Until the partners have published w(step), and w(step - 1), about to be written over, has been read."""
        timeout = self.learners.stall_timeout
        for k in filter(self.learners.shares_memory_with, self.partners):
            wait_until(partial(self._has_published, k), partial(self._late, k), timeout)
        for k in filter(self.learners.shares_memory_with, self._readers):
            wait_until(partial(self._has_read, k), partial(self._late, k), timeout)
        if self._fetched:
            wait_until(self._fetched.done, self._nothing_new, timeout)

    def _has_published(self, k: int) -> bool:
        return self._published(k, self.window.counters(k))

    def _has_read(self, k: int) -> bool:
        return self.window.counters(k).consumed >= self.step

    def _published(self, k: int, counters: Counters) -> bool:
        version, _ = counters.published[self.step % 2]
        if version > self.step:
            raise RuntimeError(f"learner {k} published step {version} over step {self.step} before it was read")
        return version == self.step

    # The same for learners of other nodes, and their weights: in the progress engine, during forward and backward

    def _fetch(self) -> Job:
        for k in self._elsewhere(self.partners):
            self._fetching = k
            counters = yield from self._remote_counters(k)
            while not self._published(k, counters):
                yield IDLE
                counters = yield from self._remote_counters(k)
            inbox = self._inbox.setdefault(k, torch.empty_like(self.window.slots[0]))
            _, slot = counters.published[self.step % 2]
            yield from completion(self.window.get_slot(k, slot, inbox))
        for k in self._elsewhere(self._readers):
            self._fetching = k
            while (yield from self._remote_counters(k)).consumed < self.step:
                yield IDLE

    def _remote_counters(self, k: int) -> Generator[float, None, Counters]:
        memory = np.zeros(COUNTERS, np.int64)
        yield from completion(self.window.get_counters(k, memory))
        return Counters.read(memory)

    def _elsewhere(self, ranks: list[int]) -> list[int]:
        return [k for k in ranks if not self.learners.shares_memory_with(k)]

    # Words for those who wait

    def _late(self, k: int) -> str:
        return f"{self._here()}: learner {k} has published {self.window.counters(k).last_published}"

    def _nothing_new(self) -> str:
        k = self._fetching  # its counters cannot be asked for now: that is just what does not get through
        return f"{self._here()}: nothing new from learner {k} on {self.learners.hosts[k]}"

    def _here(self) -> str:
        return f"learner {self.learners.rank}, step {self.step}"


def mix_into(out: Tensor, weights: dict[int, Tensor], row: dict[int, float]) -> None:
    """out = sum_k row[k] weights[k], flat [numel] each.

    Added up in the order of the ranks, so that learners with equal rows get equal bits.
    """
    first, *others = sorted(row)
    if len(others) == 1 and row[first] == 0.5:
        torch.lerp(weights[first], weights[others[0]], 0.5, out=out)  # one pass: two reads, one write
        return
    torch.mul(weights[first], row[first], out=out)
    for k in others:
        out.add_(weights[k], alpha=row[k])
