"""Mixing matrices against their closed forms, and random ones against the average over all permutations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms.adpsgd import initiates
from horovod_dpsgd.topology import TOPOLOGIES, create, second_eigenvalue

SIZES = (1, 2, 3, 4, 5, 7, 8, 16)
STEPS = range(40)
names = pytest.mark.parametrize("name", TOPOLOGIES)
sizes = pytest.mark.parametrize("n", SIZES)


@pytest.fixture(autouse=True)
def no_shared_draws():
    """What one object drew must not be what makes another agree with it."""
    topology._permutations.cache_clear()


@names
@sizes
def test_every_matrix_is_symmetric_and_doubly_stochastic(name, n):
    topo = create(name, n, seed=3)
    for step in STEPS:
        matrix = topo.matrix(step)
        assert (matrix >= 0).all() and np.array_equal(matrix, matrix.T)
        np.testing.assert_allclose(matrix.sum(0), 1, atol=1e-15)
        np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-15)


@names
@sizes
def test_partners_are_the_matrix_s_off_diagonal_entries_and_mutual(name, n):
    topo = create(name, n, seed=3)
    for step in STEPS:
        reads = topo.matrix(step) > 0
        for j in range(n):
            partners = topo.partners(step, j)
            assert sorted(partners) == [k for k in range(n) if k != j and reads[j, k]]
            assert all(j in topo.partners(step, k) for k in partners)


@names
def test_two_learners_draw_the_same_matrices_on_their_own(name):
    one = [create(name, 7, seed=11).matrix(step) for step in STEPS]
    topology._permutations.cache_clear()
    other = create(name, 7, seed=11)
    for step in reversed(STEPS):  # and in any order
        assert np.array_equal(one[step], other.matrix(step))


@pytest.mark.parametrize("name", [name for name, kind in TOPOLOGIES.items() if kind.relabelled])
def test_other_seeds_and_other_steps_draw_other_matrices(name):
    def drawn(seed, steps):
        return {create(name, 16, seed).matrix(step).tobytes() for step in steps}

    # There are 15!! = 2 million matchings of 16 learners, and far more rings: none should come twice.
    assert len(drawn(0, STEPS)) == len(STEPS)
    assert not drawn(0, STEPS) & drawn(1, STEPS)
    assert not drawn(0, STEPS) & drawn(0, range(1000, 1040))


@pytest.mark.parametrize("n", [3, 4, 5, 7, 8, 16])
def test_ring_second_eigenvalue_is_the_closed_form(n):
    ring = create("ring", n)
    expected = (1 + 2 * math.cos(2 * math.pi / n)) / 3
    assert second_eigenvalue(ring.matrix(0)) == pytest.approx(max(expected, 1 / 3 if n % 2 == 0 else 0), abs=1e-12)
    assert ring.consensus_contraction() == pytest.approx(second_eigenvalue(ring.matrix(0)) ** 2, abs=1e-12)


def test_the_numbers_for_16_learners():
    assert 1 - create("ring", 16).spectral_gap() == pytest.approx(0.9493, abs=5e-5)
    assert create("matching", 16).consensus_contraction() == pytest.approx(0.4667, abs=5e-5)


@sizes
def test_matching_contraction_is_the_closed_form(n):
    # T is a projection, so tr E[T'T] = tr T = n/2 for even n, (n+1)/2 for odd n; symmetry gives the rest.
    expected = 0 if n == 1 else 1 / 2 if n % 2 else 1 / 2 - 1 / (2 * (n - 1))
    assert create("matching", n).consensus_contraction() == pytest.approx(expected, abs=1e-12)


@sizes
def test_random_ring_contraction_is_the_closed_form(n):
    expected = 1 / 3 - 2 / (3 * (n - 1)) if n >= 3 else 0  # the diagonal of T'T is 3 (1/3)^2
    assert create("random-ring", n).consensus_contraction() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["matching", "random-ring"])
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_expected_gram_matches_the_average_over_all_permutations(name, n, monkeypatch):
    topo = create(name, n)
    orders = [list(order) for order in itertools.permutations(range(n))]
    expected = topo.expected_gram()
    monkeypatch.setattr(topo, "permutation", lambda step: orders[step])
    average = np.mean([topo.matrix(i).T @ topo.matrix(i) for i in range(len(orders))], axis=0)
    np.testing.assert_allclose(expected, average, atol=1e-12)


@pytest.mark.parametrize(("name", "n"), [("matching", 7), ("matching", 8), ("random-ring", 7), ("random-ring", 8)])
def test_expected_gram_matches_monte_carlo(name, n):
    topo, draws = create(name, n, seed=5), 1500
    average = np.mean([topo.matrix(step).T @ topo.matrix(step) for step in range(draws)], axis=0)
    # An entry lies in [0, 1], so its standard error is at most 1/2 / sqrt(1500) = 0.013.
    np.testing.assert_allclose(topo.expected_gram(), average, atol=0.05)


def test_odd_matching_leaves_out_exactly_one_and_all_equally_often():
    topo, steps, n = create("matching", 5, seed=0), 3000, 5
    alone = [[j for j in range(n) if not topo.partners(step, j)] for step in range(steps)]
    assert all(len(each) == 1 for each in alone)
    counts = np.bincount(np.concatenate(alone), minlength=n)
    deviation = math.sqrt(steps / n * (1 - 1 / n))
    assert np.abs(counts - steps / n).max() < 4 * deviation


def test_matching_pairs_all_equally_often():
    topo, steps, n = create("matching", 6, seed=0), 3000, 6
    partner = np.array([[topo.partners(step, j)[0] for j in range(n)] for step in range(steps)])
    chance = 1 / (n - 1)
    deviation = math.sqrt(steps * chance * (1 - chance))
    for j in range(n):
        counts = np.delete(np.bincount(partner[:, j], minlength=n), j)
        assert np.abs(counts - steps * chance).max() < 4 * deviation


@sizes
def test_complete_is_the_matrix_of_equal_entries(n):
    complete = create("complete", n)
    assert np.array_equal(complete.matrix(0), np.full((n, n), 1 / n))
    assert complete.consensus_contraction() == pytest.approx(0, abs=1e-12)


def exponential_period(n):
    topo = create("exponential", n)
    return np.linalg.multi_dot([np.eye(n), *(topo.matrix(step) for step in range(topo.period)), np.eye(n)])


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16])
def test_exponential_averages_exactly_over_a_period(n):
    assert create("exponential", n).period == max(1, round(math.log2(n)))
    np.testing.assert_allclose(exponential_period(n), np.full((n, n), 1 / n), atol=1e-15)


@pytest.mark.parametrize("n", [3, 5, 6, 7, 12])
def test_exponential_reaches_everyone_where_n_is_no_power_of_two(n):
    many = np.linalg.matrix_power(exponential_period(n), 200)
    np.testing.assert_allclose(many, np.full((n, n), 1 / n), atol=1e-12)
    assert create("exponential", n).consensus_contraction() < 1


@names
@sizes
def test_a_period_repeats(name, n):
    topo = create(name, n, seed=3)
    if not topo.relabelled:
        assert all(np.array_equal(topo.matrix(t), topo.matrix(t + topo.period)) for t in STEPS)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(TOPOLOGIES)),
    n=st.integers(1, 20),
    step=st.integers(0, 10**7),
    seed=st.integers(0, 2**40),
    numbers=st.integers(0, 2**32 - 1),
)
def test_mixing_keeps_the_mean_and_never_spreads_the_learners(name, n, step, seed, numbers):
    weights = np.random.default_rng(numbers).normal(3, 2, (n, 8))
    mixed = create(name, n, seed).matrix(step) @ weights
    np.testing.assert_allclose(mixed.mean(0), weights.mean(0), rtol=1e-12)
    assert (mixed.var(0) <= weights.var(0) * (1 + 1e-12)).all()


NODES = [(0, 0, 1, 1), (0, 1, 0, 1), (0, 0, 0, 1), (0, 1, 2), (0, 0, 1, 2, 2, 2, 1), (0, 0, 1, 1, 2, 2, 3, 3)]


@pytest.mark.parametrize("nodes", NODES)
def test_hierarchical_is_a_mean_in_nodes_around_a_matching_of_learners(nodes):
    """T = P M P, with P the means in the nodes and M as many pairs of two nodes' learners as there can be."""
    topo, n = create("hierarchical", len(nodes), seed=3, node_of=nodes), len(nodes)
    means = np.array([[(nodes[j] == nodes[k]) / nodes.count(nodes[j]) for k in range(n)] for j in range(n)])
    for step in STEPS:
        pairs = np.eye(n)
        for a in range(max(nodes) + 1):
            b = topo.partner_node(step, a)
            if b is not None and a < b:
                both = zip(*([k for k in range(n) if nodes[k] == node] for node in (a, b)), strict=False)
                for j, k in both:
                    pairs[[j, j, k, k], [j, k, j, k]] = 0.5
        np.testing.assert_allclose(topo.matrix(step), means @ pairs @ means, atol=1e-15)
        assert np.array_equal(topo.matrix(step), topo.matrix(step).T)


