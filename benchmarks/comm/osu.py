"""What osu_get_bw.py and osu_get_latency.py share: windows, options, and the output that OSU's users know."""

from __future__ import annotations

import argparse
import time
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from benchmarks.comm import arguments
from benchmarks.comm.output import Output
from horovod_dpsgd import learners
from horovod_dpsgd.command_line import bytes_of, count, count_or_none
from horovod_dpsgd.gossip import Window
from horovod_dpsgd.learners import Learners

LARGE = 8192  # bytes; above it there are fewer iterations, as in OSU's benchmarks
ORIGIN, TARGET = 0, 1


class Reads(ABC):
    """Reading from the target's memory, of `nbytes` at most, into `landing` (uint8); making one and freeing it is
    collective."""

    window: str  # how the window was made
    synchronization: str

    def __init__(self, us: Learners, nbytes: int, landing: Tensor) -> None:
        self.landing = landing
        self._make(us, nbytes)

    @abstractmethod
    def _make(self, us: Learners, nbytes: int) -> None:
        """Make the window."""

    @abstractmethod
    def start(self, nbytes: int, place: int = 0) -> None:
        """Start one read, into the landing place of that number."""

    @abstractmethod
    def finish(self) -> None:
        """Return when all that was started is there."""

    @abstractmethod
    def free(self) -> None: ...


class GossipInPlace(Reads):
    """The gossip window on one node: a partner's area is read where it is; copying it out is the whole of a read."""

    window = "horovod_dpsgd.gossip.Window, learners of one node"
    synchronization = "none (a copy from shared memory)"

    def _make(self, us: Learners, nbytes: int) -> None:
        self._window = _gossip_window(us, nbytes)
        self._area = self._window.area(TARGET, 0).view(torch.uint8)

    def start(self, nbytes: int, place: int = 0) -> None:
        self.landing[place * nbytes : (place + 1) * nbytes].copy_(self._area[:nbytes])

    def finish(self) -> None:
        return None

    def free(self) -> None:
        self._window.free()


class PlainGet(Reads):
    """What an OSU user measures."""

    window = "MPI_Win_allocate"
    synchronization = "MPI_Win_lock_all, MPI_Win_flush"

    def _make(self, us: Learners, nbytes: int) -> None:
        from mpi4py import MPI

        self._window = MPI.Win.Allocate(nbytes, 1, comm=us.world)
        self._window.tomemory()[:] = bytes([1]) * nbytes
        self._window.Lock_all()
        self._memory = self.landing.numpy()
        self._byte = MPI.BYTE

    def start(self, nbytes: int, place: int = 0) -> None:
        out = self._memory[place * nbytes : (place + 1) * nbytes]
        self._window.Get((out, nbytes, self._byte), TARGET, (0, nbytes, self._byte))

    def finish(self) -> None:
        self._window.Flush(TARGET)

    def free(self) -> None:
        self._window.Unlock_all()
        self._window.Free()


# From (reads, bytes, iterations) to the value of a line
Measurement = Callable[[Reads, int, int], float]


def main(
    description: str | None,
    test: str,
    column: str,
    measurement: Measurement,
    iterations: tuple[int, int],
    at_once: int = 1,
) -> None:
    """Measure every window, in turns, at every size, and print a block for each as OSU's benchmarks do.

    iterations: for small and for large messages; at_once: reads that are under way together.
    """
    given = _options(description, iterations).parse_args()
    us = learners.start()
    if us.size != 2:
        arguments.refuse(us, f"this measures between 2 learners, not {us.size}")
    least, most = given.message_size
    landing = torch.zeros(at_once * most, dtype=torch.uint8)
    kinds: list[Reads] = [PlainGet(us, most, landing)]
    if us.nodes == 1:
        kinds.insert(0, GossipInPlace(us, most, landing))
    output = Output(given, f"osu_{test.replace(' ', '_').lower()}", us)
    measured = {}
    for nbytes in _powers_of_two(least, most):
        count = given.iterations or iterations[nbytes > LARGE]
        turns = [_turn(us, kinds, nbytes, count, given.warmup, measurement) for _ in range(given.turns)]
        measured[nbytes] = np.median(turns, axis=0)
    for number, kind in enumerate(kinds):
        output.say(_header(test, kind, column))
        for nbytes, values in measured.items():
            output.say(f"{nbytes:<10d}{values[number]:20.2f}")
            output.row(test=test, window=kind.window, bytes=nbytes, value=float(values[number]), unit=column)
        output.say("")
        kind.free()
    output.close()


def _turn(
    us: Learners, kinds: list[Reads], nbytes: int, count: int, warmup: int, measurement: Measurement
) -> list[float]:
    """One value for each window. The target waits inside MPI_Barrier, as OSU's does: there it answers."""
    values = []
    for kind in kinds:
        if us.rank == ORIGIN:
            measurement(kind, nbytes, warmup)
            values.append(measurement(kind, nbytes, count))
        us.world.Barrier()
    return values if us.rank == ORIGIN else [0.0] * len(kinds)


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _options(description: str | None, iterations: tuple[int, int]) -> argparse.ArgumentParser:
    parser = arguments.parser(description, turns=5)
    parser.add_argument(
        "-m", "--message-size", type=_range, default="1:4M", metavar="MIN:MAX", help="default: %(default)s"
    )
    parser.add_argument(
        "-i",
        "--iterations",
        type=count,
        help=f"default: {iterations[0]}, above {LARGE} bytes {iterations[1]}",
    )
    parser.add_argument("-x", "--warmup", type=count_or_none, default=10, help="not timed (default: %(default)s)")
    return parser


def _range(text: str) -> tuple[int, int]:
    """MIN:MAX, with a power of two between them."""
    least, colon, most = text.partition(":")
    if not colon or not _powers_of_two(bytes_of(least), bytes_of(most)):
        raise argparse.ArgumentTypeError(f"{text!r} is no MIN:MAX with a power of two between, such as 1:4M")
    return bytes_of(least), bytes_of(most)


def _header(test: str, kind: Reads, column: str) -> str:
    return "\n".join(
        [
            f"# horovod_dpsgd MPI_Get {test} Test",
            f"# Window creation: {kind.window}",
            f"# Synchronization: {kind.synchronization}",
            f"{'# Size':<10}{column:>20}",
        ]
    )


def _gossip_window(us: Learners, nbytes: int) -> Window:
    window = Window(us, lambda _: [-(-nbytes // 4)], torch.float32)
    window.areas[0].fill_(1.0)
    return window


def _powers_of_two(least: int, most: int) -> list[int]:
    return [2**k for k in range(most.bit_length()) if least <= 2**k]
