"""A step's exchange: read the partners' weights w_k(t) while this learner computes, and mix them (eq. 2's w_s,j).

exchange.begin(t)     start to read what the partners published as w(t)
...                   forward, backward: nobody writes w_j(t), the partners may be reading it
exchange.mix(update)  w_s,j(t) = sum_k T_t[j,k] w_k(t); the model now holds it, in the other of two slots, and the
                      optimizer's update has been applied in place, to each block as soon as it was mixed
exchange.publish()    w_j(t+1) is ready for whoever mixes with j next
"""

from __future__ import annotations

from horovod_dpsgd.gossip.all_reduce import AllReduceExchange
from horovod_dpsgd.gossip.neighbours import NeighbourExchange
from horovod_dpsgd.gossip.nodes import NodeExchange
from horovod_dpsgd.gossip.slots import SlotExchange
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.topology import Complete, Hierarchical, Topology

# With smaller models it does not pay to divide the averaging among the learners of a node, who then wait twice.
# Measured with 42,310, 1 million and 11 million weights: 0.35 and 0.55 ms (all read all, and divided), 2.8 and 2.4, 48
# and 19 at 5 learners; 2.2 and 3.6, 18 and 6, 282 and 34 at 16. Two learners have nothing to divide.
DIVIDE_FROM = 1_000_000  # weights


def create(
    learners: Learners, parameters: FlatParameters, topology: Topology, compressed: bool = False
) -> SlotExchange:
    """The exchange that serves a topology. Collective.

    compressed: exchange weights rounded to bfloat16 (see `NeighbourExchange`). Raises ValueError for a topology whose
    weights are summed on the way, and for `hierarchical` weights on a GPU.
    """
    everyone = isinstance(topology, Complete)
    if compressed and topology.summed:
        raise ValueError(f"topology {topology.name} exchanges no compressed weights: choose one with few partners")
    if isinstance(topology, Hierarchical):
        return NodeExchange(learners, parameters, topology)
    few = learners.size <= 2 or parameters.numel < DIVIDE_FROM
    if not everyone or (learners.nodes == 1 and few):
        return NeighbourExchange(learners, parameters, topology, compressed=compressed)
    if learners.nodes == 1 and parameters.device.type == "cpu":
        return NodeExchange(learners, parameters, Hierarchical(learners.size, node_of=learners.node_of))
    return AllReduceExchange(learners, parameters)
