"""What the Hessian of a loss is like: its extreme eigenvalues, trace, and spectral density (Appendix C, E.4, E.5).

No Hessian is formed: all is made of its products with vectors. `apply` below is v -> H v, such as

    partial(objective.hessian_vector, w)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from horovod_dpsgd.diagnostics.lanczos import Product, Ritz, lanczos


@dataclass(frozen=True)
class Extremes:
    """The ends of a spectrum. top: the largest eigenvalues, descending; smallest: the lowest one.

    error: how far any of them may be from an eigenvalue; products: how many Hessian-vector products were made.
    """

    top: list[float]
    smallest: float
    error: float
    products: int

    @property
    def negative_share(self) -> float:
        """|lambda_min / lambda_max|, which Li et al. 2018 (Section 6) map: near 0 where the loss is nearly convex.

        Of a Hessian without negative eigenvalues it is 0; NaN of one without positive ones.
        """
        if self.top[0] <= 0:
            return math.nan
        return max(0.0, -self.smallest) / self.top[0]


def extreme_eigenvalues(
    apply: Product, start: Tensor, top: int = 1, tolerance: float = 1e-3, steps: int = 100
) -> Extremes:
    """By Lanczos' iteration from a random `start`, until all are known to `tolerance` x the largest of them, or `steps`
    products are made (`error` says how well they are known then).

    Equal eigenvalues appear once; of fewer than `top` different ones all are given. Raises FloatingPointError where the
    loss is not finite.
    """
    made = 0
    for ritz in lanczos(apply, start, steps):
        made += 1
        ends = np.concatenate([ritz.errors[:1], ritz.errors[-top:]])
        if made > top and ends.max() <= tolerance * ritz.scale:
            break
    ends = np.concatenate([ritz.errors[:1], ritz.errors[-top:]])
    return Extremes(ritz.values[: -top - 1 : -1].tolist(), float(ritz.values[0]), float(ends.max()), made)


def trace_probe(apply: Product, signs: Tensor) -> float:
    """v . H v for a vector of random signs: its expectation is the trace (Hutchinson 1990).

    `intervals.mean_and_error` of several is the trace and its standard error.
    """
    return float(signs @ apply(signs).to(signs.dtype))


def density_probe(apply: Product, start: Tensor, steps: int = 80) -> Ritz:
    """Nodes and weights of the spectral measure of one random vector, by `steps` products.

    Their mean over Gaussian vectors is the distribution of the eigenvalues (stochastic Lanczos quadrature, Ubaru et al.
    2017; for Hessians Ghorbani et al. 2019).
    """
    for ritz in lanczos(apply, start, steps):  # noqa: B007 - the last one counts
        pass
    return ritz


def density(probes: Sequence[tuple[np.ndarray, np.ndarray]], at: np.ndarray, width: float) -> np.ndarray:
    """The density of eigenvalues at the points `at` [m], from the (nodes, weights) of probes.

    Each node is a Gaussian of standard deviation `width`; the whole integrates to 1.
    """
    found = np.zeros(len(at))
    for nodes, weights in probes:
        bells = np.exp(-0.5 * ((at[:, None] - nodes[None]) / width) ** 2) / (width * math.sqrt(2 * math.pi))
        found += bells @ weights
    return found / len(probes)
