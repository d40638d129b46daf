"""What it takes to move and to average weights, by formulas: seconds for messages of `nbytes` among n learners.

Between nodes the postal model of message passing (a start-up time and a time per byte; Hockney 1994), and the counts of
Thakur, Rabenseifner and Gropp 2005 for all-reduces. All-reduce by a ring: 2 (n-1) messages one after the other, which
carry 2 (n-1)/n of the bytes; by trees that pipeline (two of them, so that every learner sends and receives all the
time; Sanders, Speck, Traff 2009): 2 log2(n) messages and twice the bytes. An exchange with a partner: one message, all
bytes, whatever n is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from horovod_dpsgd.topology import Complete, Exponential, Hierarchical, Matching, RandomRing, Ring


@dataclass(frozen=True)
class Cost:
    """start: seconds before the first byte; per_byte: seconds for each."""

    start: float
    per_byte: float

    def seconds(self, nbytes: float, messages: float = 1.0, times: float = 1.0) -> float:
        """Of `messages` one after the other that carry `times` x `nbytes` in all."""
        return messages * self.start + times * nbytes * self.per_byte


# All-reduces: (messages one after the other, times the bytes) for n learners.


def ring(n: int) -> tuple[float, float]:
    return 2.0 * (n - 1), 2.0 * (n - 1) / n


def tree(n: int) -> tuple[float, float]:
    return 2.0 * math.ceil(math.log2(n)), 2.0 if n > 2 else float(n - 1)


ALL_REDUCES: dict[str, Callable[[int], tuple[float, float]]] = {"ring": ring, "tree": tree}


def all_reduce_seconds(cost: Cost, nbytes: float, n: int, shape: str) -> float:
    """shape: of `ALL_REDUCES`."""
    if n < 2:
        return 0.0
    messages, times = ALL_REDUCES[shape](n)
    return cost.seconds(nbytes, messages, times)


def link_loads(topology: str, n: int, per_node: int) -> list[float]:
    """How many models a node sends to others at a step, and receives: one number a phase of the topology's period.

    per_node: learners of a node, with consecutive ranks; the last node may have fewer. Of random topologies the
    expectation; of `exponential`, for which per_node must be a power of two, the most that it can be where n is none.
    Nothing crosses if all are on one node. Raises ValueError for a topology that is not known.
    """
    if n <= per_node:
        return [0.0]
    elsewhere = (n - per_node) / (n - 1)  # the probability that a random other learner is on another node
    match topology:
        case Matching.name:
            return [per_node * elsewhere * (1 if n % 2 == 0 else (n - 1) / n)]
        case Ring.name:
            return [1.0 if n == 2 else 2.0]  # to the node before and to the one behind
        case RandomRing.name:
            return [per_node * elsewhere * (1.0 if n == 2 else 2.0)]
        case Exponential.name:
            period = max(1, (n - 1).bit_length())
            return [0.0 if 1 << phase < per_node else float(per_node) for phase in range(period)]
        case Hierarchical.name:
            nodes = math.ceil(n / per_node)
            return [1.0 if nodes % 2 == 0 else (nodes - 1) / nodes]
        case Complete.name:
            return [ring(n)[1]]
    raise ValueError(f"unknown topology {topology!r}")
