"""AD-PSGD, asynchronous decentralized parallel SGD (Lian et al. 2018, arXiv 1710.06952, Algorithm 1).

    x_j, x_k <- (x_j + x_k) / 2          atomically, whenever learner j or k gets there
    x_j      <- x_j - alpha grad L_j(w_j)        w_j: x_j as it was when the gradient's computation began

No learner waits for another's step, so a slow one slows nobody down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from horovod_dpsgd.algorithms.base import Algorithm, Settings, averaged_buffers
from horovod_dpsgd.algorithms.dpsgd import check_agreement
from horovod_dpsgd.algorithms.update import Update
from horovod_dpsgd.gossip import PairAveraging
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import Topology


class ADPSGD(Algorithm):
    """DPSGD without its waiting: a learner averages with whatever its partner's weights are at that moment.

    The partner of a learner's t-th step is drawn from its row of T_t; of the two, one begins the average, by turns. So
    pairs average as often as under DPSGD's `matching`, which this is when all learners keep the same pace. As under
    DPSGD the optimizer's update is applied to the averaged weights, and its state stays local.

    Learners take as many steps as they can: `step` counts this one's, and they differ.
    """

    name = "adpsgd"
    asynchronous = True

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        if settings.topology is None:
            raise ValueError("AD-PSGD needs a topology")
        check_agreement(settings.topology, learners)
        super().__init__(optimizer, model, learners, settings)
        self.topology: Topology = settings.topology
        self.pairs = PairAveraging(learners, self.parameters)
        self.update = Update(optimizer, self.parameters)
        self.staleness = self.pairs.staleness

    def begin_step(self) -> None:
        rank = self.learners.rank
        partner = self.topology.partner(self.step, rank)
        self.pairs.begin(partner if partner is not None and initiates(rank, partner, self.step) else None)

    def end_step(self) -> None:
        self.clip_gradients()
        with self.update as update:
            self.pairs.mix(update)
        self.exposed_seconds = self.pairs.exposed_seconds
        self.step += 1

    def settle(self) -> None:
        self.pairs.settle()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self.settle()
        mean = self.learners.mean(self.pairs.weights)
        with self.parameters.holding(mean), averaged_buffers(self.model, self.learners):
            yield

    def bytes_sent(self, step: int) -> int:
        """One model: the weights of the one who begins the average, or the difference from the other."""
        return self.parameters.nbytes if self.topology.partners(step, self.learners.rank) else 0

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.settle()
        super().load_state_dict(state)
        self.pairs.restart(self.step)

    def close(self) -> None:
        self.pairs.close()


def initiates(rank: int, partner: int, step: int) -> bool:
    """Whether `rank` and not `partner` begins their average of this step; the two agree, and take turns."""
    return (rank < partner) == ((rank + partner + step) % 2 == 0)
