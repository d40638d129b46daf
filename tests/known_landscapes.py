"""Losses whose Hessians, eigenvalues and smoothed forms are known exactly."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from horovod_dpsgd.diagnostics.objective import Objective
from horovod_dpsgd.parameters import FlatParameters


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """For a test module to import: with so little to compute, threads only wait for each other where cores are busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Quadratic(nn.Module):
    """L(w) = w . A w / 2 for a symmetric A [7, 7]; the weights are two tensors, neither as large as a cache line."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.q = nn.Parameter(torch.randn(2, 2, dtype=torch.float64))
        self.register_buffer("matrix", matrix.double())

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        w = torch.cat([self.p, self.q.flatten()])
        return (w @ self.matrix @ w / 2).expand(len(inputs))


class Waves(nn.Module):
    """L(w) = sum of cos w_i, which is 1-smooth; smoothed by N(0, s^2) it is exp(-s^2 / 2) times that."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.w.cos().sum().expand(len(inputs))


class Kink(nn.Module):
    """L(w) = |w|: 1-Lipschitz, and not smooth at all; smoothed by N(0, s^2), its second derivative at 0 is
    sqrt(2 / pi) / s."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.w.abs().sum().expand(len(inputs))


def objective(model: nn.Module, samples: int = 3) -> Objective:
    return Objective(model, lambda batch: model(batch[0]).mean(), [(torch.zeros(samples, 1),)])


def symmetric(eigenvalues: list[float], seed: int = 0) -> torch.Tensor:
    """A matrix with these eigenvalues, in random directions."""
    numbers = torch.Generator().manual_seed(seed)
    square = torch.randn(len(eigenvalues), len(eigenvalues), generator=numbers, dtype=torch.float64)
    basis, _ = torch.linalg.qr(square)
    return basis @ torch.tensor(eigenvalues, dtype=torch.float64).diag() @ basis.T


def dense(parameters: FlatParameters, flat: torch.Tensor) -> torch.Tensor:
    """A flat vector without its padding."""
    return torch.cat([view.flatten() for view in parameters.views(flat)])


def hessian(parameters: FlatParameters, loss: torch.Tensor) -> torch.Tensor:
    """The whole matrix, row by row, without padding; 0 for weights that the loss does not depend on."""
    first = torch.autograd.grad(loss, parameters.parameters, create_graph=True, materialize_grads=True)
    rows = []
    for entry in torch.cat([g.flatten() for g in first]):
        if not entry.requires_grad:
            rows.append(torch.zeros(sum(p.numel() for p in parameters.parameters), dtype=loss.dtype))
            continue
        second = torch.autograd.grad(entry, parameters.parameters, retain_graph=True, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in second]))
    return torch.stack(rows)
