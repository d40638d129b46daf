"""A step's exchange: read the partners' weights w_k(t) while this learner computes, and mix them (eq. 2's w_s,j).

    exchange.begin(t)     start to read what the partners published as w(t)
    ...                   forward, backward: nobody writes w_j(t), the partners may be reading it
    exchange.mix()        w_s,j(t) = sum_k T_t[j,k] w_k(t), written into the other slot; the model now holds it
    ...                   the optimizer's update, in place
    exchange.publish()    w_j(t+1) is ready for whoever mixes with j next

There is no barrier: a learner waits for its partners of this step, and for the readers of the slot it is about to write.
Both waits look back in time only (at steps t and t-1 of others), so they cannot form a circle.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import Job, Pending, ProgressEngine
from horovod_dpsgd.gossip.window import Window
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.topology import Complete, Topology
from horovod_dpsgd.waiting import wait_until

if TYPE_CHECKING:
    from mpi4py import MPI

# With so few learners on one node, reading all of them in place beats MPI's all-reduce: 2 to 7 times at n = 2, 1.4 to 1.8
# times at n = 5, for models of 42,310 to 11 million weights; at n = 16 it depends on the model.
READ_ALL_UP_TO = 8


class Exchange(Protocol):
    """What an algorithm needs of its communication. `exposed_seconds` is the part of the last step not hidden."""

    weights: Tensor  # w_j(t), flat [numel]; the model's parameters are views of it
    exposed_seconds: float

    def begin(self, step: int) -> None: ...
    def mix(self) -> None: ...
    def publish(self) -> None: ...
    def restart(self, step: int) -> None: ...
    def bytes_sent(self, step: int) -> int: ...
    def close(self) -> None: ...


class GossipExchange:
    """Exchange with the partners a topology names, through a `Window`. Works for every topology with few partners."""

    def __init__(self, learners: Learners, parameters: FlatParameters, topology: Topology) -> None:
        self.learners = learners
        self.parameters = parameters
        self.topology = topology
        self.window = Window(learners, parameters.numel, parameters.dtype)
        self._views = [parameters.views(slot) for slot in self.window.slots]
        self._inbox: dict[int, Tensor] = {}  # a landing place for each partner on another node, made when first needed
        self._engine = ProgressEngine(learners) if learners.nodes > 1 else None
        parameters.gather(out=self.window.slots[0])
        self._turn_to(0)
        self.restart(0)

    @property
    def weights(self) -> Tensor:
        return self.window.slots[self.slot]

    def restart(self, step: int) -> None:
        """Begin (again) at `step` with the weights the model has now. Collective."""
        self.learners.barrier("the start of the exchange")  # nobody reads the slots any more
        self.step = step
        self.exposed_seconds = 0.0
        self._readers: list[int] = []  # the learners that read w(step - 1) of this one
        self.window.consume(step)
        self.window.publish(step, self.slot)
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
            mix_into(self.window.slots[1 - self.slot], weights, self.row)
            self._turn_to(1 - self.slot)
        # A learner that sits out stays in its slot: nobody reads it this step.
        self.window.consume(self.step + 1)
        self._readers = self.partners
        self.exposed_seconds = time.perf_counter() - start

    def publish(self) -> None:
        """Say that the model's weights are now w(step + 1)."""
        self.step += 1
        self.window.publish(self.step, self.slot)

    def bytes_sent(self, step: int) -> int:
        """Bytes that other learners read of this one at `step`."""
        return len(self.topology.partners(step, self.learners.rank)) * self.parameters.nbytes

    def close(self) -> None:
        """Leave the exchange; the model keeps its weights, in memory of its own. Collective."""
        own = self.weights.clone()
        self.learners.barrier("the end of the exchange")
        if self._engine:
            self._engine.close()
        self.parameters.point_to(self.parameters.views(own))
        self._views.clear()
        self.window.free()

    def _turn_to(self, slot: int) -> None:
        self.slot = slot
        self.parameters.point_to(self._views[slot])

    def _wait_for_others(self) -> None:
        """Until the partners have published w(step), and w(step - 1), about to be written over, has been read."""
        timeout = self.learners.stall_timeout
        for k in filter(self.learners.shares_memory_with, self.partners):
            wait_until(lambda k=k: self._published(k), lambda k=k: self._describe(k), timeout)  # type: ignore[misc]
        for k in filter(self.learners.shares_memory_with, self._readers):
            wait_until(lambda k=k: self._done_reading(k), lambda k=k: self._describe(k), timeout)  # type: ignore[misc]
        if self._fetched:
            wait_until(self._fetched.done, self._describe_fetch, timeout)

    def _published(self, k: int) -> bool:
        version, _ = self.window.counters(k).published[self.step % 2]
        if version > self.step:
            raise RuntimeError(f"learner {k} published step {version} over step {self.step} before it was read")
        return version == self.step

    def _done_reading(self, k: int) -> bool:
        return self.window.counters(k).consumed >= self.step

    def _weights_of(self, k: int) -> Tensor:
        if k == self.learners.rank:
            return self.weights
        if self.learners.shares_memory_with(k):
            return self.window.local_slot(k, self.window.counters(k).published[self.step % 2][1])
        return self._inbox[k]

    def _fetch(self) -> Job:
        """What `_wait_for_others` does, for learners on other nodes, and their weights; in the progress engine."""
        for self._fetching in self._elsewhere(self.partners):
            while not self._published(self._fetching):
                yield False
            inbox = self._inbox.setdefault(self._fetching, torch.empty_like(self.weights))
            _, slot = self.window.counters(self._fetching).published[self.step % 2]
            request = self.window.start_get(self._fetching, slot, inbox)
            while not request.Test():
                yield True  # bytes are moving: do not sleep
        for self._fetching in self._elsewhere(self._readers):
            while not self._done_reading(self._fetching):
                yield False

    def _elsewhere(self, ranks: list[int]) -> list[int]:
        return [k for k in ranks if not self.learners.shares_memory_with(k)]

    def _describe(self, k: int) -> str:
        return f"{self._here()}: learner {k} has published {self.window.counters(k).last_published}"

    def _describe_fetch(self) -> str:
        k = self._fetching  # its counters cannot be asked for now: that is what does not get through
        return f"{self._here()}: nothing new from learner {k} on {self.learners.hosts[k]}"

    def _here(self) -> str:
        return f"learner {self.learners.rank}, step {self.step}"


