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

# With so few learners on one node, each reading all others in place beats dividing the work: it needs one pass less.
READ_ALL_UP_TO = 2


def create(
    learners: Learners, parameters: FlatParameters, topology: Topology, compressed: bool = False
) -> SlotExchange:
    """The exchange that serves a topology. Collective.

    compressed: exchange weights rounded to bfloat16 (see `NeighbourExchange`). Raises ValueError for a topology whose
    weights are summed on the way.
    """
    on_cpu = parameters.device.type == "cpu"
    everyone = isinstance(topology, Complete)
    if compressed and (everyone or isinstance(topology, Hierarchical)):
        raise ValueError(f"topology {topology.name} exchanges no compressed weights: choose one with few partners")
    if isinstance(topology, Hierarchical) and on_cpu:
        return NodeExchange(learners, parameters, topology)
    if everyone and learners.nodes == 1 and learners.size > READ_ALL_UP_TO and on_cpu:
        return NodeExchange(learners, parameters, Hierarchical(learners.size, node_of=learners.node_of))
    if everyone and (learners.nodes > 1 or learners.size > READ_ALL_UP_TO):
        return AllReduceExchange(learners, parameters)
    return NeighbourExchange(learners, parameters, topology, compressed=compressed)
