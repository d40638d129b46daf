"""DPSGD, decentralized parallel SGD (eq. 2 of the paper; Lian et al. 2017, Algorithm 1).

    w_j(t+1) = sum_k T_t[j,k] w_k(t) - alpha grad L_j(w_j(t))

The gradient is taken at the learner's own old weights and applied to the mixed weights, so that the exchange of
weights runs while the gradient is computed.
"""

from __future__ import annotations

from horovod_dpsgd import gossip
from horovod_dpsgd.algorithms.decentralized import Decentralized


class DPSGD(Decentralized):
    """DPSGD around any PyTorch optimizer whose `step` needs no closure.

    The optimizer's update, computed from grad L_j(w_j(t)) and its own state, is applied to the mixed weights w_s,j(t);
    weight decay (and the norms of LAMB) therefore see w_s,j(t). Optimizer state and BatchNorm statistics stay local;
    clipping is of the local gradient.

    Between steps the weights are being read by others: change them by `load_state_dict` alone. A tensor that shares
    memory with a parameter (`p.data`, `model.state_dict()`) is overwritten two steps later: copy what is to be kept.
    """

    name = "dpsgd"
    exchange: gossip.SlotExchange

    def make_exchange(self) -> gossip.SlotExchange:
        return gossip.create(self.learners, self.parameters, self.topology, self.settings.compressed)

    def begin_step(self) -> None:
        self.exchange.begin(self.step)  # the partners' w_k(t) are on their way

    def end_step(self) -> None:
        self.clip_gradients()
        with self.update as update:  # w_j(t+1) = w_s,j(t) - alpha grad L_j(w_j(t)), done to each block of weights when
            self.exchange.mix(update)  # w_s,j(t) = sum_k T_t[j,k] w_k(t) has been computed for it
        self.exchange.publish()
        self.exposed_seconds = self.exchange.exposed_seconds
        self.step += 1

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        return self.exchange.bytes_sent(step, between_nodes)
