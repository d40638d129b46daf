"""DPSGD, decentralized parallel SGD (eq. 2 of the paper; Lian et al. 2017, Algorithm 1).

    w_j(t+1) = sum_k T_t[j,k] w_k(t) - alpha grad L_j(w_j(t))

The gradient is taken at the learner's own old weights and applied to the mixed weights, so that the exchange of weights
runs while the gradient is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from horovod_dpsgd import gossip
from horovod_dpsgd.algorithms.base import Algorithm, averaged_buffers
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import Topology


class DPSGD(Algorithm):
    """DPSGD around any PyTorch optimizer.

    The optimizer's update, computed from grad L_j(w_j(t)) and its own state, is applied to the mixed weights w_s,j(t);
    weight decay (and the norms of LAMB) therefore see w_s,j(t). Optimizer state and BatchNorm statistics stay local.
    """

    name = "dpsgd"

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, topology: Topology
    ) -> None:
        super().__init__(optimizer, model, learners)
        self.topology = topology
        self.exchange = gossip.create(learners, self.parameters, topology)

    def begin_step(self) -> None:
        self.exchange.begin(self.step)  # the partners' w_k(t) are on their way

    def end_step(self) -> None:
        self.exchange.mix()  # w_s,j(t) = sum_k T_t[j,k] w_k(t)
        self.optimizer.step()  # w_j(t+1) = w_s,j(t) - alpha grad L_j(w_j(t))
        self.exchange.publish()
        self.exposed_seconds = self.exchange.exposed_seconds
        self.step += 1

    @contextmanager
    def averaged(self) -> Iterator[None]:
        mean = self.learners.mean(self.exchange.weights)
        with self.parameters.holding(mean), averaged_buffers(self.model, self.learners):
            yield

    def bytes_sent_per_step(self) -> int:
        return self.exchange.bytes_sent(self.step)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.exchange.settle()
        super().load_state_dict(state)
        self.exchange.restart(self.step)

    def close(self) -> None:
        self.exchange.close()
