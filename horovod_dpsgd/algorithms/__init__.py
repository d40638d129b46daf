"""The distributed algorithms, by name. A new one is a file beside these and a line in `ALGORITHMS`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from horovod_dpsgd.algorithms.base import Algorithm
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import Topology


@dataclass(frozen=True)
class Settings:
    """What algorithms may be told beside the optimizer and the model; each takes what concerns it."""

    topology: Topology
    noise_std: float = 0.0
    seed: int = 0


Factory = Callable[[torch.optim.Optimizer, nn.Module, Learners, Settings], Algorithm]


def _ssgd(optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings) -> Algorithm:
    from horovod_dpsgd.algorithms.ssgd import SSGD  # imports Horovod, which the other algorithms do without

    return SSGD(optimizer, model, learners)


def _ssgd_star(optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings) -> Algorithm:
    from horovod_dpsgd.algorithms.ssgd_star import SSGDStar

    return SSGDStar(optimizer, model, learners, settings.noise_std, settings.seed)


def _dpsgd(optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings) -> Algorithm:
    from horovod_dpsgd.algorithms.dpsgd import DPSGD

    return DPSGD(optimizer, model, learners, settings.topology)


ALGORITHMS: dict[str, Factory] = {"ssgd": _ssgd, "ssgd-star": _ssgd_star, "dpsgd": _dpsgd}

__all__ = ["ALGORITHMS", "Algorithm", "Settings"]
