"""A step's exchange: read the partners' weights w_k(t) while this learner computes, and mix them (eq. 2's w_s,j).

exchange.begin(t)     start to read what the partners published as w(t)
...                   forward, backward: nobody writes w_j(t), the partners may be reading it
exchange.mix()        w_s,j(t) = sum_k T_t[j,k] w_k(t); the model now holds it, in the other of two slots
...                   the optimizer's update, in place
exchange.publish()    w_j(t+1) is ready for whoever mixes with j next
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from horovod_dpsgd.gossip.all_reduce import AllReduceExchange
from horovod_dpsgd.gossip.neighbours import NeighbourExchange
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.topology import Complete, Topology

# With so few learners on one node, reading all of them in place beats MPI's all-reduce: 2 to 7 times at n = 2, 1.4 to
# 1.8 times at n = 5, for models of 42,310 to 11 million weights; at n = 16 it depends on the model.
READ_ALL_UP_TO = 8


class Exchange(Protocol):
    """What an algorithm needs of its communication."""

    exposed_seconds: float  # the part of the last step's communication that computation did not hide

    @property
    def weights(self) -> Tensor: ...
    def begin(self, step: int) -> None: ...
    def mix(self) -> None: ...
    def publish(self) -> None: ...
    def settle(self) -> None: ...
    def restart(self, step: int) -> None: ...
    def bytes_sent(self, step: int) -> int: ...
    def close(self) -> None: ...


def create(learners: Learners, parameters: FlatParameters, topology: Topology) -> Exchange:
    """The exchange that serves a topology. Collective."""
    few_on_one_node = learners.nodes == 1 and learners.size <= READ_ALL_UP_TO
    if isinstance(topology, Complete) and not few_on_one_node:
        return AllReduceExchange(learners, parameters)
    return NeighbourExchange(learners, parameters, topology)
