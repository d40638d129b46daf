"""The memory that learners expose to each other by MPI's one-sided communication.

Every learner exposes two slots of flat weights and three counters:

    [ published[0] | published[1] | consumed | ... ] [ slot 0 ] [ slot 1 ]        int64, then the weights' dtype

The memory comes from `MPI.Win.Allocate_shared` on the learners of one node, who read each other's slots in place. Where
there is more than one node, the same memory is exposed to everyone by `MPI.Win.Create` and read by `Rget`. (That pair
works on Open MPI 5 and MPICH 4; `Create` over ordinary memory does not everywhere: open-mpi/ompi#8112.)

Nothing is ever written into another learner's memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd.learners import Learners

if TYPE_CHECKING:
    from mpi4py import MPI

HEADER_BYTES = 4096  # the counters have a page of their own, and the slots begin on a page
COUNTERS = 3
NUMPY_TYPES = {torch.float32: np.float32, torch.float64: np.float64}


@dataclass(frozen=True)
class Counters:
    """What a learner says of itself; each value was true at some moment before now, and none falls while learners
    exchange.

    published: for even and for odd t, the last t at which w(t) was complete, and the slot it is in, as (t, slot).
    consumed: how many steps' reads this learner has finished.
    """

    published: tuple[tuple[int, int], tuple[int, int]]
    consumed: int

    @classmethod
    def read(cls, memory: np.ndarray) -> Counters:
        """From the first int64s of a learner's memory (or a copy of them)."""
        even, odd, consumed = memory[:COUNTERS].tolist()
        return cls(((even >> 1, even & 1), (odd >> 1, odd & 1)), consumed)

    @property
    def last_published(self) -> int:
        return max(version for version, _ in self.published)


class Window:
    """Two slots of `numel` weights a learner, readable by all learners. Creating and freeing it is collective.

    numel: elements in a slot; dtype: torch.float32 or torch.float64.
    `slots` are this learner's own, as tensors [numel]; only the learner itself writes them.
    """

    def __init__(self, learners: Learners, numel: int, dtype: torch.dtype) -> None:
        from mpi4py import MPI  # here and not above: importing it starts MPI

        self.learners = learners
        self.slot_bytes = numel * dtype.itemsize
        nbytes = HEADER_BYTES + 2 * self.slot_bytes
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # each learner's part on pages of its own (NUMA)
        try:
            self._shared = MPI.Win.Allocate_shared(nbytes, 1, info, learners.node)
        except MPI.Exception as error:
            raise RuntimeError(
                f"MPI has no shared memory of {nbytes / 1e6:.0f} MB for each of {learners.local_size} learners on "
                f"{learners.hosts[learners.rank]} ({error}); python -m horovod_dpsgd.doctor says more"
            ) from error
        info.Free()
        self._shared.Lock_all()
        self._local = {
            rank: _Memory(self._shared.Shared_query(learners.local_rank_of(rank))[0], numel, dtype)
            for rank in range(learners.size)
            if learners.shares_memory_with(rank)
        }
        self._own = self._local[learners.rank]
        self._own.raw[:] = 0
        self.slots = self._own.slots
        self._byte = MPI.BYTE
        self._remote: MPI.Win | None = None
        if learners.nodes > 1:
            self._remote = MPI.Win.Create(self._own.raw, 1, MPI.INFO_NULL, learners.world)
            self._remote.Lock_all(MPI.MODE_NOCHECK)  # nobody ever locks exclusively

    # Writing: one's own slots and counters.

    def reset(self) -> None:
        """Forget what was published and consumed, while nobody looks."""
        self._own.counters[:COUNTERS] = 0

    def publish(self, version: int, slot: int) -> None:
        """Say that `slot` holds w(version), complete."""
        self._shared.Sync()  # a full memory barrier: the weights are visible before the counter is
        self._own.counters[version % 2] = version << 1 | slot

    def consume(self, steps: int) -> None:
        """Say that the reads of the first `steps` steps are done, so that what they read may be written over."""
        self._shared.Sync()
        self._own.counters[2] = steps

    # Reading in place: learners of this node.

    def counters(self, rank: int) -> Counters:
        counters = Counters.read(self._local[rank].counters)
        self._shared.Sync()  # what the counters promise is visible after this
        return counters

    def slot(self, rank: int, slot: int) -> Tensor:
        """A slot [numel] of another learner; it may be read while the counters say so."""
        return self._local[rank].slots[slot]

    # Reading by copy: learners of other nodes. What was asked for is there when the request completes.

    def get_counters(self, rank: int, out: np.ndarray) -> MPI.Request:
        """Start to copy a learner's counters into `out` (int64 [COUNTERS]), for `Counters.read`."""
        # Every MPI library met so far copies eight aligned bytes whole. The standard's way, an atomic read by
        # Fetch_and_op, takes several times as long over TCP (open-mpi/ompi#14437).
        return self._get(rank, 0, out)

    def get_slot(self, rank: int, slot: int, out: Tensor) -> MPI.Request:
        """Start to copy a learner's slot into `out` [numel]."""
        return self._get(rank, HEADER_BYTES + slot * self.slot_bytes, out.numpy())

    def _get(self, rank: int, offset: int, out: np.ndarray) -> MPI.Request:
        assert self._remote is not None, "all learners are on this node"
        return self._remote.Rget(out.view(np.uint8), rank, (offset, out.nbytes, self._byte))

    def free(self) -> None:
        """Give the memory back, once everyone is done reading. Tensors on it must not be used after this."""
        if self._remote is not None:
            self._remote.Unlock_all()
            self._remote.Free()
        self._shared.Unlock_all()
        self._shared.Free()


class _Memory:
    """One learner's part of the window as seen from here."""

    def __init__(self, memory: MPI.buffer, numel: int, dtype: torch.dtype) -> None:
        self.raw = np.frombuffer(cast(memoryview, memory), np.uint8)
        self.counters = self.raw[:HEADER_BYTES].view(np.int64)
        weights = self.raw[HEADER_BYTES:].view(NUMPY_TYPES[dtype])
        self.slots = [torch.from_numpy(weights[i * numel : (i + 1) * numel]) for i in range(2)]
