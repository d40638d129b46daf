"""Between nodes: what drives a message while its sender computes, and what does that cost the sender?

    mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/progress.py
    python -m benchmarks.two_hosts --rate 1gbit \\
        mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/progress.py
    MPICH_ASYNC_PROGRESS=1 mpirun ... python benchmarks/comm/progress.py         # under MPICH: by its own thread

Learner 0 receives 44 MB of learner 1, again and again, while learner 1, which has begun to send them all, multiplies
matrices with all its threads and never calls MPI. Taking turns: nothing drives progress; the progress engine of this
library does; then, since it cannot be stopped, Horovod's background thread. MPICH's own thread is on from the start or
not at all, so it has a run of its own.

The processor time of whatever drives progress is that of learner 1's whole process while its main thread sleeps.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from benchmarks.comm import arguments, measure
from benchmarks.comm.output import Output, duration
from horovod_dpsgd import learners
from horovod_dpsgd.gossip.progress import ProgressEngine
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.waiting import wait_until

ORIGIN, TARGET = 0, 1
OFFERED = 48  # messages: more than come in a measurement
Done = Callable[[], bool]
MATRIX = 256  # rows: three of them fit in the second-level cache
HEADER = ("progress by", "message", "MB/s", "CPU idle", "CPU serving", "slow-down idle", "slow-down serving")


class Driver:
    """What drives progress: here nothing. Starting and stopping are collective."""

    name = "nothing"

    def __init__(self, us: Learners, buffer: torch.Tensor) -> None:
        self.us, self.buffer = us, buffer

    def start(self) -> None:
        return None

    def stop(self) -> None:
        return None

    def offer(self, message: int) -> Done:
        """Start to send; the answer tells whether it has ended."""
        return self.us.world.Isend(self.buffer.numpy(), ORIGIN, message).Test

    def ask(self, message: int) -> Done:
        """Start to receive."""
        return self.us.world.Irecv(self.buffer.numpy(), TARGET, message).Test

    def read(self, message: int) -> None:
        wait_until(self.ask(message), lambda: "waiting for a message", self.us.stall_timeout)


class Engine(Driver):
    name = "progress engine"

    def start(self) -> None:
        self.engine = ProgressEngine(self.us)

    def stop(self) -> None:
        self.engine.close()

    def offer(self, message: int) -> Done:
        return self.engine.send(self.buffer, ORIGIN, message).done

    def ask(self, message: int) -> Done:
        return self.engine.receive(self.buffer, TARGET, message).done


class HorovodThread(Driver):
    """Its thread calls MPI every millisecond; it never stops."""

    name = "Horovod's thread"

    def start(self) -> None:
        import horovod.torch as hvd

        if not hvd.is_initialized():
            hvd.init(comm=self.us.world)


class LibraryThread(Driver):
    name = "MPICH_ASYNC_PROGRESS=1"


def main() -> None:
    parser = arguments.parser(__doc__, turns=5)
    parser.add_argument("--size", type=arguments.weights_size, default="44MB", help="of a read (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=arguments.some_seconds, default=1.0, help="of each measurement (default: %(default)s)"
    )
    given = parser.parse_args()
    us = learners.start()
    arguments.need_two_nodes(us)
    output = Output(given, "progress", us)
    measure.use_cores(us)
    bench = Bench(us, given.seconds, given.size)
    buffer = torch.zeros(given.size // 4)
    found: dict[str, list[dict[str, float]]] = {}
    for drivers in _groups(output):
        for _ in range(given.turns):
            for driver in drivers:
                found.setdefault(driver.name, []).append(bench.measure(driver(us, buffer)))
    _report(found, given.size, output)
    output.close()


def _groups(output: Output) -> list[list[type[Driver]]]:
    """The drivers that take turns, one group after the other."""
    if os.environ.get("MPICH_ASYNC_PROGRESS", "0") != "0":
        return [[LibraryThread]]
    if importlib.util.find_spec("horovod"):
        return [[Driver, Engine], [HorovodThread]]
    output.skip(HorovodThread.name, "Horovod is not installed")
    return [[Driver, Engine]]


class Bench:
    """Four measurements of a driver, of `seconds` each: learner 1 sleeps or computes, learner 0 sleeps or receives."""

    def __init__(self, us: Learners, seconds: float, nbytes: int) -> None:
        self.us, self.seconds, self.nbytes = us, seconds, nbytes
        self.stopwatch = measure.Stopwatch(us)
        self.matrices = [torch.randn(MATRIX, MATRIX) for _ in range(2)]
        self.product = torch.empty(MATRIX, MATRIX)

    def measure(self, driver: Driver) -> dict[str, float]:
        """What both learners found, on both. Collective."""
        driver.start()
        sleep, compute = self._sleep, self._compute
        self._together(sleep, compute)  # warms up
        mine = {
            "idle": self._together(sleep, sleep),
            "serving": self._serving(driver, sleep),
            "speed": self._together(sleep, compute),
            "speed_serving": self._serving(driver, compute),
        }
        driver.stop()
        origin, target = self.us.gather(mine)
        return target | {
            "read_seconds": origin["speed_serving"],
            "bytes_per_second": self.nbytes / origin["serving"],
        }

    def _together(self, of_origin: Callable[[], float], of_target: Callable[[], float]) -> float:
        self.stopwatch.start_together()
        value = (of_origin if self.us.rank == ORIGIN else of_target)()
        self.us.barrier("the end of a measurement")
        return value

    def _serving(self, driver: Driver, of_target: Callable[[], float]) -> float:
        """Learner 0 receives, as many of the messages as come in the time; the others are received afterwards."""
        received: list[float] = []
        sent = [driver.offer(message) for message in range(OFFERED)] if self.us.rank == TARGET else []
        value = self._together(lambda: self._read(driver, received), of_target)
        for message in range(len(received), OFFERED if self.us.rank == ORIGIN else 0):
            driver.read(message)
        for done in sent:
            wait_until(done, lambda: "waiting for the receiver", self.us.stall_timeout)
        self.us.barrier("the end of the messages")
        return value

    def _sleep(self) -> float:
        """The share of a core that this process took meanwhile."""
        before = time.process_time()
        time.sleep(self.seconds)
        return (time.process_time() - before) / self.seconds

    def _compute(self) -> float:
        """Matrix products a second."""
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < self.seconds:
            torch.mm(*self.matrices, out=self.product)
            products += 1
        return products / (time.perf_counter() - start)

    def _read(self, driver: Driver, seconds: list[float]) -> float:
        """Seconds of a message: the median of those that fit, at least one; each goes into `seconds`."""
        start = time.perf_counter()
        while time.perf_counter() - start < self.seconds and len(seconds) < OFFERED:
            begun = time.perf_counter()
            driver.read(len(seconds))
            seconds.append(time.perf_counter() - begun)
        return float(np.median(seconds))


def _report(found: dict[str, list[dict[str, float]]], nbytes: int, output: Output) -> None:
    medians = {name: _medians(turns) for name, turns in found.items()}
    alone = medians.get(Driver.name)
    rows = []
    for name, values in medians.items():
        slower = {f"slow_down_{key}": alone[key] / values[key] if alone else None for key in ("speed", "speed_serving")}
        output.row(progress=name, bytes=nbytes, turns=len(found[name]), **values, **slower, each=found[name])
        rows.append([name, *_cells(values), *("-" if each is None else f"{each:.2f}" for each in slower.values())])
    output.table(HEADER, rows)


def _medians(turns: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.median([turn[key] for turn in turns])) for key in turns[0]}


def _cells(values: dict[str, float]) -> list[str]:
    return [
        duration(values["read_seconds"]),
        f"{values['bytes_per_second'] / 1e6:.0f}",
        f"{100 * values['idle']:.1f} %",
        f"{100 * values['serving']:.0f} %",
    ]


if __name__ == "__main__":
    main()
