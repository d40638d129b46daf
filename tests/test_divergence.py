"""`DivergenceWatch` against its definition, written out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd.training.divergence import AT_CHANCE, PATIENCE, SHORTEST_PATIENCE, DivergenceWatch

CHANCE = math.log(10)
TOTAL = 1000  # steps of the runs below, and the steps at chance that are forgiven
FORGIVEN = 200


def diverged_at(losses, warmup=0, total=TOTAL, chunk=10_000):
    """Where a watch that sees the losses in pieces of this size says the run was lost."""
    watch = DivergenceWatch(CHANCE, warmup, total)
    for first in range(0, len(losses), chunk):
        watch.see(first, losses[first : first + chunk])
    if len(losses) == total:
        watch.end(total)
    assert watch.diverged == (watch.at_step is not None)
    return watch.at_step


def by_definition(losses, warmup, total):
    """The first step that is not finite, or from which on losses were back at chance for too long, or to the end."""
    patience, limit = max(SHORTEST_PATIENCE, round(PATIENCE * total)), AT_CHANCE * CHANCE
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            return step
        since = step - patience
        left_chance = any(earlier < limit for earlier in losses[: max(since, 0)])
        if since >= warmup and left_chance and all(earlier >= limit for earlier in losses[since : step + 1]):
            return since
    if len(losses) == total:
        below = [step for step, loss in enumerate(losses) if loss < limit or step < warmup]
        since = below[-1] + 1 if below else 0
        return since if total - since >= SHORTEST_PATIENCE else None
    return None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_divergence_at_once_and_during_warmup(loss):
    assert diverged_at([0.5, 0.4, loss, 0.3]) == 2
    assert diverged_at([0.5, 0.4, loss, 0.3], warmup=10) == 2


def test_at_chance_for_more_than_a_fifth_of_the_run_is_divergence_from_its_first_step():
    assert diverged_at([1.0] * 6 + [CHANCE] * FORGIVEN) is None
    assert diverged_at([1.0] * 6 + [CHANCE] * (FORGIVEN + 1)) == 6


def test_one_loss_below_chance_starts_the_count_again():
    assert diverged_at([CHANCE] * FORGIVEN + [1.0] + [CHANCE] * FORGIVEN) is None
    assert diverged_at([CHANCE] * FORGIVEN + [1.0] + [CHANCE] * (FORGIVEN + 1)) == FORGIVEN + 1


def test_warmup_at_chance_is_no_divergence():
    assert diverged_at([CHANCE] * 500 + [1.0] * 8, warmup=500) is None
    assert diverged_at([1.0] + [CHANCE] * (500 + FORGIVEN), warmup=500) == 500


def test_a_run_that_has_not_left_chance_is_only_slow_until_it_ends():
    assert diverged_at([CHANCE] * (TOTAL - 1)) is None
    assert diverged_at([CHANCE] * (TOTAL - 1) + [1.0]) is None
    assert diverged_at([CHANCE] * TOTAL) == 0


def test_far_above_chance_counts_and_just_below_does_not():
    assert diverged_at([1e30] * TOTAL) == 0
    assert diverged_at([0.97 * CHANCE] * TOTAL) is None


def test_a_spike_that_is_over_in_time_is_forgiven():
    assert diverged_at([1.0] * 5 + [50.0] * FORGIVEN + [1.0] * 11) is None


def test_what_comes_after_divergence_changes_nothing():
    assert diverged_at([math.nan, 0.5, math.inf], chunk=1) == 0


def test_a_short_run_that_is_still_descending_has_not_diverged():
    # MNIST at rate 0.2 for 40 steps: 2.25 after ten, and falling. DESIGN section 3: *back* at chance, for good.
    assert diverged_at([CHANCE - 0.003 * step for step in range(40)], total=40) is None
    assert diverged_at([CHANCE], total=1) is None
    assert diverged_at([math.nan], total=1) == 0


def test_a_run_that_ends_at_chance_has_diverged():
    assert diverged_at([0.3] * 850 + [7.0] * 150) == 850


stretches = st.lists(
    st.tuples(st.sampled_from([0.1, 2.25, CHANCE, 2.3, 7.0]), st.sampled_from([1, 60, 99, 100, 101, 130])), max_size=6
)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    stretches=stretches,
    end=st.sampled_from([0.1, math.nan, math.inf]),
    warmup=st.integers(0, 150),
    total=st.integers(1, 700),
    chunk=st.integers(1, 50),
)
def test_any_losses_in_any_pieces_match_the_definition(stretches, end, warmup, total, chunk):
    losses = [loss for loss, steps in stretches for _ in range(steps)] + [end]
    expected = by_definition(losses, warmup, total)
    assert diverged_at(losses, warmup, total) == expected
    assert diverged_at(losses, warmup, total, chunk) == expected
