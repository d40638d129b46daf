"""One learner's mixing against the product of the mixing matrix with everyone's weights."""

from __future__ import annotations

import pytest
import torch

from horovod_dpsgd.gossip.slots import mix_into
from horovod_dpsgd.topology import TOPOLOGIES, create

SIZES = (1, 2, 3, 4, 5, 8, 16)
NUMEL = 528


def everyone(n, dtype=torch.float32, numel=NUMEL):
    """The weights of n learners, [n, numel], of magnitudes from 1e-3 to 1e3."""
    numbers = torch.Generator().manual_seed(n)
    scale = torch.logspace(-3, 3, numel, dtype=torch.float64)
    return (torch.randn(n, numel, dtype=torch.float64, generator=numbers) * scale).to(dtype)


def mixed(topology, step, rank, weights):
    """w_s of one learner, who sees the weights of its partners and of nobody else."""
    row = topology.row(step, rank)
    out = torch.full_like(weights[0], torch.nan)
    mix_into(out, [weights[k] for k in sorted(row)], [row[k] for k in sorted(row)])
    return out


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixing_matches_the_matrix_product(name, n, dtype):
    topology, weights = create(name, n, seed=2), everyone(n, dtype)
    tolerance = 4 * torch.finfo(dtype).eps * weights.double().abs().amax(0)  # of the largest weight that is added
    for step in range(3):
        product = (torch.from_numpy(topology.matrix(step))[:, :, None] * weights.double()).sum(1)
        for rank in range(n):
            error = (mixed(topology, step, rank, weights).double() - product[rank]).abs()
            assert (error <= tolerance).all()


@pytest.mark.parametrize("name", TOPOLOGIES)
@pytest.mark.parametrize("n", SIZES)
def test_learners_with_equal_rows_get_equal_bits(name, n):
    topology, weights = create(name, n, seed=2), everyone(n)
    for step in range(3):
        rows = [topology.row(step, rank) for rank in range(n)]
        results = [mixed(topology, step, rank, weights) for rank in range(n)]
        for j in range(n):
            assert all(torch.equal(results[j], results[k]) for k in range(j) if rows[j] == rows[k])


@pytest.mark.parametrize("name", ["matching", "exponential"])
def test_a_pair_s_two_learners_end_with_the_same_bits(name):
    topology, weights = create(name, 8, seed=2), everyone(8)
    for step in range(20):
        for j in range(8):
            (k,) = topology.partners(step, j)
            assert torch.equal(mixed(topology, step, j, weights), mixed(topology, step, k, weights))


def test_a_pair_s_mix_is_the_average_within_a_rounding_where_signs_agree():
    weights = everyone(2).abs()
    average = ((weights[0].double() + weights[1].double()) / 2).float()
    ours = mixed(create("matching", 2), 0, 0, weights)
    assert torch.allclose(ours, average, rtol=torch.finfo(torch.float32).eps, atol=0)


@pytest.mark.parametrize("row", [{2: 0.75, 0: 0.25}, {1: 1.0}, {0: 0.5, 1: 0.25, 2: 0.25}])
def test_any_row_of_weights_matches_its_sum(row):
    weights, out = everyone(3, torch.float64), torch.full((NUMEL,), torch.nan, dtype=torch.float64)
    mix_into(out, [weights[k] for k in row], list(row.values()))
    torch.testing.assert_close(out, sum(share * weights[k] for k, share in row.items()), rtol=1e-12, atol=1e-12)


def test_a_learner_that_sits_out_keeps_its_bits():
    topology, weights = create("matching", 3, seed=2), everyone(3)
    for step in range(10):
        (alone,) = (rank for rank in range(3) if not topology.partners(step, rank))
        assert torch.equal(mixed(topology, step, alone, weights), weights[alone])


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_equal_weights_stay_equal(name):
    weights = everyone(1).expand(5, -1)
    for rank in range(5):
        torch.testing.assert_close(mixed(create(name, 5), 0, rank, weights), weights[0], rtol=3e-7, atol=0)


@pytest.mark.parametrize("name", ["matching", "ring", "complete"])
def test_threads_do_not_change_the_bits(name):
    # Learners of one node may have unequal shares of its cores; threads split 100,016 weights at odd places.
    topology, weights = create(name, 6, seed=2), everyone(6, numel=100_016)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(mixed(topology, 0, 0, weights))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


def test_mixing_reads_its_inputs_only():
    topology, weights = create("random-ring", 5, seed=2), everyone(5)
    before = weights.clone()
    mixed(topology, 0, 2, weights)
    assert torch.equal(weights, before)
