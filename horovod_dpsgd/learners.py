"""Who we are: the learners of this job, what each may use, and how they speak to and end each other.

Starting is explicit (`start()`), happens once, and touches MPI alone: Horovod is neither imported nor initialised here.
"""

from __future__ import annotations

import atexit
import functools
import os
import random
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch

from horovod_dpsgd import processes
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.waiting import StallError, wait_until

if TYPE_CHECKING:
    from mpi4py import MPI

Result = TypeVar("Result")

STALL_TIMEOUT = 300.0  # seconds
LAST_WORDS = 0.5  # seconds between the reason and the end of a job
ROLL_CALL = 30_977  # a message's tag
BROADCAST_BYTES = 2**30  # at once: MPI 3 counts in 32 bits


@dataclass(frozen=True)
class Learners:
    """The learners of one job, seen from one of them.

    world: all learners, on a duplicate of MPI_COMM_WORLD, so that no message meets Horovod's or the user's own.
    node: the learners that share memory with this one.
    node_of: for every learner the number of its node; learners of one number can read each other's memory in place.
    hosts: the host names, one a learner.
    """

    world: MPI.Intracomm
    node: MPI.Intracomm
    node_of: tuple[int, ...]
    hosts: tuple[str, ...]
    stall_timeout: float = STALL_TIMEOUT

    @property
    def rank(self) -> int:
        return self.world.rank

    @property
    def size(self) -> int:
        return self.world.size

    @property
    def local_rank(self) -> int:
        return self.node.rank

    @property
    def local_size(self) -> int:
        return self.node.size

    @property
    def nodes(self) -> int:
        return max(self.node_of) + 1

    def shares_memory_with(self, rank: int) -> bool:
        return self.node_of[rank] == self.node_of[self.rank]

    def local_rank_of(self, rank: int) -> int:
        """The rank inside `node` of a learner that shares memory with this one."""
        return self.node_of[:rank].count(self.node_of[rank])

    def elsewhere(self, ranks: Iterable[int]) -> list[int]:
        """Those of these learners that do not share memory with this one."""
        return [k for k in ranks if not self.shares_memory_with(k)]

    def ring_all_reduce_bytes(self, nbytes: int, between_nodes: bool = False) -> int:
        """What a learner sends in a ring all-reduce of `nbytes`: 2 (n-1)/n of them (MPI may choose another way).

        All of it goes to the next learner; between_nodes: 0 if that one is on the same node.
        """
        if between_nodes and not self.elsewhere([(self.rank + 1) % self.size]):
            return 0
        return 2 * (self.size - 1) * nbytes // self.size

    # Collective calls: every learner must make them, in the same order.

    def wait(self, request: MPI.Request, what: str) -> None:
        """Complete a non-blocking MPI operation without spinning; `what` names it in stall warnings."""
        self.wait_until(request.Test, what)

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Poll `done`, which is true when all learners have done their part in `what`.

        Raises StallError after `stall_timeout` seconds; it names those who do not wait themselves.
        """
        try:
            wait_until(done, lambda: f"learner {self.rank} waits in {what} for the other learners", self.stall_timeout)
        except StallError as stall:
            raise StallError(f"{stall}: {self._roll_call()}") from None

    def _roll_call(self) -> str:
        """Who is missing. Those who wait with this learner give up when it does, and say so to each other."""
        others = [rank for rank in range(self.size) if rank != self.rank]
        calls = [self.world.Isend(b"", rank, ROLL_CALL) for rank in others]
        missing = set(others)
        deadline = time.monotonic() + max(2.0, self.stall_timeout / 10)
        while missing and time.monotonic() < deadline:
            missing -= {rank for rank in missing if self.world.Iprobe(rank, ROLL_CALL)}
            time.sleep(1e-3)
        del calls  # the job is about to end
        names = ", ".join(f"learner {rank} on {self.hosts[rank]}" for rank in sorted(missing))
        return f"{names} did not get there" if missing else "all are there, but MPI does not go on"

    def barrier(self, what: str = "a barrier") -> None:
        self.wait(self.world.Ibarrier(), what)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over learners, as a new tensor of the same shape, dtype and device."""
        result = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        if self.size > 1:
            self.wait(self.world.Iallreduce(_in_place(), result.numpy()), "a sum over learners")
        return result.to(tensor.device)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over learners, as a new tensor of the same shape, dtype and device."""
        return self.sum(tensor).div_(self.size)

    def mean_of(self, number: float) -> float:
        return float(self.mean(torch.tensor([number], dtype=torch.float64)))

    def gather(self, thing: Any, what: str = "a gathering") -> list[Any]:
        """Every learner's `thing` (any small picklable object), by rank, on every learner. what: for stall warnings."""
        self.barrier(what)  # allgather spins, so it begins when all are there
        return self.world.allgather(thing)

    def all_or_none(self, work: Callable[[], Result], what: str) -> Result:
        """What `work` gives on this learner. Raises, on all learners, the first UserError that it raises on any."""
        made = _attempt(work)
        for problem in self.gather(made if isinstance(made, UserError) else None, what):
            if problem is not None:
                raise problem
        return cast(Result, made)

    def by_first(self, work: Callable[[], Result]) -> Result:
        """What `work` gives on rank 0, on every learner. Raises, on all, the UserError that it raises there."""
        outcome = self.broadcast(_attempt(work) if self.rank == 0 else None)
        if isinstance(outcome, UserError):
            raise outcome
        return cast(Result, outcome)

    def broadcast(self, thing: Any, root: int = 0) -> Any:
        """The root's `thing` (any small picklable object), on every learner."""
        self.barrier("a broadcast")
        return self.world.bcast(thing, root)

    def broadcast_(self, tensor: torch.Tensor, root: int = 0) -> None:
        """Overwrite `tensor` with the root's values, on every learner."""
        host = tensor.detach().cpu().contiguous()
        for part in host.view(-1).view(torch.uint8).split(BROADCAST_BYTES):
            self.wait(self.world.Ibcast(part.numpy(), root), "a broadcast")
        tensor.detach().copy_(host)


