"""`DivergenceWatch` against its definition, written out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd.training.divergence import AT_CHANCE, PATIENCE, DivergenceWatch

CHANCE = math.log(10)


def diverged_at(losses, warmup=0, total=20, chunks=(1000,)):
    """Where a watch that sees the losses in pieces of these sizes says the run was lost."""
    watch, first = DivergenceWatch(CHANCE, warmup, total), 0
    for size in chunks:
        watch.see(first, losses[first : first + size])
        first += size
    assert watch.diverged == (watch.at_step is not None)
    return watch.at_step


def by_definition(losses, warmup, total):
    """The first step that is not finite, or from which on losses stayed at chance for too long."""
    patience = max(1, round(PATIENCE * total))
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            return step
        since = step - patience
        if since >= warmup and all(earlier >= AT_CHANCE * CHANCE for earlier in losses[since : step + 1]):
            return since
    return None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence_at_once_and_during_warmup(loss):
    assert diverged_at([0.5, 0.4, loss, 0.3]) == 2
    assert diverged_at([0.5, 0.4, loss, 0.3], warmup=10) == 2


def test_at_chance_for_a_fifth_of_the_run_is_divergence_from_its_first_step():
    assert diverged_at([1.0] * 6 + [CHANCE] * 4) is None
    assert diverged_at([1.0] * 6 + [CHANCE] * 5) == 6


def test_one_loss_below_chance_starts_the_count_again():
    assert diverged_at([CHANCE] * 4 + [1.0] + [CHANCE] * 4) is None
    assert diverged_at([CHANCE] * 4 + [1.0] + [CHANCE] * 5) == 5


def test_warmup_at_chance_is_no_divergence():
    assert diverged_at([CHANCE] * 12 + [1.0] * 8, warmup=12) is None
    assert diverged_at([CHANCE] * 17, warmup=12) == 12


def test_far_above_chance_counts_and_just_below_does_not():
    assert diverged_at([1e30] * 20) == 0
    assert diverged_at([0.97 * CHANCE] * 20) is None


def test_a_spike_that_is_over_in_time_is_forgiven():
    assert diverged_at([1.0] * 5 + [50.0] * 4 + [1.0] * 11) is None


def test_what_comes_after_divergence_changes_nothing():
    assert diverged_at([math.nan, 0.5, math.inf], chunks=(1, 1, 1)) == 0


def test_a_run_of_one_step_can_diverge():
    assert diverged_at([math.nan], total=1) == 0
    assert diverged_at([CHANCE], total=1) is None


losses = st.lists(st.sampled_from([0.1, 2.0, 2.25, CHANCE, 7.0]), max_size=30) | st.lists(
    st.sampled_from([0.1, CHANCE, 2.3, 2.4, 3.0, 2.9, math.nan, math.inf]), max_size=30
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(losses=losses, warmup=st.integers(0, 12), total=st.integers(1, 60), size=st.integers(1, 7))
def test_any_losses_in_any_pieces_match_the_definition(losses, warmup, total, size):
    expected = by_definition(losses, warmup, total)
    assert diverged_at(losses, warmup, total) == expected
    assert diverged_at(losses, warmup, total, chunks=[size] * 30) == expected
