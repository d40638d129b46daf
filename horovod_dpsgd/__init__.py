"""Decentralized parallel SGD (not differential privacy) for PyTorch users of Horovod and MPI.

    import horovod_dpsgd as dpsgd

    optimizer = dpsgd.DecentralizedOptimizer(optimizer, model, topology="matching")
    sampler = DistributedSampler(data, num_replicas=dpsgd.size(), rank=dpsgd.rank())

Needs torch, numpy and mpi4py; Horovod is neither imported nor started.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from horovod_dpsgd.learners import Learners
    from horovod_dpsgd.optimizer import DecentralizedOptimizer
    from horovod_dpsgd.topology import Topology

__version__ = "0.1.0"
__all__ = ["DecentralizedOptimizer", "Topology", "init", "local_rank", "local_size", "rank", "size"]
_MODULES = {"DecentralizedOptimizer": "optimizer", "Topology": "topology"}


def __getattr__(name: str) -> object:
    """PyTorch is imported when it is first needed: by `horovod_dpsgd.restart`, which lives as long as a job, never."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def init() -> Learners:
    """Start MPI, if it is not started, and return this job's learners, the same object every time. Collective."""
    from horovod_dpsgd.learners import start

    return start()


def rank() -> int:
    """This learner's number, 0 to size() - 1."""
    return init().rank


def size() -> int:
    """The number of learners."""
    return init().size


def local_rank() -> int:
    """This learner's number among those of its node."""
    return init().local_rank


def local_size() -> int:
    """The number of learners on this one's node."""
    return init().local_size
