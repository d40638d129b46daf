"""SSGD*, synchronous SGD with Gaussian weight noise (the paper, Sections 2.2 and 4.3).

w_a(t+1) = w_a(t) - alpha mean_j grad L_j(w_a(t) + d_j),    d_j ~ N(0, sigma_0^2 I), fresh for every learner and step
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from horovod_dpsgd.algorithms.base import Settings
from horovod_dpsgd.algorithms.ssgd import SSGD
from horovod_dpsgd.learners import Learners, generator


class SSGDStar(SSGD):
    """SSGD with the gradients taken at noisy weights; the update applies to w_a, without the noise.

    sigma_0 is `settings.noise_std`; the noise is drawn from (`settings.seed`, rank, step).
    """

    name = "ssgd-star"

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        super().__init__(optimizer, model, learners, settings)
        self.weights = self.parameters.gather()  # w_a, without noise
        self._views = self.parameters.views(self.weights)
        self.parameters.point_to(self._views)

    def begin_step(self) -> None:
        numbers = generator("noise", self.settings.seed, self.learners.rank, self.step)
        delta = torch.randn(self.parameters.numel, dtype=self.parameters.dtype, generator=numbers)
        noisy = self.weights + self.settings.noise_std * delta.to(self.weights.device)
        self.parameters.point_to(self.parameters.views(noisy))

    def end_step(self) -> None:
        self.parameters.point_to(self._views)
        super().end_step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        with self.parameters.holding(self.weights), super().averaged():
            yield