def _attempt(work: Callable[[], Result]) -> Result | UserError:
    """What `work` gives, or the UserError that it raises."""
    try:
        return work()
    except UserError as error:
        return error


def _in_place() -> Any:
    from mpi4py import MPI

    return MPI.IN_PLACE


@functools.lru_cache(maxsize=1)
def start() -> Learners:
    """Start MPI (thread level multiple) if it is not started, and return this job's learners; the same object every
    time.

    Also sees to it that an exception on one learner ends the whole job: without that, a learner that leaves by an
    exception waits in MPI_Finalize for the others, and they wait for it.
    """
    if processes.environment_local_size() > len(os.sched_getaffinity(0)):
        # Collectives of Open MPI spin unless told otherwise; it decides by the slots it was promised, not by the cores
        # there.
        os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")
    # Without an InfiniBand device Open MPI 5 reports for every window that UCX is not used; that is no error.
    os.environ.setdefault("OMPI_MCA_osc_ucx_verbose", "-1")
    from mpi4py import MPI

    if processes.is_launched():
        processes.end_with_parent()  # its launcher: a learner that computes or is stopped would live on without it
    world = MPI.COMM_WORLD.Dup()
    node = cast("MPI.Intracomm", world.Split_type(MPI.COMM_TYPE_SHARED, key=world.rank))
    sys.excepthook = _abort_on_exception
    atexit.register(_flush_output)
    return describe(world, node)


def describe(world: MPI.Intracomm, node: MPI.Intracomm, stall_timeout: float = STALL_TIMEOUT) -> Learners:
    """The learners of `world`, of which those in `node` (a split of it) share memory. Collective."""
    from mpi4py import MPI

    leaders = world.allgather(node.bcast(world.rank, root=0))
    number = {leader: index for index, leader in enumerate(dict.fromkeys(leaders))}
    hosts = world.allgather(MPI.Get_processor_name())
    return Learners(world, node, tuple(number[leader] for leader in leaders), tuple(hosts), stall_timeout)


def abort(reason: str) -> None:
    """End the whole job at once with exit status 1, on all hosts, after one line that names this learner."""
    from mpi4py import MPI

    print(f"horovod_dpsgd: learner {MPI.COMM_WORLD.rank} ends the job: {reason}", file=sys.stderr)
    _flush_output()
    time.sleep(LAST_WORDS)  # MPICH's launcher ends without reading what learners have just written
    MPI.COMM_WORLD.Abort(1)


def _abort_on_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    traceback.print_exception(kind, error, trace)
    abort(f"{kind.__name__}: {error}")


def _flush_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def use_threads(learners: Learners) -> int:
    """Give this learner its share of the cores it may run on (at least one); return the number of threads."""
    cores = frozenset(os.sched_getaffinity(0))
    # Some launchers bind each learner to cores of its own, others let all of a node's learners share what there is.
    sharers = learners.node.allgather(cores).count(cores)
    threads = max(1, len(cores) // sharers)
    torch.set_num_threads(threads)
    return threads


def use_device(learners: Learners, device: str) -> None:
    """For "cuda" make this learner's GPU PyTorch's current one: those that a process sees are dealt out by rank on the
    node. For "cpu" there is nothing to do.

    Where the launcher shows each process one GPU of its own, that is it; where there are fewer GPUs than learners, they
    share.
    """
    if device == "cuda":
        torch.cuda.set_device(learners.local_rank % torch.cuda.device_count())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch, the same on all learners: they must build the same model."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_for(purpose: str, seed: int, *path: int) -> int:
    """A seed for a random stream of its own, for instance ("noise", seed, rank): the same on every machine and run."""
    key = (zlib.crc32(purpose.encode()), *path)
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def generator(purpose: str, seed: int, *path: int) -> torch.Generator:
    """The random stream that `seed_for` names."""
    return torch.Generator().manual_seed(seed_for(purpose, seed, *path))