class AllReduceExchange:
    """Exchange with everyone: w_s = w_a by a non-blocking all-reduce of the weights, started before the forward pass."""

    def __init__(self, learners: Learners, parameters: FlatParameters) -> None:
        self.learners = learners
        self.parameters = parameters
        self._slots = [torch.zeros(parameters.numel, dtype=parameters.dtype) for _ in range(2)]
        self._views = [parameters.views(slot) for slot in self._slots]
        self._engine = ProgressEngine(learners) if learners.nodes > 1 else None
        parameters.gather(out=self._slots[0])
        self._turn_to(0)
        self.restart(0)

    @property
    def weights(self) -> Tensor:
        return self._slots[self.slot]

    def restart(self, step: int) -> None:
        self.step = step
        self.exposed_seconds = 0.0

    def begin(self, step: int) -> None:
        other = self._slots[1 - self.slot]
        self._request = self.learners.world.Iallreduce(self.weights.numpy(), other.numpy())
        self._driven = self._engine.submit(_drive(self._request)) if self._engine else None

    def mix(self) -> None:
        start = time.perf_counter()
        done = self._driven.done if self._driven else self._request.Test
        wait_until(done, self._describe, self.learners.stall_timeout)
        self._turn_to(1 - self.slot)
        self.weights.div_(self.learners.size)
        self.exposed_seconds = time.perf_counter() - start

    def publish(self) -> None:
        self.step += 1

    def bytes_sent(self, step: int) -> int:
        """What a ring all-reduce sends: each learner 2 (n-1)/n of the weights (MPI may choose another algorithm)."""
        return 2 * (self.learners.size - 1) * self.parameters.nbytes // self.learners.size

    def close(self) -> None:
        if self._engine:
            self._engine.close()

    def _turn_to(self, slot: int) -> None:
        self.slot = slot
        self.parameters.point_to(self._views[slot])

    def _describe(self) -> str:
        return f"learner {self.learners.rank}, step {self.step}: not everyone has joined the all-reduce of the weights"


def _drive(request: MPI.Request) -> Job:
    while not request.Test():
        yield True


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


def create(learners: Learners, parameters: FlatParameters, topology: Topology) -> Exchange:
    """The exchange that serves a topology. Collective."""
    few_on_one_node = learners.nodes == 1 and learners.size <= READ_ALL_UP_TO
    if isinstance(topology, Complete) and not few_on_one_node:
        return AllReduceExchange(learners, parameters)
    return GossipExchange(learners, parameters, topology)
