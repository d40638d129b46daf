"""The loss of a model on fixed samples as a function of its flat weights: what landscapes are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from horovod_dpsgd.diagnostics.derivatives import gradient, hessian_vector, twice_differentiable
from horovod_dpsgd.parameters import FlatParameters, floating_buffers

Batch = tuple[Tensor, ...]


class Objective:
    """L(w) = mean over the samples of `batches`, for flat weights w [numel] in the layout of `parameters`.

    loss: the model's mean loss on a batch. The model is used in the mode it is in; the vectors given back are float64,
    and 0 where the layout has padding. dimension: of the weights, padding not counted; buffers: the floating ones.
    """

    def __init__(self, model: nn.Module, loss: Callable[[Batch], Tensor], batches: Sequence[Batch]) -> None:
        self._model = model
        self.parameters = FlatParameters(model)
        self.buffers = floating_buffers(model)
        self.loss_of, self.batches = loss, batches
        self.samples = sum(len(batch[0]) for batch in batches)
        self.dimension = sum(p.numel() for p in self.parameters.parameters)

    def loss(self, w: Tensor) -> float:
        with torch.no_grad(), self.at(w):
            return sum(len(batch[0]) * float(self.loss_of(batch)) for batch in self.batches) / self.samples

    def gradient(self, w: Tensor) -> Tensor:
        return self._mean(w, lambda value: gradient(self.parameters, value))

    def loss_and_gradient(self, w: Tensor) -> tuple[float, Tensor]:
        losses: list[float] = []

        def of(value: Tensor) -> Tensor:
            losses.append(float(value.detach()))
            return gradient(self.parameters, value)

        g = self._mean(w, of)
        sizes = [len(batch[0]) for batch in self.batches]
        return sum(size * value for size, value in zip(sizes, losses, strict=True)) / self.samples, g

    def hessian_vector(self, w: Tensor, vector: Tensor) -> Tensor:
        """H(w) v."""
        with twice_differentiable():
            return self._mean(w, lambda value: hessian_vector(self.parameters, value, vector))

    def _mean(self, w: Tensor, vector_of: Callable[[Tensor], Tensor]) -> Tensor:
        total = torch.zeros(self.parameters.numel, dtype=torch.float64, device=self.parameters.device)
        with self.at(w):
            for batch in self.batches:
                total += len(batch[0]) / self.samples * vector_of(self.loss_of(batch)).double()
        return total

    @contextmanager
    def at(self, w: Tensor) -> Iterator[None]:
        """Inside the block the model has the weights w; what it does to its buffers there does not stay."""
        buffers = [(b, b.clone()) for b in self._model.buffers()]
        with self.parameters.holding(w.to(self.parameters.device, self.parameters.dtype)):
            yield
        for b, before in buffers:
            b.copy_(before)

    def weights(self) -> Tensor:
        """The weights the model has now."""
        return self.parameters.gather().double()

    def gaussian(self, numbers: torch.Generator) -> Tensor:
        """A vector of independent normal numbers, drawn on the CPU, the same on every device."""
        return self._vector(lambda p: torch.randn(p.shape, generator=numbers))

    def signs(self, numbers: torch.Generator) -> Tensor:
        """A vector of independent -1 and 1 (Rademacher)."""
        return self._vector(lambda p: torch.randint(0, 2, p.shape, generator=numbers).mul(2).sub(1))

    def _vector(self, draw: Callable[[Tensor], Tensor]) -> Tensor:
        parts = [draw(p).to(p.device, p.dtype) for p in self.parameters.parameters]
        return self.parameters.gather(parts).double()
