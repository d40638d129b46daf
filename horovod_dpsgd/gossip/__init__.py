"""The gossip layer: exchange of weights, in place among the learners of a node, by messages between nodes."""

from horovod_dpsgd.gossip.all_reduce import AllReduceExchange
from horovod_dpsgd.gossip.exchange import create
from horovod_dpsgd.gossip.neighbours import NeighbourExchange
from horovod_dpsgd.gossip.nodes import NodeExchange
from horovod_dpsgd.gossip.pairs import PairAveraging
from horovod_dpsgd.gossip.slots import BlockUpdate, SlotExchange
from horovod_dpsgd.gossip.window import Window

__all__ = [
    "AllReduceExchange",
    "BlockUpdate",
    "NeighbourExchange",
    "NodeExchange",
    "PairAveraging",
    "SlotExchange",
    "Window",
    "create",
]
