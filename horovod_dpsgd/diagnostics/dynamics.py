"""The paper's instruments of Section 2.2: effective learning rate, noise strength, weight variance.

With g the gradient of the whole training set at w_a, and g_a = n^-1 sum_j grad L_j(w_j) of this step's batches:

    alpha_e   = alpha g_a . g / |g|^2                                      effective learning rate
    Delta     = |alpha g_a - alpha_e g|^2 = alpha^2 |g_a|^2 - alpha_e^2 |g|^2    noise strength (eq. 4)
    Delta_S   the same with all gradients taken at w_a: the noise SSGD would have here
    Delta(2)  = alpha^2 |n^-1 sum_j [grad L_j(w_j) - grad L_j(w_a)]|^2      what differing weights add (eq. 5)
    sigma_w^2 = Tr C = n^-2 sum_j |w_j - w_a|^2                             weight variance

and, of what eq. 5 makes of Delta(2), with H the Hessian of the whole training set at w_a, and H_j that of a batch:

    Delta(2) ~ alpha^2 sum H_kl H_kl' C_ll' = alpha^2 n^-2 sum_j |H (w_j - w_a)|^2     the right side of eq. 5
    Delta(2) ~ alpha^2 |n^-1 sum_j H_j (w_j - w_a)|^2              its first order in w_j - w_a, batch by batch

The two differ: eq. 5 leaves out the products of two learners' deviations, which, as deviations add up to 0, cancel the
squares wherever all batches have the same Hessian. Then Delta(2) is of higher order, and eq. 5 is not near it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain

import torch
from torch import Tensor

from horovod_dpsgd.algorithms import Algorithm
from horovod_dpsgd.diagnostics.derivatives import gradient, hessian_vector, same_draws, twice_differentiable
from horovod_dpsgd.diagnostics.intervals import Estimate, SampleMean, groups_of_a_learner, jackknife
from horovod_dpsgd.learners import Learners

Batch = tuple[Tensor, ...]
Loss = Callable[[Batch], Tensor]


def measure(
    algorithm: Algorithm,
    loss: Loss,
    parts: Sequence[Batch],
    train_shard: Iterable[Batch],
    lr: float,
    sampled: bool = False,
    hessian: bool = False,
) -> dict[str, float]:
    """All of the above at this step, between begin_step and end_step. Collective; neither weights, p.grad, nor the
    random state change: a network with dropout has the masks at w_a that it has at w_j, and in the step itself.

    loss: the model's mean loss on a batch; parts: this learner's batch of this step, in the equal parts in which the
    step computes it; train_shard: this learner's share of the training set, in batches; lr: alpha. The sums over
    learners are exact.

    sampled: the shares together are only a random sample of the training set. Then what depends on g is an estimate,
    and NAME_low and NAME_high are its interval of 95 % confidence, over which samples are drawn (not over which batch
    the step took). A share should have `groups_of_a_learner` batches, of one size.

    hessian: also measure both forms of eq. 5, by n Hessian-vector products on every share; it is read n + 1 times.
    """
    us, parameters = algorithm.learners, algorithm.parameters
    groups = groups_of_a_learner(us.size) if sampled else 1

    def own_gradient(part: Batch) -> Tensor:
        return gradient(parameters, loss(part)).double()

    w_j = parameters.gather().double()
    with same_draws(parameters):
        g_j = _mean(parts, own_gradient)
    g_a = us.mean(g_j)
    with algorithm.averaged():
        w_a = parameters.gather().double()
        with same_draws(parameters):
            g_at_mean = us.mean(_mean(parts, own_gradient))
        whole = _loss_and_gradient(algorithm, loss, train_shard, groups)

        def of_the_whole(loss_and_g: Tensor) -> dict[str, float]:
            full_loss, g = float(loss_and_g[-1]), loss_and_g[:-1]
            alpha_e, delta = noise(g_a, g, lr)
            return {
                "effective_lr": alpha_e,
                "noise": delta,
                "noise_ssgd": noise(g_at_mean, g, lr)[1],
                "full_loss": full_loss,
                "full_gradient_norm": float(g.norm()),
            }

        measured = _estimated(whole, of_the_whole, us, sampled)
        if hessian:
            measured |= _expansion(algorithm, loss, parts, train_shard, w_j - w_a, lr, sampled)
    deviation = us.mean_of(float((w_j - w_a).square().sum()))
    squares = us.mean_of(float(g_j.square().sum()))
    return measured | {
        "noise_2": lr**2 * float((g_a - g_at_mean).square().sum()),
        "weight_variance": deviation / us.size,
        "consensus_distance": deviation**0.5,
        "gradient_diversity": diversity(squares, g_a, us.size),
    }


def noise(g_a: Tensor, g: Tensor, lr: float) -> tuple[float, float]:
    """The effective learning rate alpha_e and the noise strength Delta (eq. 4), from flat gradients [numel].

    Both are NaN where g is zero: the projection on it is not defined.
    """
    if not g.any():
        return math.nan, math.nan
    alpha_e = lr * float(g_a @ g) / float(g @ g)
    return alpha_e, float((lr * g_a - alpha_e * g).square().sum())


def diversity(mean_square: float, g_a: Tensor, size: int) -> float:
    """Gradient diversity sum_j |g_j|^2 / |sum_j g_j|^2 of n learners (Yin et al. 2018, Definition 1, with a learner's
    batch for a sample), from the mean of |g_j|^2 and the mean g_a of g_j.

    1 / n where all are equal, 1 where they are orthogonal, infinite where they cancel; NaN where all are zero.
    """
    square = size * float(g_a.square().sum())
    if square == 0:
        return math.nan if mean_square == 0 else math.inf
    return mean_square / square


def _mean(parts: Sequence[Batch], vector_of: Callable[[Batch], Tensor]) -> Tensor:
    total = vector_of(parts[0])
    for part in parts[1:]:
        total += vector_of(part)
    return total / len(parts)


def _estimated(
    mean: SampleMean, quantities: Callable[[Tensor], dict[str, float]], us: Learners, sampled: bool
) -> dict[str, float]:
    """Functions of a mean; where it is one of a sample, freed of bias and with their intervals."""
    found = quantities(mean.gather(us))
    if not sampled:
        return found
    own = [list(quantities(rest).values()) for rest in mean.without_each_group()]
    estimates = jackknife(list(found.values()), list(chain.from_iterable(us.gather(own))))
    return _with_intervals(dict(zip(found, estimates, strict=True)))


def _with_intervals(estimates: dict[str, Estimate]) -> dict[str, float]:
    flat = {name: estimate.value for name, estimate in estimates.items()}
    for name, estimate in estimates.items():
        flat |= {f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return flat


def _loss_and_gradient(algorithm: Algorithm, loss: Loss, train_shard: Iterable[Batch], groups: int) -> SampleMean:
    """Gradient and, last, the loss over the training set at the weights the model has now."""
    parameters = algorithm.parameters
    mean = SampleMean(groups, parameters.numel + 1, parameters.device)
    with same_draws(parameters):
        for batch in train_shard:
            value = loss(batch)
            g = gradient(parameters, value).double()
            mean.add(torch.cat([g, value.detach().double().reshape(1)]), len(batch[0]))
    return mean


def _expansion(
    algorithm: Algorithm,
    loss: Loss,
    parts: Sequence[Batch],
    train_shard: Iterable[Batch],
    own_deviation: Tensor,
    lr: float,
    sampled: bool,
) -> dict[str, float]:
    """Eq. 5 for the model at w_a, and the first order of Delta(2)."""
    us, parameters = algorithm.learners, algorithm.parameters

    def product(with_batch: Batch, vector: Tensor) -> Tensor:
        with twice_differentiable():
            return hessian_vector(parameters, loss(with_batch), vector).double()

    groups = groups_of_a_learner(us.size) if sampled else 1
    with same_draws(parameters):
        first_order = us.mean(_mean(parts, lambda part: product(part, own_deviation)))
    squares: list[float] = []  # |H dw_j|^2, by learner j
    squares_without: list[list[float]] = []  # the same without each of this learner's groups of samples
    for learner in range(us.size):
        deviation = own_deviation.clone()
        us.broadcast_(deviation, learner)
        mean = SampleMean(groups, parameters.numel, parameters.device)
        with same_draws(parameters):
            for each in train_shard:
                mean.add(product(each, deviation), len(each[0]))
        squares.append(float(mean.gather(us).square().sum()))
        squares_without.append([float(rest.square().sum()) for rest in mean.without_each_group()])
    factor = lr**2 / us.size**2
    found = {"noise_2_first_order": lr**2 * float(first_order.square().sum())}
    if not sampled:
        return found | {"noise_2_hessian": factor * sum(squares)}
    own = [[factor * sum(group)] for group in zip(*squares_without, strict=True)]
    estimate = jackknife([factor * sum(squares)], list(chain.from_iterable(us.gather(own))))[0]
    return found | _with_intervals({"noise_2_hessian": estimate})
