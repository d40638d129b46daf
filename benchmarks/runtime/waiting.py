"""How long learners wait for each other when their steps take random times.

A step computes for C (1 + sigma E), with E exponential of mean 1: `--jitter sigma` of the training loop.

* SSGD waits for the slowest of n at every step: C (1 + sigma H_n), with H_n = 1 + 1/2 + ... + 1/n, for the expected
  maximum of n exponentials is H_n.
* AD-PSGD waits for nobody: C (1 + sigma).
* DPSGD waits only for what its partners had ready a step ago, and only if they are more than a step behind. Then the
  times at which steps end follow a recursion in (max, +), which has no closed form: it is simulated, event by event,
  and bounded from above by how fast the earliest of all chains of waits can grow (`matching_bound`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from horovod_dpsgd.topology import Complete, Exponential, Hierarchical, Matching, RandomRing, Ring

LEAST_STEPS, LEARNERS_STEPS = 600, 20_000  # to simulate: of all, and of all learners together


def harmonic(n: int) -> float:
    """1 + 1/2 + ... + 1/n."""
    return float(np.sum(1 / np.arange(1, n + 1)))


def slowest_of(n: int, sigma: float) -> float:
    """The mean over steps of the longest of n computations of mean 1 + sigma: 1 + sigma H_n."""
    return 1 + sigma * harmonic(n)


def matching_bound(sigma: float) -> float:
    """What DPSGD's mean step, in times of C and without communication, stays below for any number of learners.

    The end of a learner's t-th step is the longest of all chains of t links: each goes on with the same learner, which
    adds a computation 1 + sigma E, or to one of two others (the partner whose weights are read, and the one that reads
    what is to be written over), which adds nothing. So its mean is at most min over theta of log(E exp(theta (1 + sigma
    E)) + 2) / theta, the speed of a branching random walk (Biggins 1976); E exp(theta sigma E) = 1 / (1 - theta sigma).
    """
    if sigma == 0:
        return 1.0
    theta = np.linspace(0, 1 / sigma, 20_000)[1:-1]
    # log(exp(theta) / (1 - theta sigma) + 2), where exp(theta) may be too large to be written down
    speeds = np.logaddexp(theta - np.log1p(-theta * sigma), math.log(2)) / theta
    return float(speeds.min())


@dataclass(frozen=True)
class Times:
    """Of a step, in seconds. transfer: until weights have arrived that both sides have begun to exchange; mix: what
    comes after waiting and computing."""

    compute: float
    transfer: float = 0.0
    mix: float = 0.0


class Waits(ABC):
    """For whom learners of a topology wait at step t: the ends of the last step that a step's end cannot precede."""

    def __init__(self, n: int, per_node: int, rng: np.random.Generator) -> None:
        self.n = n
        self.per_node = per_node
        self.rng = rng

    @abstractmethod
    def latest(self, ends: np.ndarray, step: int) -> np.ndarray:
        """[n]: for every learner the latest of the last steps' `ends` [n] among those it waits for."""


class MatchingWaits(Waits):
    """This step's partner, whose weights are read, and the last one's, which reads what is to be written over."""

    before: np.ndarray | None = None

    def partners(self, step: int) -> np.ndarray:
        order = self.rng.permutation(self.n)
        partner = np.arange(self.n)
        even = self.n - self.n % 2
        partner[order[0:even:2]], partner[order[1:even:2]] = order[1:even:2], order[0:even:2]
        return partner

    def latest(self, ends: np.ndarray, step: int) -> np.ndarray:
        partner = self.partners(step)
        latest = ends[partner]
        if self.before is not None:
            latest = np.maximum(latest, ends[self.before])
        self.before = partner
        return latest


class ExponentialWaits(MatchingWaits):
    def partners(self, step: int) -> np.ndarray:
        ranks = np.arange(self.n)
        other = ranks ^ (1 << step % max(1, (self.n - 1).bit_length()))
        return np.where(other < self.n, other, ranks)


class RingWaits(Waits):
    def latest(self, ends: np.ndarray, step: int) -> np.ndarray:
        return np.maximum(np.roll(ends, 1), np.roll(ends, -1))


class RandomRingWaits(Waits):
    before: np.ndarray | None = None

    def latest(self, ends: np.ndarray, step: int) -> np.ndarray:
        order = self.rng.permutation(self.n)
        latest = _neighbours(ends, order)
        if self.before is not None:
            latest = np.maximum(latest, _neighbours(ends, self.before))
        self.before = order
        return latest


def _neighbours(ends: np.ndarray, order: np.ndarray) -> np.ndarray:
    latest = np.empty_like(ends)
    latest[order] = np.maximum(np.roll(ends[order], 1), np.roll(ends[order], -1))
    return latest


class CompleteWaits(Waits):
    def latest(self, ends: np.ndarray, step: int) -> np.ndarray:
        return np.full(self.n, ends.max())


class HierarchicalWaits(Waits):
    """All of one's node, and of the node it is matched with."""

    def __init__(self, n: int, per_node: int, rng: np.random.Generator) -> None:
        super().__init__(n, per_node, rng)
        self.node = np.arange(n) // per_node
        self.first = np.arange(0, n, per_node)
        self.matching = MatchingWaits(len(self.first), 1, rng)

    def latest(self, ends: np.ndarray, step: int) -> np.ndarray:
        by_node = np.maximum.reduceat(ends, self.first)
        return np.maximum(by_node, self.matching.latest(by_node, step))[self.node]


WAITS: dict[str, type[Waits]] = {
    Matching.name: MatchingWaits,
    Ring.name: RingWaits,
    RandomRing.name: RandomRingWaits,
    Complete.name: CompleteWaits,
    Exponential.name: ExponentialWaits,
    Hierarchical.name: HierarchicalWaits,
}


def ends_of_steps(waits: Waits, times: Times, computing: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The moments [n] at which every learner ends step 0, 1, 2, ... of DPSGD, if step t computes as `computing` says.

    computing: for every step an array [n], in times of `times.compute`. All learners begin at 0.
    """
    ends = np.zeros(waits.n)
    for step, factors in enumerate(computing):
        latest = waits.latest(ends, step)
        arrived = np.maximum(ends, latest) + times.transfer
        ends = np.maximum(np.maximum(ends + times.compute * factors, latest), arrived) + times.mix
        yield ends


def exponential_jitter(n: int, sigma: float, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """1 + sigma E for every learner, step after step, without end."""
    while True:
        yield 1 + sigma * rng.exponential(size=n)


def mean_step(
    topology: str, n: int, sigma: float, times: Times, per_node: int = 1, steps: int | None = None, seed: int = 0
) -> float:
    """DPSGD's mean seconds a step with jitter sigma, over the second half of `steps` simulated ones.

    steps: more of them by default where there are few learners to take the mean of.
    """
    steps = steps or max(LEAST_STEPS, LEARNERS_STEPS // n)
    rng = np.random.default_rng((seed, n))
    waits = WAITS[topology](n, per_node, rng)
    first = np.zeros(n)
    for step, ends in enumerate(ends_of_steps(waits, times, exponential_jitter(n, sigma, rng))):
        if step + 1 == steps // 2:
            first = ends
        if step + 1 == steps:
            return float(np.mean(ends - first)) / (steps - steps // 2)
    raise AssertionError("exponential_jitter has no end")
