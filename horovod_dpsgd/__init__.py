"""Decentralized parallel SGD (not differential privacy) for PyTorch users of Horovod and MPI.

    import horovod_dpsgd as dpsgd

    optimizer = dpsgd.DecentralizedOptimizer(optimizer, model, topology="matching")
    sampler = DistributedSampler(data, num_replicas=dpsgd.size(), rank=dpsgd.rank())

Needs torch, numpy and mpi4py; Horovod is neither imported nor started.
"""

from horovod_dpsgd.learners import start as init
from horovod_dpsgd.optimizer import DecentralizedOptimizer
from horovod_dpsgd.topology import Topology

__version__ = "0.1.0"
__all__ = ["DecentralizedOptimizer", "Topology", "init", "local_rank", "rank", "size"]


def rank() -> int:
    """This learner's number, 0 to size() - 1."""
    return init().rank


def size() -> int:
    """The number of learners."""
    return init().size


def local_rank() -> int:
    """This learner's number among those of its node."""
    return init().local_rank
