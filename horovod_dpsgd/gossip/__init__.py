"""The gossip layer: one-sided exchange of weights between learners (window, exchange, progress)."""

from horovod_dpsgd.gossip.exchange import AllReduceExchange, Exchange, GossipExchange, create
from horovod_dpsgd.gossip.window import Window

__all__ = ["AllReduceExchange", "Exchange", "GossipExchange", "Window", "create"]
