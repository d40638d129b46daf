"""Theorem 1's quantities for losses whose smoothed forms are known in closed form."""

from __future__ import annotations

import math

import known_landscapes
import pytest
import torch
from known_landscapes import Kink, Quadratic, Waves, one_thread, symmetric  # noqa: F401

from horovod_dpsgd.diagnostics import smoothing

EIGENVALUES = [5.0, 3.0, 2.0, 1.0, 0.5, -1.0, -7.0]
SIGMA = 0.8


def test_a_smoothed_quadratic_is_raised_by_half_the_trace_and_not_bent():
    """E[L(w + d)] = L(w) + sigma^2 tr A / 2, with the same gradient: its noise cancels in the pairs."""
    matrix = symmetric(EIGENVALUES)
    objective = known_landscapes.objective(Quadratic(matrix))
    w = objective.weights()
    loss, error, gradient, gradient_error, _ = smoothing.smoothed(objective, w, SIGMA, 300, seed=0)
    assert abs(loss - objective.loss(w) - SIGMA**2 * sum(EIGENVALUES) / 2) < 3 * error < 1
    torch.testing.assert_close(gradient, objective.gradient(w), rtol=0, atol=1e-9)
    assert gradient_error < 1e-9


def test_a_quadratic_is_as_smooth_as_its_eigenvalue_of_largest_modulus_smoothed_or_not():
    objective = known_landscapes.objective(Quadratic(symmetric(EIGENVALUES)))
    w = objective.weights()
    for sigma in (0.0, SIGMA):
        found = smoothing.local_smoothness(objective, w, 0.1, sigma, pairs=3, iterations=40)
        assert found.value == pytest.approx(7, rel=1e-3)
        assert found.error < 1e-6


def test_waves_are_damped_as_they_should_be():
    objective = known_landscapes.objective(Waves(6))
    w, damping = objective.weights(), math.exp(-(SIGMA**2) / 2)
    smooth = smoothing.smoothed(objective, w + 0.3, SIGMA, 400, seed=1)
    assert abs(smooth.loss - 6 * damping * math.cos(0.3)) < 3 * smooth.loss_error < 0.2
    exact = -damping * math.sin(0.3) * known_landscapes.dense(objective.parameters, torch.ones_like(w))
    off = known_landscapes.dense(objective.parameters, smooth.gradient) - exact
    assert float(off.norm()) < 3 * smooth.gradient_error < 0.3
    assert smoothing.local_smoothness(objective, w, 1e-3).value == pytest.approx(1, rel=1e-3)
    found = smoothing.local_smoothness(objective, w, 1e-3, SIGMA, pairs=200, iterations=3)
    assert abs(found.value - damping) < 3 * found.error < 0.15


def test_a_kink_is_made_smooth_and_stays_under_the_bound_of_theorem_1():
    objective = known_landscapes.objective(Kink())
    w = objective.weights()
    assert smoothing.local_smoothness(objective, w + 1e-9, 0.01).value > 100  # as rough as one cares to look
    steepest = smoothing.smoothed(objective, w, SIGMA, 50, seed=0).steepest
    assert steepest == pytest.approx(1)
    found = smoothing.local_smoothness(objective, w, 0.3, SIGMA, pairs=400, iterations=2)
    exact = math.erf(0.3 / (SIGMA * math.sqrt(2))) / 0.3  # of E[sign(w + d)], from 0 to 0.3
    assert abs(found.value - exact) < 3 * found.error < 0.3
    assert found.value < smoothing.bound(steepest, SIGMA) == 2 / SIGMA


def test_a_loss_without_slope_has_smoothness_0():
    objective = known_landscapes.objective(Quadratic(torch.zeros(7, 7)))
    assert smoothing.local_smoothness(objective, objective.weights(), 0.1) == (0, 0)


def test_smoothness_along_a_path_is_that_of_the_eigenvector_it_follows():
    matrix = torch.tensor(EIGENVALUES).diag()
    objective = known_landscapes.objective(Quadratic(matrix))
    w = objective.weights()
    along = torch.zeros_like(w)
    along[0] = 0.2  # the first weight, whose eigenvalue is 5
    assert smoothing.path_smoothness(objective, w, w + along) == pytest.approx(5)


def test_without_spread_there_is_no_bound():
    assert smoothing.bound(3.0, 0.0) == math.inf