@pytest.mark.parametrize("nodes", NODES)
def test_hierarchical_expected_gram_matches_the_average_over_all_matchings(nodes, monkeypatch):
    topo = create("hierarchical", len(nodes), node_of=nodes)
    expected = topo.expected_gram()
    orders = [list(order) for order in itertools.permutations(range(max(nodes) + 1))]
    monkeypatch.setattr(topo.nodes, "permutation", lambda step: orders[step])
    average = np.mean([topo.matrix(i).T @ topo.matrix(i) for i in range(len(orders))], axis=0)
    np.testing.assert_allclose(expected, average, atol=1e-12)


@pytest.mark.parametrize("nodes", [(0, 2), (0, 0, 1), (1, 1, 1, 1)])
def test_hierarchical_refuses_nodes_that_do_not_fit_the_learners(nodes):
    with pytest.raises(ValueError, match="are not 0 to N-1 for each of 4 learners"):
        create("hierarchical", 4, node_of=nodes)


@names
def test_a_partner_is_drawn_among_the_partners_all_equally_often(name):
    topo, steps = create(name, 6, seed=1, node_of=(0, 0, 0, 1, 1, 1)), 2000
    counts = np.zeros(6)
    for step in range(steps):
        partner, partners = topo.partner(step, 2), topo.partners(step, 2)
        assert partner in partners if partners else partner is None
        if name in ("complete", "hierarchical"):  # where the partners are the same in every step
            counts[partner] += 1
    if counts.any():
        chance = 1 / 5
        assert np.abs(np.delete(counts, 2) - chance * steps).max() < 4 * math.sqrt(steps * chance * (1 - chance))


