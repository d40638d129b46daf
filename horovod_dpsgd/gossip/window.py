"""The memory that the learners of a node expose to each other by MPI's one-sided communication.

Every learner exposes a few int64 counters and some areas of weights; the exchanges say what is in them:

    [ counters | ... ] [ area 0 ] [ area 1 ] ...        a page of int64, then the weights' dtype

The memory comes from `MPI.Win.Allocate_shared`, and is used in place: no call copies anything.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd.errors import MachineError
from horovod_dpsgd.gossip.room import MAPS, backing_folder, free_bytes
from horovod_dpsgd.learners import Learners

if TYPE_CHECKING:
    from mpi4py import MPI

HEADER_BYTES = 4096  # the counters have a page of their own
COUNTERS = 4
LOCK = COUNTERS  # the int64 behind the counters


class Window:
    """Counters and areas of weights of every learner of this node. Creating and freeing it is collective.

    sizes_of: the elements of each area of a learner, by rank; dtype: any floating one.
    `areas` are this learner's own, as tensors; they take no room until they are written, or `touch` is called.
    """

    def __init__(self, learners: Learners, sizes_of: Callable[[int], Sequence[int]], dtype: torch.dtype) -> None:
        from mpi4py import MPI  # here and not above: importing it starts MPI

        self.learners = learners
        self.dtype = dtype
        nbytes = HEADER_BYTES + sum(sizes_of(learners.rank)) * dtype.itemsize
        _check_room(learners, nbytes)
        info = MPI.Info.Create({"alloc_shared_noncontig": "true"})  # each learner's part on pages of its own (NUMA)
        self._shared = MPI.Win.Allocate_shared(nbytes, 1, info, learners.node)
        info.Free()
        self._shared.Lock_all()
        self._local = {
            rank: _Memory(self._shared.Shared_query(learners.local_rank_of(rank))[0], sizes_of(rank), dtype)
            for rank in range(learners.size)
            if learners.shares_memory_with(rank)
        }
        self._own = self._local[learners.rank]
        self._pinned: list[int] = []
        self._own.counters[:] = 0
        self.areas = self._own.areas

    def touch(self) -> None:
        """Have all of this learner's part take room now, so that whoever makes the next window knows what is left."""
        for area in self.areas:
            area.zero_()

    def pin(self) -> None:
        """Page-lock (pin) the memory of this node's learners, so that the GPU copies it asynchronously. Collective.

        All of it then takes room. Where it cannot be had, copies are slow and the host waits; a warning says so.
        """
        self._pin(self._own)  # before others do, so that its pages are near this learner (NUMA)
        self.learners.barrier("the pinning of memory")
        for memory in self._local.values():
            if memory is not self._own:
                self._pin(memory)

    def _pin(self, memory: _Memory) -> None:
        error = torch.cuda.cudart().cudaHostRegister(memory.address, memory.nbytes, 0)
        if error == torch.cuda.cudart().cudaError.success:
            self._pinned.append(memory.address)
            return
        warnings.warn(f"shared memory is not pinned: {torch.cuda.CudaError(int(error))}", stacklevel=3)
        with suppress(RuntimeError):  # CUDA's runtime keeps the error, and PyTorch would raise it at its next kernel
            torch.ones(1, device="cuda")

    # Counters: only the learner itself sets its own, if not under a lock.

    def post(self, index: int, value: int) -> None:
        """Set one of this learner's counters; whoever sees the value sees all that was written before."""
        self._shared.Sync()  # a full memory barrier
        self._own.counters[index] = value

    def counters(self, rank: int) -> list[int]:
        """The counters of a learner; what they promise is visible afterwards."""
        counters: list[int] = self._local[rank].counters[:COUNTERS].tolist()
        self._shared.Sync()
        return counters

    def count(self, rank: int, index: int) -> None:
        """Add one to a counter of a learner, whose lock this learner holds."""
        self._local[rank].counters[index] += 1

    def area(self, rank: int, area: int) -> Tensor:
        """An area of a learner, in place."""
        return self._local[rank].areas[area]

    # A lock for each learner's areas

    def try_lock(self, rank: int) -> bool:
        """Take the lock of a learner, if nobody has it; returns at once."""
        free, mine, found = np.zeros(1, np.int64), np.array([self.learners.rank + 1]), np.empty(1, np.int64)
        target = self.learners.local_rank_of(rank)
        self._shared.Compare_and_swap(mine, free, found, target, 8 * LOCK)
        self._shared.Flush(target)
        taken = bool(found[0] == 0)
        if taken:
            self._shared.Sync()
        return taken

    def unlock(self, rank: int) -> None:
        self._shared.Sync()
        self._local[rank].counters[LOCK] = 0

    def holder(self, rank: int) -> int | None:
        """Who has the lock of a learner."""
        holder = int(self._local[rank].counters[LOCK])
        return holder - 1 if holder else None

    def free(self) -> None:
        """Give the memory back, once everyone is done with it. Tensors on it must not be used after this."""
        for address in self._pinned:
            torch.cuda.cudart().cudaHostUnregister(address)
        self._shared.Unlock_all()
        self._shared.Free()


def _check_room(learners: Learners, nbytes: int) -> None:
    """Raise MachineError, on all learners, if a node has no room for `nbytes` for each of its learners. Collective.

    Asked beforehand: where /dev/shm is too small Open MPI 5.0.11 fails on one learner and leaves the others in the
    call, and MPICH's memory ends the process by SIGBUS when it is written to.
    """
    from mpi4py import MPI

    trial = MPI.Win.Allocate_shared(mmap.PAGESIZE, 1, comm=learners.node)  # where MPI puts it is MPI's affair
    address = np.frombuffer(cast(memoryview, trial.tomemory()), np.uint8).ctypes.data
    folder = backing_folder(address, MAPS.read_text())
    trial.Free()
    needed, free = sum(learners.node.allgather(nbytes)), free_bytes(folder)
    for rank, (its_need, its_free, its_folder) in enumerate(learners.gather((needed, free, folder))):
        if its_need > its_free:
            raise MachineError(
                f"the weights of the learners on {learners.hosts[rank]} need {its_need / 1e6:.3g} MB of shared memory, "
                f"and {its_folder or 'it'} has {its_free / 1e6:.3g} MB free: enlarge it (docker: --shm-size), or start "
                "fewer learners a node"
            )


class _Memory:
    """One learner's part of the window as seen from here."""

    def __init__(self, memory: MPI.buffer, sizes: Sequence[int], dtype: torch.dtype) -> None:
        raw = np.frombuffer(cast(memoryview, memory), np.uint8)
        self.address, self.nbytes = raw.ctypes.data, raw.nbytes
        self.counters = raw[:HEADER_BYTES].view(np.int64)
        nbytes = [size * dtype.itemsize for size in sizes]
        weights = torch.from_numpy(raw[HEADER_BYTES:][: sum(nbytes)])  # MPI may give more, to the end of a page
        self.areas = [area.view(dtype) for area in weights.split(nbytes)]
