"""Directions and planes through solutions, on which a loss is drawn (Li et al. 2018; Appendix C, E.4).

Everything here is flat weights [numel]; the loss at a point is `objective.loss(origin + x * direction + ...)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from horovod_dpsgd.diagnostics.objective import Objective

TINY = 1e-10


def filter_normalized(objective: Objective, w: Tensor, numbers: torch.Generator) -> Tensor:
    """A random direction at w whose filters are each as long as w's (Li et al. 2018, Section 4).

    Gaussian numbers, in which the part of every filter (what leads to one output: a slice along the first dimension) is
    scaled to the norm of that filter in w. Biases and the scales of normalisation layers (all of one dimension) stay.
    So pictures of networks whose weights differ in size, which ReLU makes meaningless, can be compared.
    """
    direction = objective.gaussian(numbers)
    for part, weights in zip(objective.parameters.views(direction), objective.parameters.views(w), strict=True):
        if weights.dim() <= 1:
            part.zero_()
            continue
        inner = tuple(range(1, weights.dim()))
        lengths = weights.square().sum(inner, keepdim=True).sqrt()
        part.mul_(lengths / (part.square().sum(inner, keepdim=True).sqrt() + TINY))
    return direction


def plane(points: Sequence[Tensor], spare: Tensor) -> tuple[Tensor, Tensor, list[tuple[float, float]]]:
    """Two directions u, v from points[0], orthogonal and of one length, that span a plane through two or three points,
    and where the points lie in it: points[i] = points[0] + x u + y v.

    The first is the way to points[1], which lies at (1, 0). Of two points the second direction is the part of `spare`
    that is orthogonal to the first. Raises ValueError for points (or a spare) on one line.
    """
    origin, second = points[0], points[1]
    u = second - origin
    length = u.norm()
    towards = points[2] - origin if len(points) > 2 else spare
    v = towards - (towards @ u) / (u @ u) * u if length > 0 else towards
    if not (length > 0 and v.norm() > 1e-6 * towards.norm()):
        raise ValueError("a plane needs points that do not lie on one line")
    v = v * (length / v.norm())
    places = [(float((p - origin) @ u / (u @ u)), float((p - origin) @ v / (v @ v))) for p in points]
    return u, v, places


def between(one: Sequence[Tensor], other: Sequence[Tensor], share: float) -> list[Tensor]:
    """(1 - share) one + share other, tensor by tensor: weights, and BatchNorm's statistics with them."""
    return [a + share * (b - a) for a, b in zip(one, other, strict=True)]


def steps(low: float, high: float, points: int) -> list[float]:
    """Equally spaced, both ends included, rounded so that they are the same numbers in a file."""
    return [round(x, 9) for x in torch.linspace(low, high, points, dtype=torch.float64).tolist()]
