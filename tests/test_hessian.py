"""Eigenvalues, trace and density of Hessians against the whole matrix, for losses small enough to have one."""

from __future__ import annotations

import math
from functools import partial

import known_landscapes
import numpy as np
import pytest
import torch
from known_landscapes import Quadratic, one_thread, symmetric  # noqa: F401
from torch import nn
from torch.nn import functional as F

from horovod_dpsgd.diagnostics import hessian
from horovod_dpsgd.diagnostics.intervals import mean_and_error
from horovod_dpsgd.diagnostics.lanczos import lanczos
from horovod_dpsgd.diagnostics.objective import Objective

EIGENVALUES = [9.0, 4.0, 3.0, 1.0, 0.5, 0.0, -2.0]


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def quadratic():
    return known_landscapes.objective(Quadratic(symmetric(EIGENVALUES)))


def apply(objective):
    return partial(objective.hessian_vector, objective.weights())


class Net(nn.Module):
    """With BatchNorm, a tied weight, one without effect, and ReLU."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4)
        self.tied = self.first.weight
        self.unused = nn.Parameter(torch.ones(3))
        self.double()

    def forward(self, x):
        return self.last(F.relu(self.norm(self.first(x)), inplace=True)) @ self.tied.t()


def network():
    net = Net()
    batches = []
    for size in (5, 11, 2):
        batches.append((torch.randn(size, 4, dtype=torch.float64), torch.randint(0, 6, (size,))))
    return Objective(net, lambda batch: F.cross_entropy(net(batch[0]), batch[1]), batches)


def whole_hessian(objective):
    """Of the mean over samples, batch by batch."""
    total = 0
    for batch in objective.batches:
        total += len(batch[0]) * known_landscapes.hessian(objective.parameters, objective.loss_of(batch))
    return total.detach() / objective.samples


def test_a_product_is_that_with_the_whole_hessian():
    objective = network()
    v = objective.gaussian(numbers())
    product = objective.hessian_vector(objective.weights(), v)
    expected = whole_hessian(objective) @ known_landscapes.dense(objective.parameters, v)
    torch.testing.assert_close(known_landscapes.dense(objective.parameters, product), expected, rtol=1e-9, atol=1e-12)
    padding = objective.parameters.gather([torch.ones_like(p) for p in objective.parameters.parameters]) == 0
    assert padding.any() and not product[padding].any()


def test_batch_norm_keeps_its_statistics_and_the_model_its_weights_and_gradients():
    objective = network()
    state = [*objective.parameters.parameters, *objective.buffers]
    before = [tensor.detach().clone() for tensor in state]
    objective.hessian_vector(objective.weights() + 1, objective.gaussian(numbers()))
    objective.loss_and_gradient(objective.weights() + 1)
    assert all(torch.equal(tensor, saved) for tensor, saved in zip(state, before, strict=True))
    assert all(p.grad is None for p in objective.parameters.parameters)


def test_extreme_eigenvalues_of_a_network_match_the_whole_hessian():
    objective = network()
    exact = torch.linalg.eigvalsh(whole_hessian(objective)).flip(0)
    found = hessian.extreme_eigenvalues(apply(objective), objective.gaussian(numbers()), top=3, tolerance=1e-8)
    assert found.top == pytest.approx(exact[:3].tolist(), rel=1e-6)
    assert found.smallest == pytest.approx(exact[-1].item(), rel=1e-6)
    assert found.negative_share == pytest.approx(max(0.0, -float(exact[-1] / exact[0])), rel=1e-6)


def test_known_eigenvalues_are_found_and_the_iteration_ends_when_nothing_is_left(quadratic):
    found = hessian.extreme_eigenvalues(apply(quadratic), quadratic.gaussian(numbers()), top=7, tolerance=0)
    assert found.top == pytest.approx(EIGENVALUES, abs=1e-8)
    assert found.smallest == pytest.approx(-2)
    assert found.products == 7  # although 100 were allowed, and the vectors are longer
    assert found.negative_share == pytest.approx(2 / 9)


def test_the_error_is_a_bound_also_before_convergence():
    objective = known_landscapes.objective(Quadratic(symmetric(EIGENVALUES, seed=3)))
    for steps in range(1, 7):
        found = hessian.extreme_eigenvalues(apply(objective), objective.gaussian(numbers()), tolerance=0, steps=steps)
        assert min(abs(found.top[0] - value) for value in EIGENVALUES) <= found.error + 1e-9
        assert min(abs(found.smallest - value) for value in EIGENVALUES) <= found.error + 1e-9


def test_where_no_eigenvalue_is_positive_the_share_is_nan():
    assert math.isnan(hessian.Extremes([-1.0], -2.0, 0.0, 1).negative_share)


def test_a_loss_that_is_not_finite_is_an_error(quadratic):
    with pytest.raises(FloatingPointError):
        hessian.extreme_eigenvalues(lambda v: v * math.nan, quadratic.gaussian(numbers()))


def test_trace_probes_are_exact_for_a_diagonal_and_unbiased_for_others(quadratic):
    diagonal = known_landscapes.objective(Quadratic(torch.tensor(EIGENVALUES).diag()))
    assert hessian.trace_probe(apply(diagonal), diagonal.signs(numbers())) == pytest.approx(sum(EIGENVALUES))
    draw = numbers(5)
    probes = [hessian.trace_probe(apply(quadratic), quadratic.signs(draw)) for _ in range(400)]
    mean, error = mean_and_error(probes)
    assert abs(mean - sum(EIGENVALUES)) < 3 * error < 1.5


def test_a_probe_of_the_density_is_a_gauss_quadrature(quadratic):
    """Of m nodes: exact for the moments v . A^k v / v . v up to k = 2 m - 1."""
    v = quadratic.gaussian(numbers(2))
    ritz = hessian.density_probe(apply(quadratic), v, steps=3)
    matrix, dense = symmetric(EIGENVALUES), known_landscapes.dense(quadratic.parameters, v)
    for power in range(6):
        moment = dense @ torch.linalg.matrix_power(matrix, power) @ dense / (dense @ dense)
        assert float(ritz.weights @ ritz.values**power) == pytest.approx(float(moment), rel=1e-8)


def test_the_density_has_the_matrix_s_mass_where_its_eigenvalues_are(quadratic):
    draw = numbers(3)
    probes = [hessian.density_probe(apply(quadratic), quadratic.gaussian(draw), steps=10) for _ in range(120)]
    at = np.linspace(-4, 11, 3001)
    found = hessian.density([(ritz.values, ritz.weights) for ritz in probes], at, width=0.05)
    cell = at[1] - at[0]
    assert found.sum() * cell == pytest.approx(1, abs=1e-6)
    for eigenvalue in (9.0, 4.0, -2.0):
        assert found[abs(at - eigenvalue) < 0.25].sum() * cell == pytest.approx(1 / 7, abs=0.04)


def test_lanczos_makes_no_copies_of_eigenvalues():
    """Without re-orthogonalisation a dominant eigenvalue appears again and again."""
    matrix = symmetric([1e4, *np.linspace(0, 1, 199).tolist()], seed=1)
    *_, ritz = lanczos(lambda v: matrix @ v, torch.ones(200, dtype=torch.float64), 60)
    assert (ritz.values > 2).sum() == 1
    assert ritz.values[-1] == pytest.approx(1e4)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(8, 4, num_layers=2, bidirectional=True, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0].mean(1)


@pytest.mark.parametrize("make", [Attention, Recurrent])
def test_fused_layers_can_be_differentiated_twice(make):
    net = make()
    batch = torch.randn(3, 5, 8), torch.tensor([0, 3, 1])
    objective = Objective(net, lambda b: F.cross_entropy(net(b[0]), b[1]), [batch])
    w, v = objective.weights(), objective.gaussian(numbers())
    step = 1e-2
    differences = (objective.gradient(w + step * v) - objective.gradient(w - step * v)) / (2 * step)
    assert float((objective.hessian_vector(w, v) - differences).norm()) < 2e-3 * float(differences.norm())
