"""LAMB against Algorithm 2 of You et al. 2020, written with numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from horovod_dpsgd.lamb import LAMB, without_adaptation

SHAPES = {"matrix": (4, 3), "vector": (5,), "scalar": (), "image": (2, 3, 2, 2), "zero": (3, 2), "empty": (0, 2)}
BETA1, BETA2, EPS = 0.8, 0.95, 1e-3


def algorithm_2(x, gradients, rates, decay, adapt):
    """The weights after these steps of one parameter: line by line as the paper has it."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, (g, lr) in enumerate(zip(gradients, rates, strict=True), 1):
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g**2
        r = (m / (1 - BETA1**t)) / (np.sqrt(v / (1 - BETA2**t)) + EPS)
        update = r + decay * x
        norm, update_norm = np.sqrt(np.sum(x**2)), np.sqrt(np.sum(update**2))
        ratio = norm / update_norm if adapt and norm > 0 and update_norm > 0 else 1.0
        x = x - lr * ratio * update
    return x


def start():
    numbers = np.random.default_rng(0)
    weights = {name: numbers.standard_normal(shape) for name, shape in SHAPES.items()}
    weights["zero"] = np.zeros(SHAPES["zero"])
    return weights


def gradients_at(step):
    numbers = np.random.default_rng(100 + step)
    return {name: numbers.standard_normal(shape) for name, shape in SHAPES.items()}


def optimizer_of(parameters, **numbers):
    kept = {"params": [parameters[name] for name in SHAPES if name != "vector"]}
    left_out = {"params": [parameters["vector"]], "weight_decay": 0.0, "adapt": False}
    return LAMB([kept, left_out], **({"betas": (BETA1, BETA2), "eps": EPS, "weight_decay": 0.1} | numbers))


def as_parameters(weights, dtype=torch.float64):
    return {name: nn.Parameter(torch.tensor(value, dtype=dtype)) for name, value in weights.items()}


def train(parameters, optimizer, rates, first=0):
    for step, lr in enumerate(rates, first):
        for group in optimizer.param_groups:
            group["lr"] = lr
        for name, gradient in gradients_at(step).items():
            parameters[name].grad = torch.tensor(gradient, dtype=parameters[name].dtype)
        optimizer.step()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_match_algorithm_2(dtype, tolerance, decay):
    weights, rates = start(), [0.1, 0.2, 0.05, 0.05, 0.3]
    parameters = as_parameters(weights, dtype)
    train(parameters, optimizer_of(parameters, lr=0.1, weight_decay=decay), rates)
    for name, x in weights.items():
        gradients = [gradients_at(step)[name] for step in range(len(rates))]
        kept = name != "vector"
        expected = algorithm_2(x, gradients, rates, decay if kept else 0.0, adapt=kept)
        torch.testing.assert_close(
            parameters[name].detach().double(), torch.tensor(expected), rtol=tolerance, atol=tolerance, msg=name
        )


def test_a_zero_gradient_moves_nothing_without_weight_decay():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    LAMB([p], lr=0.1, weight_decay=0.0).step()
    assert torch.equal(p, torch.ones(3))


def test_an_adapted_step_is_as_long_as_lr_times_the_weights():
    p = nn.Parameter(torch.full((4, 4), 2.0, dtype=torch.float64))  # of norm 8
    p.grad = torch.randn(4, 4, dtype=torch.float64)
    before = p.detach().clone()
    LAMB([p], lr=0.1).step()
    assert (p - before).norm().item() == pytest.approx(0.8)


def test_without_adaptation_it_is_adamw():
    parameters, same = as_parameters(start()), as_parameters(start())
    numbers = {"lr": 0.1, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.1}
    train(parameters, LAMB(parameters.values(), adapt=False, **numbers), [0.1, 0.2, 0.3])
    train(same, torch.optim.AdamW(same.values(), **numbers), [0.1, 0.2, 0.3])
    for name, p in parameters.items():
        torch.testing.assert_close(p, same[name], rtol=1e-12, atol=1e-12)


def test_a_loaded_state_goes_on_bit_for_bit():
    whole = as_parameters(start())
    train(whole, optimizer_of(whole, lr=0.1), [0.1] * 6)
    first = as_parameters(start())
    optimizer = optimizer_of(first, lr=0.1)
    train(first, optimizer, [0.1] * 3)
    second = {name: nn.Parameter(p.detach().clone()) for name, p in first.items()}
    other = optimizer_of(second, lr=0.7, weight_decay=0.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, other, [0.1] * 3, first=3)
    assert all(torch.equal(p, whole[name]) for name, p in second.items())


def test_param_groups_alone_make_the_same_optimizer():
    # as Horovod's DistributedOptimizer does
    parameters, same = as_parameters(start()), as_parameters(start())
    groups = optimizer_of(same, lr=0.1).param_groups
    train(parameters, optimizer_of(parameters, lr=0.1), [0.1] * 2)
    train(same, LAMB(groups), [0.1] * 2)
    assert all(torch.equal(p, same[name]) for name, p in parameters.items())


def test_a_parameter_without_a_gradient_stays():
    p, other = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    p.grad = torch.ones(2)
    optimizer = LAMB([p, other], lr=0.1)
    optimizer.step()
    assert torch.equal(other, torch.ones(2)) and not torch.equal(p, other)
    assert other not in optimizer.state
    p.grad = None
    optimizer.step()


def test_a_closure_is_called_once_with_gradients_enabled():
    p = nn.Parameter(torch.ones(2))
    optimizer = LAMB([p], lr=0.1)

    def closure():
        loss = p.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert torch.equal(p.grad, torch.full((2,), 2.0))


@pytest.mark.parametrize(
    ("numbers", "name"),
    [
        ({"lr": -0.1}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"lr": 0.1, "betas": (1.0, 0.9)}, "betas"),
        ({"lr": 0.1, "betas": (0.9, -0.1)}, "betas"),
        ({"lr": 0.1, "eps": -1.0}, "eps"),
        ({"lr": 0.1, "weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_a_number_out_of_its_range_is_named(numbers, name):
    with pytest.raises(ValueError, match=f"^{name} "):
        LAMB([nn.Parameter(torch.ones(2))], **numbers)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        LAMB(embedding.parameters(), lr=0.1).step()


def test_biases_and_normalization_weights_are_not_adapted():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[3].weight = model[2].weight
    model[0].weight.requires_grad_(False)
    optimizer = LAMB(without_adaptation(model), lr=0.1, weight_decay=0.3)
    adapted, others = optimizer.param_groups
    assert [(group["adapt"], group["weight_decay"]) for group in (adapted, others)] == [(True, 0.3), (False, 0.0)]
    assert [id(p) for p in adapted["params"]] == [id(model[2].weight)]
    vectors = [model[0].bias, model[1].weight, model[1].bias, model[2].bias]
    assert [id(p) for p in others["params"]] == [id(p) for p in vectors]


def test_a_model_of_matrices_has_one_group():
    assert len(without_adaptation(nn.Linear(3, 3, bias=False))) == 1
