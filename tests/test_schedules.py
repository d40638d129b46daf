"""Learning rates against PyTorch's schedulers and against the rates that the paper states."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.optim import lr_scheduler

import benchmarks.cv
from horovod_dpsgd.schedules import (
    constant,
    cosine_decay,
    exponential_decay,
    linear_warmup,
    step_decay,
)
from horovod_dpsgd.training import recipe as recipes


def paper(name, batch):
    return recipes.load(name, Path(benchmarks.cv.__file__).parent / "recipes", {"batch_size": batch})


def torch_rates(lr, steps, make):
    """The rates that one of PyTorch's schedulers gives at steps 0, 1, ..., steps - 1."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def rates(schedule, steps):
    return [schedule(step) for step in range(steps)]


def test_cosine_matches_torch():
    theirs = torch_rates(0.4, 101, lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, T_max=100))
    assert rates(cosine_decay(0.4, 0, 100), 101) == pytest.approx(theirs, abs=1e-12)


def test_cosine_after_warmup_matches_torch():
    def make(optimizer):
        warmup = lr_scheduler.LinearLR(optimizer, start_factor=1 / 20, total_iters=19)
        cosine = lr_scheduler.CosineAnnealingLR(optimizer, T_max=80)
        return lr_scheduler.SequentialLR(optimizer, [warmup, cosine], milestones=[20])

    ours = linear_warmup(cosine_decay(0.4, 20, 100), 20)
    assert rates(ours, 100) == pytest.approx(torch_rates(0.4, 100, make), abs=1e-12)


def test_cosine_stays_within_its_ends():
    schedule = cosine_decay(0.4, 10, 30)
    assert rates(schedule, 11) == [0.4] * 11
    assert schedule(20) == pytest.approx(0.2)
    assert [schedule(step) for step in (30, 31, 10**9)] == [0, 0, 0]


@pytest.mark.parametrize("milestones", [[30, 60, 90], [0, 1], [5, 5, 9], [90, 60, 30]])
def test_step_decay_matches_torch(milestones):
    theirs = torch_rates(0.32, 120, lambda optimizer: lr_scheduler.MultiStepLR(optimizer, sorted(milestones), 0.1))
    assert rates(step_decay(0.32, milestones, 0.1), 120) == pytest.approx(theirs, rel=1e-12)


def test_exponential_decay_matches_torch_step_lr():
    def make(optimizer):
        return lr_scheduler.StepLR(optimizer, step_size=7, gamma=math.sqrt(0.5))

    ours = exponential_decay(0.8, start=7, every=7)
    assert rates(ours, 70) == pytest.approx(torch_rates(0.8, 70, make), rel=1e-12)


@pytest.mark.parametrize("start_lr", [0.0, 0.01, 0.1])
def test_warmup_matches_torch_linear_lr(start_lr):
    steps, lr = 25, 0.32
    ours = linear_warmup(constant(lr), steps, start_lr)

    def make(optimizer):  # LinearLR starts at its first factor, ours one bit above start_lr
        first = (start_lr + (lr - start_lr) / steps) / lr
        return lr_scheduler.LinearLR(optimizer, start_factor=first, total_iters=steps - 1)

    assert rates(ours, 40) == pytest.approx(torch_rates(lr, 40, make), rel=1e-12)


def test_warmup_is_goyal_s_formula():
    base, target, steps = 0.1, 3.2, 5 * 156
    ours = rates(linear_warmup(constant(target), steps, base), steps)
    assert ours == pytest.approx([base + (target - base) * count / steps for count in range(1, steps + 1)], rel=1e-12)


def test_no_warmup_is_the_schedule_itself():
    schedule = step_decay(0.3, [4])
    assert rates(linear_warmup(schedule, 0, start_lr=0.1), 9) == rates(schedule, 9)


def test_linear_scaling_gives_the_paper_s_rates():
    assert paper("imagenet-low-rate", 8192).lr == pytest.approx(0.32)  # AlexNet
    assert [paper("imagenet", batch).lr for batch in (2048, 4096, 8192)] == pytest.approx([0.8, 1.6, 3.2])
    assert [paper("cifar10", batch).lr for batch in (1024, 8192)] == pytest.approx([0.8, 6.4])


def test_alexnet_at_batch_8192_follows_the_paper():
    epoch = 1_281_167 // 8192
    schedule = paper("imagenet-low-rate", 8192).schedule(1_281_167)
    assert schedule(0) == pytest.approx(0.01 + 0.31 / (5 * epoch))
    assert schedule(5 * epoch // 2 - 1) == pytest.approx((0.01 + 0.32) / 2)
    for first, last, rate in [(5, 30, 0.32), (30, 60, 0.032), (60, 90, 0.0032), (90, 100, 0.00032)]:
        assert [schedule(first * epoch), schedule(last * epoch - 1)] == pytest.approx([rate, rate], rel=1e-12)
    assert schedule(5 * epoch - 1) == pytest.approx(0.32)


def speech(epoch):
    return linear_warmup(exponential_decay(0.8, start=10 * epoch, every=epoch), 10 * epoch)


def test_speech_anneals_as_the_paper_does():
    epoch = 100
    schedule = speech(epoch)
    for number in range(10):
        rate = 0.8 * math.sqrt(0.5) ** (number + 1)
        first, last = (10 + number) * epoch, (11 + number) * epoch - 1
        assert [schedule(first), schedule(last)] == pytest.approx([rate, rate], rel=1e-12)
    assert schedule(20 * epoch - 1) == pytest.approx(0.8 / 32, rel=1e-12)


def test_speech_warms_up_to_the_paper_s_peak():
    epoch = 100
    schedule = speech(epoch)
    assert schedule(5 * epoch - 1) == pytest.approx(0.4)
    assert schedule(10 * epoch - 1) == pytest.approx(0.8)
    assert max(rates(schedule, 20 * epoch)) == pytest.approx(0.8)
