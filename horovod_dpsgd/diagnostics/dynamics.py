"""The paper's instruments of Section 2.2: effective learning rate, noise strength, weight variance.

With g the gradient of the whole training set at w_a, and g_a = n^-1 sum_j grad L_j(w_j) of this step's batches:

    alpha_e   = alpha g_a . g / |g|^2                                      effective learning rate
    Delta     = |alpha g_a - alpha_e g|^2 = alpha^2 |g_a|^2 - alpha_e^2 |g|^2    noise strength (eq. 4)
    Delta_S   the same with all gradients taken at w_a: the noise SSGD would have here
    Delta(2)  = alpha^2 |n^-1 sum_j [grad L_j(w_j) - grad L_j(w_a)]|^2      what differing weights add (eq. 5)
    sigma_w^2 = Tr C = n^-2 sum_j |w_j - w_a|^2                             weight variance
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from horovod_dpsgd.algorithms import Algorithm

Batch = tuple[Tensor, ...]


def measure(
    algorithm: Algorithm, loss: Callable[[Batch], Tensor], batch: Batch, train_shard: Iterator[Batch], lr: float
) -> dict[str, float]:
    """All of the above at this step, between begin_step and end_step. Collective; neither weights nor p.grad change.

    loss: the model's mean loss on a batch; batch: this learner's of this step; train_shard: this learner's share of the
    whole training set, in batches; lr: alpha. The sums over learners are exact: nothing here is sampled.
    """
    us, parameters = algorithm.learners, algorithm.parameters

    w_j = parameters.gather().double()
    g_a = us.mean(_gradient(algorithm, loss(batch)).double())
    with algorithm.averaged():
        w_a = parameters.gather().double()
        g_at_mean = us.mean(_gradient(algorithm, loss(batch)).double())
        full_loss, g = _full_gradient(algorithm, loss, train_shard)
    deviation = us.mean_of(float((w_j - w_a).square().sum()))
    alpha_e, delta = noise(g_a, g, lr)
    return {
        "effective_lr": alpha_e,
        "noise": delta,
        "noise_ssgd": noise(g_at_mean, g, lr)[1],
        "noise_2": lr**2 * float((g_a - g_at_mean).square().sum()),
        "weight_variance": deviation / us.size,
        "consensus_distance": deviation**0.5,
        "full_loss": full_loss,
        "full_gradient_norm": float(g.norm()),
    }


def noise(g_a: Tensor, g: Tensor, lr: float) -> tuple[float, float]:
    """The effective learning rate alpha_e and the noise strength Delta (eq. 4), from flat gradients [numel].

    Both are NaN where g is zero: the projection on it is not defined.
    """
    if not g.any():
        return math.nan, math.nan
    alpha_e = lr * float(g_a @ g) / float(g @ g)
    return alpha_e, float((lr * g_a - alpha_e * g).square().sum())


def _gradient(algorithm: Algorithm, value: Tensor) -> Tensor:
    """The gradient of a scalar at the model's weights, flat [numel]; p.grad and its hooks are left alone."""
    parameters = algorithm.parameters
    return parameters.gather(list(torch.autograd.grad(value, parameters.parameters, materialize_grads=True)))


def _full_gradient(
    algorithm: Algorithm, loss: Callable[[Batch], Tensor], train_shard: Iterator[Batch]
) -> tuple[float, Tensor]:
    """The loss and the gradient over the whole training set at the weights the model has now."""
    parameters = algorithm.parameters
    total = torch.zeros(parameters.numel + 2, dtype=torch.float64, device=parameters.device)
    for batch in train_shard:
        samples = len(batch[0])
        value = loss(batch)
        total[:-2] += samples * _gradient(algorithm, value)
        total[-2] += samples * value.detach()
        total[-1] += samples
    total = algorithm.learners.sum(total)
    return float(total[-2] / total[-1]), total[:-2] / total[-1]
