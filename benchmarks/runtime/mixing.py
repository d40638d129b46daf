"""How fast learners agree, for each topology and any number of learners.

Three numbers for mixing matrices T_t of n learners:

* contraction: by what factor a mixing step shrinks the variance between learners, on average and in the direction in
  which it shrinks least: the second largest eigenvalue of E[T'T]. The spectral gap is 1 - sqrt(contraction).
* spread: where every learner's update carries independent noise of variance s^2 and learners do nothing but mix it,
  the variance between them settles at `spread` x s^2: the mean over learners of |w_j - w_a|^2, in one coordinate.
* the consensus distance over that of `complete` is the square root of their spreads' ratio.

All are closed forms here, where there is one: of matrices with renamed learners all eigenvalues but the first are
equal, a ring's are 1/3 + 2/3 cos(2 pi k/n), and a hypercube's dimensions each halve what is left. So 4,096 learners
take no 4,096 x 4,096 matrix. `simulated_spread` is the check: it mixes noise by the topology's own rows.
"""

from __future__ import annotations

import math

import numpy as np

from horovod_dpsgd import topology as topologies
from horovod_dpsgd.topology import Complete, Exponential, Hierarchical, Matching, RandomRing, Ring, Topology

EXACT_UP_TO = 256  # learners, for which matrices are made where no closed form is known


def contraction(name: str, n: int, per_node: int = 1) -> float:
    """The second largest eigenvalue of E[T'T]; 0 for one learner. per_node: of `hierarchical`, must divide n.

    Raises ValueError for a topology that is not known, and where neither a closed form nor a small matrix will do.
    """
    if n == 1 or name == Complete.name:
        return 0.0
    if name == Matching.name:
        diagonal = 0.5 if n % 2 == 0 else (n + 1) / (2 * n)  # of E[T'T]; the other entries share the rest of each row
        return diagonal - (1 - diagonal) / (n - 1)
    if name == RandomRing.name:
        return contraction(Matching.name, n) if n == 2 else 1 / 3 - (2 / 3) / (n - 1)
    if name == Ring.name:
        return 0.0 if n == 2 else float(np.max(np.square(_ring_eigenvalues(n)[1:])))
    if name == Exponential.name and n & (n - 1) == 0:
        return 1 - 1 / math.log2(n)  # one dimension's differences go at a step, and there are log2(n)
    if name == Hierarchical.name and n % per_node == 0:
        return contraction(Matching.name, n // per_node)  # differences inside a node go at once
    return _made(name, n, per_node).consensus_contraction()


def spectral_gap(name: str, n: int, per_node: int = 1) -> float:
    """1 - sqrt(contraction): of one fixed matrix, 1 minus its second eigenvalue."""
    return 1 - math.sqrt(contraction(name, n, per_node))


def spread(name: str, n: int, per_node: int = 1) -> float:
    """The variance between learners over that of one update's noise, once it has settled; 0 for one learner.

    A learner's own last update is not mixed yet, and counts 1 - 1/n whatever the topology.
    """
    unmixed = 1 - 1 / n
    if n == 1 or name == Complete.name:
        return unmixed
    if name in (Matching.name, RandomRing.name):
        return unmixed / (1 - contraction(name, n))
    if name == Ring.name:
        if n == 2:
            return unmixed
        return float(np.sum(1 / (1 - np.square(_ring_eigenvalues(n)[1:])))) / n
    if name == Exponential.name and n & (n - 1) == 0:
        return sum(2.0**-age - 1 / n for age in range(n.bit_length() - 1))  # a step's noise is halved until it is gone
    if name == Hierarchical.name and n % per_node == 0:
        nodes = n // per_node
        left = contraction(Matching.name, nodes)
        return unmixed + (1 - 1 / nodes) / per_node * left / (1 - left)
    return simulated_spread(_made(name, n, per_node))


def _ring_eigenvalues(n: int) -> np.ndarray:
    """Of a ring of three or more with weights of a third, [n]."""
    return (1 + 2 * np.cos(2 * np.pi * np.arange(n) / n)) / 3


def _made(name: str, n: int, per_node: int) -> Topology:
    if n > EXACT_UP_TO:
        raise ValueError(f"no closed form for {name} of {n} learners: take a power of two, or {EXACT_UP_TO} or fewer")
    return topologies.create(name, n, node_of=[rank // per_node for rank in range(n)])


def simulated_spread(topology: Topology, steps: int = 200, coordinates: int = 64, seed: int = 0) -> float:
    """`spread`, by mixing noise in so many coordinates by the topology's rows; the mean over the second half of steps.

    Only the weights a row has are looked at: n x partners of them a step.
    """
    rng = np.random.default_rng(seed)
    n = topology.size
    weights: np.ndarray = np.zeros((n, coordinates))
    seen = []
    for step in range(steps):
        rows = [topology.row(step, rank) for rank in range(n)]
        reader = np.repeat(np.arange(n), [len(row) for row in rows])
        read = np.fromiter((k for row in rows for k in row), dtype=int, count=len(reader))
        share = np.fromiter((each for row in rows for each in row.values()), dtype=float, count=len(reader))
        first = np.searchsorted(reader, np.arange(n))
        weights = np.add.reduceat(share[:, None] * weights[read], first, axis=0)
        weights += rng.standard_normal(weights.shape)
        if step >= steps // 2:
            seen.append(float(np.mean(np.square(weights - weights.mean(axis=0)))))
    return float(np.mean(seen))
