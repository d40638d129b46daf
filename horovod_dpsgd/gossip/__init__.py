"""The gossip layer: exchange of weights between learners by one-sided communication."""

from horovod_dpsgd.gossip.all_reduce import AllReduceExchange
from horovod_dpsgd.gossip.exchange import Exchange, create
from horovod_dpsgd.gossip.neighbours import NeighbourExchange
from horovod_dpsgd.gossip.window import Window

__all__ = ["AllReduceExchange", "Exchange", "NeighbourExchange", "Window", "create"]
