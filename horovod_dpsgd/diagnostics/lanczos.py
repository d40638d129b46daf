"""Lanczos' iteration: a symmetric matrix, known by its products with vectors alone, as a small tridiagonal one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]  # v [numel] -> A v [numel]
INVARIANT = 1e-10  # a remainder smaller than this share of the matrix: the space seen so far is closed under it


@dataclass(frozen=True)
class Ritz:
    """Eigenvalues of the tridiagonal matrix, ascending, which approach those of A from its ends inwards.

    errors: for each, a bound on its distance to some eigenvalue of A; weights: the share of the starting vector that
    lies along it (they add up to 1).
    """

    values: np.ndarray
    errors: np.ndarray
    weights: np.ndarray

    @property
    def scale(self) -> float:
        return float(np.abs(self.values).max())


def lanczos(product: Product, start: Tensor, steps: int) -> Iterator[Ritz]:
    """What is known of A after 1, 2, ... products; ends when `steps` are made, or nothing is left to be known.

    Every vector is made orthogonal to all before it, twice: without that, copies of eigenvalues that are not there
    appear. So all of them are kept, `steps` vectors in the dtype of `start`. An eigenvalue is seen once,
    however often A has it. (Golub and Van Loan, Matrix Computations, Section 10.3.)
    """
    norm = start.norm()
    if not norm > 0:
        raise ValueError("Lanczos' iteration cannot start from zero")
    basis = start.new_empty(steps, len(start))
    v = start / norm
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(steps):
        basis[step] = v
        w = product(v).to(v.dtype)
        diagonal.append(float(w @ v))
        for _ in range(2):
            seen = basis[: step + 1]
            w = w - seen.T @ (seen @ w)
        remainder = float(w.norm())
        if not np.isfinite(remainder):
            raise FloatingPointError("a product with the matrix is not finite")
        ritz = _ritz(diagonal, beside, remainder)
        yield ritz
        if remainder <= INVARIANT * max(ritz.scale, torch.finfo(v.dtype).tiny):
            return
        beside.append(remainder)
        v = w / remainder


def _ritz(diagonal: list[float], beside: list[float], remainder: float) -> Ritz:
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return Ritz(values, remainder * np.abs(vectors[-1]), vectors[0] ** 2)
