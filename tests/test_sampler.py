"""`Sampler`: all learners together take one order of samples, whatever their number and their start."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd.training.task import Part, Sampler

SAMPLES, BATCH, STEPS_PER_EPOCH = 103, 24, 4  # 7 samples are left out of each epoch


def taken(size, rank, seed=0, start=0, stop=3 * STEPS_PER_EPOCH, samples=SAMPLES, batch=BATCH):
    sampler = Sampler(samples, batch, size, seed)
    return [sampler.indices(Part(step, rank)).tolist() for step in range(start, stop)]


def flat(lists):
    return [*itertools.chain(*lists)]


def together(size, **keywords):
    """The global batch of every step: the learners' parts, in the order of their ranks."""
    parts = zip(*(taken(size, rank, **keywords) for rank in range(size)), strict=True)
    return [flat(step) for step in parts]


@pytest.mark.parametrize("size", [2, 3, 4, 6, 8, 24])
def test_all_learners_together_take_what_one_would(size):
    assert together(size) == together(1)


def test_an_epoch_is_a_permutation_of_the_samples_without_its_end():
    steps = together(1)
    for epoch in range(3):
        seen = flat(steps[epoch * STEPS_PER_EPOCH : (epoch + 1) * STEPS_PER_EPOCH])
        assert len(seen) == len(set(seen)) == STEPS_PER_EPOCH * BATCH
        assert set(seen) <= set(range(SAMPLES))


def test_every_sample_is_taken_once_where_batches_fill_the_epoch():
    seen = flat(together(4, samples=96, stop=4))
    assert sorted(seen) == list(range(96))


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


@pytest.mark.parametrize("start", [0, 1, 3, 4, 5, 11, 12])
def test_a_resumed_run_takes_the_tail(start):
    for rank in range(3):
        assert taken(3, rank, start=start) == taken(3, rank)[start:]


def test_parts_may_be_asked_for_in_any_order():
    sampler = Sampler(SAMPLES, BATCH, 2, 0)
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
    data=st.data(),
)
def test_any_shape_takes_what_one_learner_would_take(local, size, more, seed, data):
    batch = local * size
    start = data.draw(st.integers(0, 12))
    shape = {"samples": batch + more, "batch": batch, "seed": seed}
    steps = together(size, start=start, stop=12, **shape)
    assert steps == together(1, stop=12, **shape)[start:]
    assert all(len(set(step)) == batch for step in steps)