@names
def test_partners_are_drawn_from_seed_step_and_rank_alone(name):
    """Whatever was drawn before, and differently for other seeds, steps and learners."""
    forwards = [[create(name, 6, seed=5).partner(step, rank) for rank in range(6)] for step in range(200)]
    topo = create(name, 6, seed=5)
    for step in reversed(range(200)):
        assert [topo.partner(step, rank) for rank in reversed(range(6))] == forwards[step][::-1]
    if name == "complete":  # whose partners are all the others, in order, for everyone
        chosen = np.array([[k - (k > rank) for rank, k in enumerate(row)] for row in forwards])
        others = np.array([[create(name, 6, seed=6).partner(step, rank) for rank in range(6)] for step in range(200)])
        others -= others > np.arange(6)
        unlike = [(chosen[:, 0], chosen[:, 1]), (chosen[:-1, 0], chosen[1:, 0]), (chosen[:136, 0], chosen[64:, 0])]
        for one, other in [*unlike, (chosen[:, 0], others[:, 0])]:
            assert np.mean(one == other) < 0.4, "one in five agrees by chance"


def test_an_unknown_name_is_answered_with_all_names():
    with pytest.raises(ValueError, match="'torus'") as raised:
        create("torus", 4)
    assert all(name in str(raised.value) for name in TOPOLOGIES)


@names
def test_no_learners_at_all_is_refused(name):
    with pytest.raises(ValueError, match="not 0"):
        create(name, 0)


@pytest.mark.parametrize("n", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("name", ["matching", "exponential"])
def test_the_two_of_a_pair_begin_their_averages_in_turn(name, n):
    """Else a learner that is slow would be averaged with by some, and wait to be by others."""
    topo = create(name, n, seed=3)
    begun = np.zeros((n, n))
    for step in range(4000):
        for rank in range(n):
            partner = topo.partner(step, rank)
            if partner is not None:
                mine, theirs = (initiates(*pair, step // topo.period) for pair in ((rank, partner), (partner, rank)))
                assert mine != theirs
                begun[rank, partner] += mine
    pairs = begun + begun.T
    assert (pairs > 0).any()
    assert (abs(begun - begun.T) <= 1 + 4 * np.sqrt(pairs)).all()
