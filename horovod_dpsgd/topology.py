"""Who mixes with whom at step t: the mixing matrix T_t of DPSGD (Lian et al. 2017; the paper's footnote 2).

Every T_t is symmetric and doubly stochastic, and is drawn from (seed, t) alone: all learners know the whole of it
without a message, who reads a learner is whom it reads, and mixing keeps the mean of the weights (eq. 3).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

DRAWN_AT_ONCE = 64  # steps' permutations, or partners


class Topology(ABC):
    """Mixing matrices T_t for `size` learners, t = 0, 1, 2, ...; n = `size` below."""

    name: str
    relabelled = False  # T_t is one matrix with its learners renamed by a random permutation
    summed = False  # weights may be summed on their way, and a sum is not to be rounded again: no compression

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise ValueError(f"a topology needs at least one learner, not {size}")
        self.size = size
        self.seed = seed

    @abstractmethod
    def row(self, step: int, rank: int) -> dict[int, float]:
        """T_t[rank, k] for every learner k with a weight, `rank` itself included; the weights add up to 1."""

    @property
    def period(self) -> int:
        """After how many steps the matrices repeat (1 for random ones: each is like any other)."""
        return 1

    def partners(self, step: int, rank: int) -> list[int]:
        """Whom learner `rank` reads, and who reads it, at `step`."""
        return [k for k in self.row(step, rank) if k != rank]

    def partner(self, step: int, rank: int) -> int | None:
        """One of the partners, drawn uniformly from (seed, step, rank); None if there is none."""
        partners = self.partners(step, rank)
        if len(partners) < 2:
            return next(iter(partners), None)
        drawn = _fractions(self.seed, rank, step // DRAWN_AT_ONCE)[step % DRAWN_AT_ONCE]
        return partners[int(drawn * len(partners))]

    def matrix(self, step: int) -> np.ndarray:
        """T_t as an array [n, n]."""
        matrix = np.zeros((self.size, self.size))
        for rank in range(self.size):
            for k, weight in self.row(step, rank).items():
                matrix[rank, k] = weight
        return matrix

    def expected_gram(self) -> np.ndarray:
        """E[T'T] over the matrices of this topology, [n, n]; exact.

        Renaming the learners at random makes all diagonal entries equal and all others equal, so the trace says it all.
        """
        n = self.size
        if self.relabelled and n > 1:
            diagonal = np.trace(self.matrix(0).T @ self.matrix(0)) / n
            other = (1 - diagonal) / (n - 1)
            return np.full((n, n), other) + (diagonal - other) * np.eye(n)
        return np.mean([self.matrix(t).T @ self.matrix(t) for t in range(self.period)], axis=0)

    def consensus_contraction(self) -> float:
        """By what factor one mixing step shrinks the variance between learners, on average and at worst.

        The second largest eigenvalue of E[T'T]: 1/2 - 1/(2(n-1)) for random matchings of even n, and the square of the
        second eigenvalue (1 + 2 cos(2 pi/n))/3 for a ring.
        """
        return second_eigenvalue(self.expected_gram())

    def spectral_gap(self) -> float:
        """1 - sqrt(consensus_contraction): 1 minus the second eigenvalue where T is one fixed matrix."""
        return 1.0 - float(np.sqrt(self.consensus_contraction()))

    def permutation(self, step: int) -> list[int]:
        """A uniformly random permutation of the learners for (seed, step)."""
        return _permutations(self.size, self.seed, step // DRAWN_AT_ONCE)[step % DRAWN_AT_ONCE]


@functools.lru_cache(maxsize=8)  # a new generator every step would cost more than the rest of a small exchange
def _permutations(size: int, seed: int, block: int) -> list[list[int]]:
    """Of the steps from DRAWN_AT_ONCE x `block` on."""
    orders = np.tile(np.arange(size), (DRAWN_AT_ONCE, 1))
    drawn: list[list[int]] = np.random.default_rng((seed, block)).permuted(orders, axis=1).tolist()
    return drawn


@functools.lru_cache(maxsize=8)
def _fractions(seed: int, rank: int, block: int) -> list[float]:
    """Uniform numbers in [0, 1) for the steps from DRAWN_AT_ONCE x `block` on, each learner's its own.

    The last word of the key is never 0, as it would be in the key of `_permutations`, which NumPy fills up with zeros.
    """
    drawn: list[float] = np.random.default_rng((seed, rank, block + 1)).random(DRAWN_AT_ONCE).tolist()
    return drawn


def second_eigenvalue(symmetric: np.ndarray) -> float:
    """The second largest absolute eigenvalue of a symmetric stochastic matrix (0 for a single learner)."""
    magnitudes = np.sort(np.abs(np.linalg.eigvalsh(symmetric)))
    return float(magnitudes[-2]) if len(magnitudes) > 1 else 0.0


class Matching(Topology):
    """A random perfect matching each step: everyone averages with one random partner (the paper, Section 4, after its
    reference 59). For odd n one learner, a random one, sits out."""

    name = "matching"
    relabelled = True

    def row(self, step: int, rank: int) -> dict[int, float]:
        order = self.permutation(step)
        other = order.index(rank) ^ 1
        return {rank: 0.5, order[other]: 0.5} if other < self.size else {rank: 1.0}


class Ring(Topology):
    """A third each for oneself, the left and the right neighbour on a fixed ring (n = 2: halves)."""

    name = "ring"

    def row(self, step: int, rank: int) -> dict[int, float]:
        return _thirds(rank, (rank - 1) % self.size, (rank + 1) % self.size)


class RandomRing(Topology):
    """The ring over a random permutation of the learners, a new one each step (Cui et al. 2021, arXiv 2110.11199)."""

    name = "random-ring"
    relabelled = True

    def row(self, step: int, rank: int) -> dict[int, float]:
        order = self.permutation(step)
        place = order.index(rank)
        return _thirds(rank, order[place - 1], order[(place + 1) % self.size])


def _thirds(rank: int, left: int, right: int) -> dict[int, float]:
    if left == right:  # one or two learners
        return {rank: 0.5, left: 0.5} if left != rank else {rank: 1.0}
    return {rank: 1 / 3, left: 1 / 3, right: 1 / 3}


class Complete(Topology):
    """Everyone averages with everyone: w_s = w_a, as in the paper's MNIST experiment (Section 2.2)."""

    name = "complete"
    summed = True

    def row(self, step: int, rank: int) -> dict[int, float]:
        return dict.fromkeys(range(self.size), 1 / self.size)


class Exponential(Topology):
    """One partner, 2^k away, k = t mod log2(n): the edges of a hypercube, one dimension a step.

    The partner is rank XOR 2^k, not rank + 2^k as in the directed one-peer graph (Ying et al. 2021): partners then read
    each other, so T_t is symmetric. For n a power of two, log2(n) steps average exactly; else learners without a
    partner sit out.
    """

    name = "exponential"

    @property
    def period(self) -> int:
        return max(1, (self.size - 1).bit_length())

    def row(self, step: int, rank: int) -> dict[int, float]:
        other = rank ^ (1 << step % self.period)
        return {rank: 0.5, other: 0.5} if other < self.size else {rank: 1.0}


class Hierarchical(Topology):
    """The mean inside each node, and each step a random matching of the nodes; two matched nodes average.

    T_t = P M_t P, with P the means inside the nodes and M_t pairs of learners, as many as the smaller node has, of the
    two nodes. So T_t is doubly stochastic also where nodes differ in size: of nodes with a and b learners the first
    moves by the share min(a, b) / 2a towards the second, one half where they are equal. An odd node keeps its own mean.
    """

    name = "hierarchical"
    summed = True

    def __init__(self, size: int, seed: int = 0, node_of: Sequence[int] = ()) -> None:
        """node_of: the number, 0 to N-1, of every learner's node; if not given, all are on one."""
        super().__init__(size, seed)
        self.node_of = tuple(node_of) or (0,) * size
        if len(self.node_of) != size or set(self.node_of) != set(range(max(self.node_of) + 1)):
            raise ValueError(f"nodes {self.node_of} are not 0 to N-1 for each of {size} learners")
        self.nodes = Matching(max(self.node_of) + 1, seed)

    def partner_node(self, step: int, node: int) -> int | None:
        """The node that `node` averages with at `step`, if it does."""
        return next(iter(self.nodes.partners(step, node)), None)

    def share_of(self, other: int, node: int) -> float:
        """The share of the mean of node `other` in what `node` holds after the two have mixed."""
        return self._weight(node, other) * self.node_of.count(other)

    def row(self, step: int, rank: int) -> dict[int, float]:
        return self._row(self.node_of[rank], self.partner_node(step, self.node_of[rank]))

    def _weight(self, node: int, other: int) -> float:
        """T_t[j,k] for j and k on two nodes that average."""
        a, b = self.node_of.count(node), self.node_of.count(other)
        return min(a, b) / (2 * a * b)

    def _row(self, node: int, other: int | None) -> dict[int, float]:
        across = 0.0 if other is None else self.share_of(other, node)
        weights = {node: (1 - across) / self.node_of.count(node)}
        if other is not None:
            weights[other] = self._weight(node, other)
        return {k: weights[its] for k, its in enumerate(self.node_of) if its in weights}

    def expected_gram(self) -> np.ndarray:
        """E[T'T], [n, n]; exact. Pairs of nodes do not overlap, so it is a sum over them by their probability."""
        count = self.nodes.size
        matched = 1 / (count - 1 + count % 2) if count > 1 else 0.0  # the probability of any one pair of nodes
        pairs = [matched * self._gram(a, b) for a in range(count) for b in range(count) if a != b]
        alone = [(1 - matched * (count - 1)) * self._gram(node, None) for node in range(count)]
        return np.sum(pairs + alone, axis=0)

    def _gram(self, node: int, other: int | None) -> np.ndarray:
        """What the rows of one node, matched with another, add to T'T."""
        row = np.zeros(self.size)
        for k, weight in self._row(node, other).items():
            row[k] = weight
        return self.node_of.count(node) * np.outer(row, row)


TOPOLOGIES: dict[str, type[Topology]] = {
    topology.name: topology for topology in (Matching, Ring, RandomRing, Complete, Exponential, Hierarchical)
}


def create(name: str, size: int, seed: int = 0, node_of: Sequence[int] = ()) -> Topology:
    """The topology called `name` ("matching", "ring", ...); node_of: every learner's node, for `hierarchical`.

    Raises ValueError, naming all, if there is none.
    """
    if name not in TOPOLOGIES:
        raise ValueError(f"unknown topology {name!r}: choose one of {', '.join(TOPOLOGIES)}")
    if name == Hierarchical.name:
        return Hierarchical(size, seed, node_of)
    return TOPOLOGIES[name](size, seed)
