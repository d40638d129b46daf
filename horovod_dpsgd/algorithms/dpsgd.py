"""DPSGD, decentralized parallel SGD (eq. 2 of the paper; Lian et al. 2017, Algorithm 1).

    w_j(t+1) = sum_k T_t[j,k] w_k(t) - alpha grad L_j(w_j(t))

The gradient is taken at the learner's own old weights and applied to the mixed weights, so that the exchange of
weights runs while the gradient is computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from horovod_dpsgd import gossip
from horovod_dpsgd.algorithms.base import Settings
from horovod_dpsgd.algorithms.decentralized import Decentralized
from horovod_dpsgd.algorithms.moments import LocalMoments, MixedMoments
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters


class DPSGD(Decentralized):
    """DPSGD around any PyTorch optimizer whose `step` needs no closure.

    The optimizer's update, computed from grad L_j(w_j(t)) and its own state, is applied to the mixed weights w_s,j(t);
    weight decay (and the norms of LAMB) therefore see w_s,j(t). Optimizer state (unless `settings.mix_moments`) and
    BatchNorm statistics stay local; clipping is of the local gradient.

    Between steps the weights are being read by others: change them by this object's `load_state_dict` alone. A tensor
    that shares memory with a parameter (`p.data`, `model.state_dict()`) is overwritten in the next steps: copy what is
    to be kept.
    """

    name = "dpsgd"
    exchange: gossip.SlotExchange

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        super().__init__(optimizer, model, learners, settings)
        mixed = settings.mix_moments
        self.moments = MixedMoments(optimizer, self._exchange_of) if mixed else LocalMoments()

    def make_exchange(self) -> gossip.SlotExchange:
        return self._exchange_of(self.parameters)

    def _exchange_of(self, parameters: FlatParameters) -> gossip.SlotExchange:
        return gossip.create(self.learners, parameters, self.topology, self.settings.compressed)

    def begin_step(self) -> None:
        self.exchange.begin(self.step)  # the partners' w_k(t) are on their way
        self.moments.begin(self.step)

    def end_step(self) -> None:
        self.clip_gradients()
        self.moments.mix()
        with self.update as blocks:  # w_j(t+1) = w_s,j(t) - alpha grad L_j(w_j(t)), done to each block of weights when
            self.exchange.mix(blocks)  # w_s,j(t) = sum_k T_t[j,k] w_k(t) has been computed for it
        self.exchange.publish()
        self.moments.publish()
        self.exposed_seconds = self.exchange.exposed_seconds + self.moments.exposed_seconds
        self.step += 1

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        return self.exchange.bytes_sent(step, between_nodes) + self.moments.bytes_sent(step, between_nodes)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        return state | {"optimizer": self.moments.copied(state["optimizer"])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments.settle()
        super().load_state_dict(state)
        self.moments.restart(self.step)

    def close(self) -> None:
        super().close()
        self.moments.close()
