"""The optimizer's update as the exchanges want it: something done to every block of mixed weights."""

from __future__ import annotations

import torch
from torch import Tensor

from horovod_dpsgd.algorithms.blockwise import blockwise
from horovod_dpsgd.gossip import BlockUpdate
from horovod_dpsgd.parameters import FlatParameters


class Update:
    """One step of `optimizer`, by blocks where that is possible, else at once; the results agree to rounding.

    mixed: whether anything is mixed at all; a learner that is alone gains nothing by blocks.

    with update as blocks:
        exchange.mix(blocks)
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: FlatParameters, mixed: bool = True) -> None:
        self._whole = WholeUpdate(optimizer, parameters.numel)
        self._by_blocks = blockwise(optimizer, parameters) if mixed else None

    def __enter__(self) -> BlockUpdate:
        by_blocks = self._by_blocks
        self._chosen = by_blocks if by_blocks is not None and by_blocks.applies() else self._whole
        self._chosen.begin()
        return self._chosen

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if kind is None:
            self._chosen.end()


class WholeUpdate:
    """`optimizer.step()` as the update of a single block: the model's parameters are views of it."""

    def __init__(self, optimizer: torch.optim.Optimizer, numel: int) -> None:
        self.sizes = [numel]
        self._optimizer = optimizer

    def begin(self) -> None:
        return None

    def __call__(self, index: int, weights: Tensor) -> None:
        self._optimizer.step()

    def end(self) -> None:
        return None
