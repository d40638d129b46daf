"""Fair timing: contenders take turns, and all learners start together.

Contenders run A B C A B C ..., so that what disturbs the machine disturbs all of them alike; the ratio of two is taken
within each turn, and the median over the turns is reported. A turn of n learners lasts until the last one is done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_dpsgd import learners as learners_module
from horovod_dpsgd.learners import Learners

LEAST_TURNS = 3  # whatever time they take
LEAD = 1e-3  # seconds for each learner between agreeing on a start and starting: until the sleeping have heard of it

Contender = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Seconds a call, [learners, turns]."""

    each: np.ndarray

    @property
    def slowest(self) -> np.ndarray:
        """[turns]: until the last learner was done."""
        return self.each.max(axis=0)

    @property
    def median(self) -> float:
        return float(np.median(self.slowest))

    def ratio_to(self, other: Times) -> float:
        """The median over the turns of this one's time over the other's."""
        return float(np.median(self.slowest / other.slowest))

    def row(self, floor: Times | None = None) -> dict[str, Any]:
        """What a line of output holds: median and quartiles of the seconds, and of the ratio to the floor."""
        row = {"seconds": self.median, "seconds_quartiles": _quartiles(self.slowest), "turns": len(self.slowest)}
        if floor is not None:
            ratios = self.slowest / floor.slowest
            row |= {"ratio": float(np.median(ratios)), "ratio_quartiles": _quartiles(ratios)}
        return row


def _quartiles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.percentile(values, [25, 75])]


class Stopwatch:
    """Times contenders in turns: `turns` of them, or fewer (at least three) once `budget` seconds are spent.

    Making one, and comparing, is collective.
    """

    def __init__(self, learners: Learners, turns: int = 9, budget: float = 60.0) -> None:
        self.learners = learners
        self.turns = turns
        self.budget = budget
        self.one_clock = on_one_machine(learners)

    def compare(self, contenders: Mapping[str, Contender], calls: int = 1, warm_up: int = 2) -> dict[str, Times]:
        """Seconds a call of each contender; a turn of each is `calls` calls. `warm_up` calls go before, untimed."""
        for contender in contenders.values():
            self.once(contender, warm_up)
        turns: list[list[float]] = []
        start = time.perf_counter()
        while len(turns) < self.turns and not (len(turns) >= LEAST_TURNS and self._spent(start)):
            turns.append([self.once(contender, calls) for contender in contenders.values()])
        everyone = np.array(self.learners.gather(turns))
        return {name: Times(everyone[:, :, column]) for column, name in enumerate(contenders)}

    def once(self, contender: Contender, calls: int) -> float:
        """Seconds a call, on this learner."""
        start = self.start_together()
        for _ in range(calls):
            contender()
        return (time.perf_counter() - start) / max(1, calls)

    def start_together(self) -> float:
        """The moment at which all learners start. A barrier alone would let the last one out up to 1 ms late."""
        self.learners.barrier("the start of a turn")
        if self.learners.size == 1 or not self.one_clock:
            return time.perf_counter()
        # CLOCK_MONOTONIC, which is one for the machine
        start: float = self.learners.broadcast(time.perf_counter() + LEAD * (2 + self.learners.size))
        time.sleep(max(0.0, start - time.perf_counter()))
        return start

    def _spent(self, start: float) -> bool:
        return bool(self.learners.broadcast(time.perf_counter() - start > self.budget))


def on_one_machine(learners: Learners) -> bool:
    """Whether all learners run under one kernel, be it on several emulated hosts. Collective."""
    boots = learners.gather(Path("/proc/sys/kernel/random/boot_id").read_text())
    return len(set(boots)) == 1


def use_cores(learners: Learners) -> int:
    """Give each learner its share of the cores; return its number of threads. Collective.

    Emulated hosts each see all cores of the one machine: there a learner is bound to its part of them, with all its
    threads, those to come included: its progress engine, for instance.
    """
    if learners.nodes > 1 and on_one_machine(learners):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))  # the launcher may have bound both "hosts" to one core
        cores = sorted(os.sched_getaffinity(0))
        first, end = (len(cores) * k // learners.size for k in (learners.rank, learners.rank + 1))
        for thread in os.listdir("/proc/self/task"):  # MPI may have started some already
            os.sched_setaffinity(int(thread), cores[first : max(first + 1, end)])
    return learners_module.use_threads(learners)


def crowded(learners: Learners) -> bool:
    """Whether learners outnumber cores, so that one that spins takes the core of one that works. Collective."""
    cores = len(frozenset().union(*learners.node.allgather(os.sched_getaffinity(0))))
    return bool(max(learners.gather(learners.local_size - cores)) > 0)


def random_like_weights(numel: int, seed: int = 0) -> torch.Tensor:
    """float32 [numel], every page touched."""
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed)).mul_(0.01)
