"""Seconds of a training step by each algorithm, on a cluster that is described by a few numbers.

With C the seconds of a step without communication, M the model's bytes, and T what is moved between nodes meanwhile:

    DPSGD      max(C + d, T) + mix       T behind forward and backward, mix (three passes over memory) behind nothing
    AD-PSGD    C + d + mix               whoever waits for the network skips an average instead
    SSGD       b C + max((1 - o) A, A - b C backward)     the all-reduce A behind the backward pass, as far as it goes

d: what driving the messages takes from the computing core, if it has no other; b: what Horovod's thread does to
computation; o: how much of an all-reduce runs beside it. Jitter and its waiting: waiting.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks.runtime import waiting
from benchmarks.runtime.costs import Cost, all_reduce_seconds, link_loads
from benchmarks.runtime.waiting import Times
from horovod_dpsgd.topology import TOPOLOGIES, Complete, Hierarchical, Matching, Ring

BACKWARD = 2 / 3  # of a step's computation: a backward pass takes twice the operations of a forward pass
NAMES = {"ssgd": "SSGD", "dpsgd": "DPSGD", "adpsgd": "AD-PSGD"}


@dataclass(frozen=True)
class Shared:
    """Work that all learners of a node do at once, as a cost for those with a core each; others take turns.

    With r learners a core the start-up costs r^exponent times as much: a learner that waits also waits for its core.
    """

    cost: Cost
    exponent: float = 1.0

    def crowded(self, learners: int, cores: int) -> Cost:
        each = max(1.0, learners / cores)
        return Cost(self.cost.start * each**self.exponent, self.cost.per_byte * each)


@dataclass(frozen=True)
class Cluster:
    """per_node, cores: learners of a node, and the cores (or GPUs) they compute on.

    mixing: an exchange inside a node, averaging included (`hierarchical` is taken to cost as much: a learner averages
    its part of the weights for all of the node, and copies the whole). node_all_reduce: an all-reduce among a node's
    learners, in the messages and bytes of `node_shape`. link: of a node to the others, both ways at once, as this
    library's exchange uses it; link_all_reduce: the same as an all-reduce does. agreement: seconds of an all-reduce
    before it begins, in which Horovod's threads find that all learners have the gradient. driving: seconds of
    computation lost for each byte that a learner moves between nodes. background: how many times as long computation
    takes beside Horovod's thread. overlap: the share of an all-reduce that the backward pass can hide.
    """

    per_node: int
    cores: int
    mixing: Shared
    node_all_reduce: Shared
    node_shape: str
    link: Cost
    link_all_reduce: Cost
    agreement: float = 0.0
    driving: float = 0.0
    background: float = 1.0
    overlap: float = 1.0

    def mix_seconds(self, nbytes: float, n: int) -> float:
        return self.mixing.crowded(min(n, self.per_node), self.cores).seconds(nbytes)

    def all_reduce_seconds(self, nbytes: float, n: int, shape: str) -> float:
        """Inside a node by what was measured there; between nodes `shape`, whose messages all pay the link's start."""
        local = min(n, self.per_node)
        cost = self.node_all_reduce.crowded(local, self.cores)
        inside = all_reduce_seconds(cost, nbytes, local, self.node_shape)
        if n <= self.per_node:
            return inside
        return max(inside, self.agreement + all_reduce_seconds(self.link_all_reduce, nbytes, n, shape))

    def transfers(self, topology: str, nbytes: float, n: int) -> list[float]:
        """Seconds for which weights are on their way between nodes: one number a phase of the topology."""
        if topology == Complete.name:  # its all-reduce, of weights, runs beside the whole step
            return [self.all_reduce_seconds(nbytes, n, "ring")] if n > self.per_node else [0.0]
        return [self.link.seconds(load * nbytes) if load else 0.0 for load in link_loads(topology, n, self.per_node)]

    def driving_seconds(self, topology: str, nbytes: float, n: int) -> float:
        """Of a learner's computation, a step; of the phases of a topology the mean."""
        loads = link_loads(topology, n, self.per_node)
        return self.driving * nbytes * sum(loads) / len(loads) / min(n, self.per_node)


@dataclass(frozen=True)
class Way:
    """An algorithm and how it communicates: an all-reduce's shape, or a topology."""

    algo: str
    by: str

    @property
    def name(self) -> str:
        """As it stands in tables: "SSGD, ring all-reduce", "DPSGD, matching"."""
        return f"{NAMES[self.algo]}, {self.by}" + (" all-reduce" if self.algo == "ssgd" else "")


WAYS = (
    Way("ssgd", "ring"),
    Way("ssgd", "tree"),
    Way("dpsgd", Matching.name),
    Way("dpsgd", Ring.name),
    Way("dpsgd", Hierarchical.name),
    Way("adpsgd", Matching.name),
)


def step_seconds(cluster: Cluster, way: Way, compute: float, nbytes: float, n: int, jitter: float = 0.0) -> float:
    """The mean step of n learners. compute: seconds of a step without communication, jitter not counted.

    jitter: mean of the random delay, in times of `compute`.
    """
    if way.algo == "ssgd":
        return _ssgd(cluster, way.by, compute, nbytes, n, jitter)
    if way.by not in TOPOLOGIES:
        raise ValueError(f"unknown topology {way.by!r}: choose one of {', '.join(TOPOLOGIES)}")
    if n == 1:
        return compute * (1 + jitter)
    mix = cluster.mix_seconds(nbytes, n)
    computing = compute + cluster.driving_seconds(way.by, nbytes, n)
    if way.algo == "adpsgd":
        return computing + jitter * compute + mix
    phases = cluster.transfers(way.by, nbytes, n)
    return sum(_dpsgd(cluster, way, compute, Times(computing, each, mix), n, jitter) for each in phases) / len(phases)


def _dpsgd(cluster: Cluster, way: Way, compute: float, times: Times, n: int, jitter: float) -> float:
    if jitter == 0:
        return max(times.compute, times.transfer) + times.mix
    return waiting.mean_step(way.by, n, jitter * compute / times.compute, times, min(n, cluster.per_node))


def _ssgd(cluster: Cluster, shape: str, compute: float, nbytes: float, n: int, jitter: float) -> float:
    if n == 1:
        return compute * (1 + jitter)
    computing = compute * cluster.background
    exposed = exposed_all_reduce(cluster, computing, cluster.all_reduce_seconds(nbytes, n, shape))
    return computing + jitter * compute * waiting.harmonic(n) + exposed


def exposed_all_reduce(cluster: Cluster, computing: float, seconds: float) -> float:
    """What the backward pass does not hide of an all-reduce of so many seconds."""
    return max((1 - cluster.overlap) * seconds, seconds - BACKWARD * computing)


def averages_done(cluster: Cluster, way: Way, seconds: float, nbytes: float, n: int) -> float:
    """Of the averages that steps of so many seconds ask for, the share that AD-PSGD does: where the network is slower
    than the steps, it skips the others. 1 for algorithms that wait."""
    transfers = cluster.transfers(way.by, nbytes, n) if way.algo == "adpsgd" and n > 1 else [0.0]
    return sum(min(1.0, seconds / each) if each else 1.0 for each in transfers) / len(transfers)


def with_link(cluster: Cluster, link: Cost) -> Cluster:
    """The same nodes with another network, used as its numbers say by all."""
    return replace(cluster, link=link, link_all_reduce=link)
