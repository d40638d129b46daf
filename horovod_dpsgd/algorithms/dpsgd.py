"""DPSGD, decentralized parallel SGD (eq. 2 of the paper; Lian et al. 2017, Algorithm 1).

    w_j(t+1) = sum_k T_t[j,k] w_k(t) - alpha grad L_j(w_j(t))

The gradient is taken at the learner's own old weights and applied to the mixed weights, so that the exchange of
weights runs while the gradient is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from horovod_dpsgd import gossip
from horovod_dpsgd.algorithms.base import Algorithm, Settings, averaged_buffers
from horovod_dpsgd.algorithms.update import Update
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import Topology


class DPSGD(Algorithm):
    """DPSGD around any PyTorch optimizer whose `step` needs no closure.

    The optimizer's update, computed from grad L_j(w_j(t)) and its own state, is applied to the mixed weights w_s,j(t);
    weight decay (and the norms of LAMB) therefore see w_s,j(t). Optimizer state and BatchNorm statistics stay local;
    clipping is of the local gradient.

    Between steps the weights are being read by others: change them by `load_state_dict` alone. A tensor that shares
    memory with a parameter (`p.data`, `model.state_dict()`) is overwritten two steps later: copy what is to be kept.
    """

    name = "dpsgd"

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        if settings.topology is None:
            raise ValueError("DPSGD needs a topology")
        check_agreement(settings.topology, learners)
        super().__init__(optimizer, model, learners, settings)
        self.topology = settings.topology
        self.exchange = gossip.create(learners, self.parameters, settings.topology, settings.compressed)
        self.update = Update(optimizer, self.parameters)

    def begin_step(self) -> None:
        self.exchange.begin(self.step)  # the partners' w_k(t) are on their way

    def end_step(self) -> None:
        self.clip_gradients()
        with self.update as update:  # w_j(t+1) = w_s,j(t) - alpha grad L_j(w_j(t)), done to each block of weights when
            self.exchange.mix(update)  # w_s,j(t) = sum_k T_t[j,k] w_k(t) has been computed for it
        self.exchange.publish()
        self.exposed_seconds = self.exchange.exposed_seconds
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        mean = self.learners.mean(self.exchange.weights)
        with self.parameters.holding(mean), averaged_buffers(self.model, self.learners):
            yield

    def bytes_sent(self, step: int) -> int:
        return self.exchange.bytes_sent(step)

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
    matrices = [topology.matrix(step) for step in range(max(4, topology.period))]
    everyone = learners.gather([matrix.tobytes() for matrix in matrices])
    if any(other != everyone[0] for other in everyone):
        raise ValueError("the learners' topologies differ: all must be made with the same name and seed")
    for matrix in matrices:
        if not (np.allclose(matrix, matrix.T) and np.allclose(matrix.sum(axis=1), 1)):
            raise ValueError(f"the matrices of topology {topology.name} are not symmetric and doubly stochastic")
