"""The ways to average a buffer of weights with others: what exchange.py compares. Each object averages once a call."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from benchmarks.comm import arguments, measure
from horovod_dpsgd import gossip, topology
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters

if TYPE_CHECKING:
    from mpi4py import MPI


class Buffers:
    """Private memory [numel] that the methods of one size share, as they run one after the other."""

    def __init__(self, numel: int) -> None:
        self.own, self.other, self.mixed = (measure.random_like_weights(numel, seed) for seed in range(3))


class Method(ABC):
    """One way of averaging; making one and closing it is collective."""

    name: str

    def __init__(self, learners: Learners, buffers: Buffers, polite: bool) -> None:
        self.learners = learners
        self.buffers = buffers
        self.polite = polite
        self.step = 0
        self.matching = topology.create("matching", learners.size, seed=1)

    @abstractmethod
    def __call__(self) -> None: ...

    def close(self) -> None:
        """Release what was allocated. Collective."""
        return None

    def partner(self) -> int | None:
        """Whom this learner averages with in the next step; None where it sits out."""
        partners = self.matching.partners(self.step, self.learners.rank)
        self.step += 1
        return partners[0] if partners else None

    def wait(self, request: MPI.Request) -> None:
        """MPI's own wait is the fastest, and spins: with more learners than cores it would stop those it waits for."""
        if self.polite:
            self.learners.wait(request, self.name)
        else:
            request.Wait()


class Floor(Method):
    """What no exchange can do without: read two buffers, write a third; here all of them private memory."""

    name = "floor: torch.lerp in private memory"

    def __call__(self) -> None:
        torch.lerp(self.buffers.own, self.buffers.other, 0.5, out=self.buffers.mixed)


class SharedFloor(Method):
    """The same with the partner's buffer where it is, in node-shared memory, and without asking whether it is ready.

    Cheaper than the floor in private memory where the partners' caches help each other, dearer where they compete.
    """

    name = "torch.lerp in shared memory, no protocol"

    def __init__(self, learners: Learners, buffers: Buffers, polite: bool) -> None:
        from mpi4py import MPI

        super().__init__(learners, buffers, polite)
        self.window = MPI.Win.Allocate_shared(2 * buffers.own.nbytes, 1, comm=learners.node)
        self.own = self._slots_of(learners.local_rank)
        for slot in self.own:
            slot.copy_(buffers.own)
        beside = learners.local_rank ^ 1
        self.others = self._slots_of(beside if beside < learners.local_size else learners.local_rank)

    def __call__(self) -> None:
        now = self.step % 2
        torch.lerp(self.own[now], self.others[now], 0.5, out=self.own[1 - now])
        self.step += 1

    def close(self) -> None:
        self.learners.barrier("the end of the shared floor")
        self.window.Free()

    def _slots_of(self, local_rank: int) -> tuple[torch.Tensor, ...]:
        return torch.frombuffer(self.window.Shared_query(local_rank)[0], dtype=torch.float32).chunk(2)


class Gossip(Method):
    """This library's exchange, by default with one partner. It always waits politely."""

    name = "gossip exchange"

    def __init__(
        self,
        learners: Learners,
        buffers: Buffers,
        polite: bool,
        topology_name: str = topology.Matching.name,
        compression: str = "none",
    ) -> None:
        super().__init__(learners, buffers, polite)
        self.name = arguments.exchange_name(Gossip.name, topology_name, compression)
        self.topology = topology.create(topology_name, learners.size, seed=1, node_of=learners.node_of)
        self.compression = compression
        model = nn.Module()
        model.weights = nn.Parameter(buffers.own.clone())
        self.exchange = gossip.create(learners, FlatParameters(model), self.topology, compression != "none")
        self.seconds: defaultdict[str, list[float]] = defaultdict(list)  # of each phase, each call

    def __call__(self) -> None:
        moments = [time.perf_counter()]
        self.exchange.begin(self.step)
        moments.append(time.perf_counter())
        self.exchange.mix()
        moments.append(time.perf_counter())
        self.exchange.publish()
        moments.append(time.perf_counter())
        self.step += 1
        for phase, seconds in zip(("begin", "mix", "publish"), np.diff(moments), strict=True):
            self.seconds[phase].append(float(seconds))

    def close(self) -> None:
        self.exchange.close()


class NaiveGet(Method):
    """MPI_Get of the partner's weights, average, copy back to publish: no waiting, so what is read may be old."""

    name = "MPI Get, then average, then publish"

    def __init__(self, learners: Learners, buffers: Buffers, polite: bool) -> None:
        from mpi4py import MPI

        super().__init__(learners, buffers, polite)
        self.window = MPI.Win.Allocate(buffers.own.nbytes, 1, comm=learners.world)
        self.published = torch.frombuffer(self.window.tomemory(), dtype=torch.float32).copy_(buffers.own)
        self.shared, self.exclusive = MPI.LOCK_SHARED, MPI.LOCK_EXCLUSIVE

    def __call__(self) -> None:
        buffers, window, rank = self.buffers, self.window, self.learners.rank
        partner = self.partner()
        if partner is None:
            return
        window.Lock(partner, self.shared)
        self.wait(window.Rget(buffers.other.numpy(), partner))
        window.Unlock(partner)
        torch.lerp(buffers.own, buffers.other, 0.5, out=buffers.own)
        window.Lock(rank, self.exclusive)
        self.published.copy_(buffers.own)
        window.Unlock(rank)

    def close(self) -> None:
        self.learners.barrier("the end of the naive exchange")
        self.window.Free()


class SendReceive(Method):
    """Two-sided: both partners send and receive at once, then average."""

    name = "MPI Isend + Irecv, then average"

    def __call__(self) -> None:
        buffers, world = self.buffers, self.learners.world
        partner = self.partner()
        if partner is None:
            return
        received = world.Irecv(buffers.other.numpy(), partner)
        sent = world.Isend(buffers.own.numpy(), partner)
        self.wait(received)
        self.wait(sent)
        torch.lerp(buffers.own, buffers.other, 0.5, out=buffers.own)


class AllReduce(Method):
    """The average of all learners by MPI's non-blocking all-reduce, in place."""

    name = "MPI Iallreduce, then divide"

    def __call__(self) -> None:
        from mpi4py import MPI

        self.wait(self.learners.world.Iallreduce(MPI.IN_PLACE, self.buffers.own.numpy()))
        self.buffers.own.div_(self.learners.size)


class Horovod(Method):
    """The same by Horovod (`hvd.allreduce_`, in place), which must have been started."""

    name = "Horovod all-reduce"

    def __call__(self) -> None:
        import horovod.torch as hvd

        hvd.allreduce_(self.buffers.own, op=hvd.Average, name=f"weights.{self.buffers.own.numel()}")


WITHOUT_HOROVOD: tuple[type[Method], ...] = (Floor, SharedFloor, Gossip, NaiveGet, SendReceive, AllReduce)
WITH_HOROVOD: tuple[type[Method], ...] = (Floor, Horovod)


def bytes_needed(nbytes: int, compressed: bool = False) -> tuple[int, int]:
    """(memory, of which shared memory) that all methods together need of each learner at a size."""
    shared = (2 + 2 + 1) * nbytes  # the shared floor's slots, gossip's slots, the naive window
    private = (3 + 2 * compressed) * nbytes  # compressed weights are published copies of private ones
    made_and_dropped = 2 * nbytes  # the model before it moves into gossip's window; a clone when it leaves it
    return shared + private + made_and_dropped, shared
