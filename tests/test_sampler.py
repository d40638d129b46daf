"""`Sampler`: all learners together take one order of samples, whatever their number and their start."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd.training.task import Part, Sampler

SAMPLES, BATCH, STEPS_PER_EPOCH = 103, 24, 4  # 7 samples are left out of each epoch


ORDERS = pytest.mark.parametrize("order", ["random", "sequential"])


def taken(size, rank, seed=0, start=0, stop=3 * STEPS_PER_EPOCH, samples=SAMPLES, batch=BATCH, order="random"):
    sampler = Sampler(samples, batch, size, seed, order)
    return [sampler.indices(Part(step, rank)).tolist() for step in range(start, stop)]


def flat(lists):
    return [*itertools.chain(*lists)]


def together(size, **keywords):
    """The global batch of every step: the learners' parts, in the order of their ranks."""
    parts = zip(*(taken(size, rank, **keywords) for rank in range(size)), strict=True)
    return [flat(step) for step in parts]


@ORDERS
@pytest.mark.parametrize("size", [2, 3, 4, 6, 8, 24])
def test_all_learners_together_take_what_one_would(size, order):
    assert together(size, order=order) == together(1, order=order)


@ORDERS
def test_an_epoch_is_a_permutation_of_the_samples_without_its_end(order):
    steps = together(1, order=order)
    for epoch in range(3):
        seen = flat(steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH])
        assert len(seen) == len(set(seen)) == STEPS_PER_EPOCH * BATCH
        assert set(seen) <= set(range(SAMPLES))


@ORDERS
def test_every_sample_is_taken_once_where_batches_fill_the_epoch(order):
    seen = flat(together(4, samples=96, stop=4, order=order))
    assert sorted(seen) == list(range(96))


def test_in_sequential_order_a_place_in_the_batch_goes_through_samples_that_follow_each_other():
    steps = taken(4, 2, samples=96, stop=4, order="sequential")  # places 12 to 17 of 24, with 4 samples each
    assert list(zip(*steps, strict=True)) == [tuple(range(first, first + 4)) for first in range(48, 72, 4)]


def test_in_sequential_order_an_epoch_begins_behind_the_last():
    steps = together(1, order="sequential")
    by_place = [flat(zip(*steps[epoch : epoch + 4], strict=True)) for epoch in (0, 4, 8)]
    assert flat(by_place) == [number % SAMPLES for number in range(3 * 96)]


def test_every_epoch_and_every_seed_has_an_order_of_its_own():
    def epochs(seed):
        steps = together(1, seed=seed)
        return {tuple(flat(steps[i : i + STEPS_PER_EPOCH])) for i in range(0, len(steps), STEPS_PER_EPOCH)}

    assert len(epochs(0) | epochs(1)) == 6


def test_every_sample_has_its_turn_to_be_left_out():
    missing = set()
    for epoch in range(200):  # each sample is left out with probability 7/103: once in 200 epochs all but surely
        seen = flat(together(1, start=epoch * STEPS_PER_EPOCH, stop=(epoch + 1) * STEPS_PER_EPOCH))
        missing |= set(range(SAMPLES)) - set(seen)
    assert missing == set(range(SAMPLES))


@ORDERS
@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 11, 12])
def test_a_resumed_run_takes_the_tail(start, order):
    for rank in range(3):
        assert taken(3, rank, start=start, order=order) == taken(3, rank, order=order)[start:]


@ORDERS
def test_parts_may_be_asked_for_in_any_order(order):
    sampler = Sampler(SAMPLES, BATCH, 2, 0, order)
    parts = [Part(step, part) for step in range(9) for part in range(2)]
    forwards = [sampler.indices(part) for part in parts]
    backwards = [sampler.indices(part) for part in reversed(parts)]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards), strict=True))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    local=st.integers(1, 9),
    size=st.integers(1, 6),
    more=st.integers(0, 60),
    seed=st.integers(0, 2**40),
    order=st.sampled_from(["random", "sequential"]),
    data=st.data(),
)
def test_any_shape_takes_what_one_learner_would_take(local, size, more, seed, order, data):
    batch = local * size
    start = data.draw(st.integers(0, 12))
    shape = {"samples": batch + more, "batch": batch, "seed": seed, "order": order}
    steps = together(size, start=start, stop=12, **shape)
    assert steps == together(1, stop=12, **shape)[start:]
    assert all(len(set(step)) == batch for step in steps)
