"""Theorem 1: with learners spread as N(0, sigma^2 I) around w, DPSGD descends a smoothed loss

    L~(w) = E[L(w + d)],  d ~ N(0, sigma^2 I),

which is 2G/sigma-smooth if L is G-Lipschitz, whatever the smoothness of L itself is. (f is l-smooth if
|grad f(x) - grad f(y)| <= l |x - y| for all x, y; a rate up to 1/l is safe.)

sigma is the standard deviation of one weight. The paper writes sigma_w both for it and, after eq. 5, for the root of
Tr C, which is larger: of n learners with d weights each, Tr C = sigma^2 d / n.

Nothing here bounds a constant from above: l and G are suprema over all points, and what can be measured are the values
at some. `local_smoothness` looks for the worst direction at w.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from horovod_dpsgd.diagnostics.intervals import mean_and_error
from horovod_dpsgd.diagnostics.objective import Objective
from horovod_dpsgd.learners import generator


class Smoothed(NamedTuple):
    """L~ and its gradient at a point, by Monte Carlo, each with a standard error (NaN for a single pair of draws).

    gradient_error: the root of the expected |gradient - true gradient|^2. steepest: the largest gradient of L that was
    met on the way, below which G cannot be.
    """

    loss: float
    loss_error: float
    gradient: Tensor  # [numel]
    gradient_error: float
    steepest: float


class Smoothness(NamedTuple):
    """|grad f(w + u) - grad f(w)| / |u| for the direction u found, and its standard error (0 where f is L itself)."""

    value: float
    error: float


def smoothed(objective: Objective, w: Tensor, sigma: float, pairs: int, seed: int) -> Smoothed:
    """By `pairs` of draws d and -d, in whose mean what is linear in d cancels."""
    losses: list[float] = []
    mean, squares = torch.zeros_like(w), 0.0
    slopes: list[Tensor] = []
    for number, d in enumerate(_draws(objective, sigma, pairs, seed), 1):
        (loss, g), (loss_too, g_too) = objective.loss_and_gradient(w + d), objective.loss_and_gradient(w - d)
        losses.append((loss + loss_too) / 2)
        middle = (g + g_too) / 2
        off = middle - mean
        mean += off / number
        squares += float(off @ (middle - mean))  # of deviations from the mean so far, as Welford 1962
        slopes += [g.norm(), g_too.norm()]
    error = (squares / (pairs * (pairs - 1))) ** 0.5 if pairs > 1 else float("nan")
    return Smoothed(*mean_and_error(losses), mean, error, float(torch.stack(slopes).max()))


def local_smoothness(
    objective: Objective,
    w: Tensor,
    radius: float,
    sigma: float = 0.0,
    pairs: int = 8,
    iterations: int = 15,
    seed: int = 0,
) -> Smoothness:
    """How fast the gradient of L (sigma = 0) or of L~ changes at w over the distance `radius`, in the worst direction.

    The direction is found by the power method on finite differences: u <- radius (grad f(w + u) - grad f(w)) / |...|,
    which for a small radius goes to the Hessian's eigenvector of largest modulus. For L~ it is found with some draws
    and measured with others, so that chance agreement with the draws is not taken for roughness: the value is the mean
    over new draws of the change along the direction in which the old ones changed. A lower bound, in expectation.
    """
    before = _mean_gradient(objective, w, sigma, pairs, seed)
    along = objective.gaussian(generator("direction of smoothness", seed))
    along /= along.norm()
    for _ in range(iterations):
        u = radius * along
        change = _mean_gradient(objective, w + u, sigma, pairs, seed) - before
        length = float(change.norm())
        if not length > 0:
            return Smoothness(length, 0.0)  # 0, or NaN
        along = change / length
    if sigma == 0:
        return Smoothness(length / radius, 0.0)
    values = []
    for d in _draws(objective, sigma, pairs, seed, fresh=True):
        changes = [objective.gradient(w + u + way) - objective.gradient(w + way) for way in (d, -d)]
        values.append(float(along @ (changes[0] + changes[1])) / (2 * radius))
    return Smoothness(*mean_and_error(values))


def path_smoothness(objective: Objective, before: Tensor, after: Tensor) -> float:
    """The same between two points of a training path: |grad L(after) - grad L(before)| / |after - before|."""
    return float((objective.gradient(after) - objective.gradient(before)).norm() / (after - before).norm())


def bound(lipschitz: float, sigma: float) -> float:
    """The smoothness of L~ that Theorem 1 promises: 2G/sigma (by Lemma 2 of the paper's reference 39)."""
    return 2 * lipschitz / sigma if sigma > 0 else float("inf")


def _mean_gradient(objective: Objective, w: Tensor, sigma: float, pairs: int, seed: int) -> Tensor:
    if sigma == 0:
        return objective.gradient(w)
    total = torch.zeros_like(w)
    for d in _draws(objective, sigma, pairs, seed):
        total += objective.gradient(w + d) + objective.gradient(w - d)
    return total / (2 * pairs)


def _draws(objective: Objective, sigma: float, pairs: int, seed: int, fresh: bool = False) -> Iterator[Tensor]:
    """The same every time they are drawn."""
    numbers = generator("smoothing", seed, int(fresh))
    for _ in range(pairs):
        yield sigma * objective.gaussian(numbers)
