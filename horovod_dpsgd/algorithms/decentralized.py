"""What the decentralized algorithms share: weights of each learner's own, mixed as a topology says by an exchange."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from horovod_dpsgd.algorithms.base import Algorithm, Settings, averaged_buffers
from horovod_dpsgd.algorithms.update import Update
from horovod_dpsgd.gossip import PairAveraging, SlotExchange
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import Topology


class Decentralized(Algorithm):
    """The base of DPSGD and AD-PSGD.

    exchange: what mixes the weights; update: the optimizer's, done by blocks while the exchange mixes. Raises
    ValueError without a topology, and if the learners' topologies differ.
    """

    topology: Topology
    exchange: SlotExchange | PairAveraging

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        if settings.topology is None:
            raise ValueError(f"{self.name} needs a topology")
        check_agreement(settings.topology, learners)
        super().__init__(optimizer, model, learners, settings)
        self.topology = settings.topology
        self.exchange = self.make_exchange()
        self.update = Update(optimizer, self.parameters, mixed=learners.size > 1)

    @abstractmethod
    def make_exchange(self) -> SlotExchange | PairAveraging:
        """Once, when everything but `exchange` and `update` is there. Collective."""

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self.settle()
        mean = self.learners.mean(self.exchange.weights)
        with self.parameters.holding(mean), averaged_buffers(self.model, self.learners):
            yield

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.exchange.settle()
        super().load_state_dict(state)
        self.exchange.restart(self.step)

    def close(self) -> None:
        self.exchange.close()


def check_agreement(topology: Topology, learners: Learners) -> None:
    """Raise ValueError on all learners unless they mix by the same symmetric, doubly stochastic matrices.

    Else a learner would read one that does not know of it, and that goes on to write what is being read. Looks at the
    matrices of the first steps. Collective.
    """
    if topology.size != learners.size:
        raise ValueError(f"the topology is for {topology.size} learners, but there are {learners.size}")
    digest, fit = hashlib.sha256(), True  # not the matrices themselves: n learners' are n^3 numbers
    for step in range(max(4, topology.period)):
        matrix = topology.matrix(step)
        digest.update(matrix.tobytes())
        fit = fit and np.allclose(matrix, matrix.T) and np.allclose(matrix.sum(axis=1), 1)
    if len(set(learners.gather(digest.hexdigest()))) > 1:
        raise ValueError("the learners' topologies differ: all must be made with the same name and seed")
    if not fit:
        raise ValueError(f"the matrices of topology {topology.name} are not symmetric and doubly stochastic")
