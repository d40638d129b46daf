"""The update by blocks against `optimizer.step()` on the same mixed weights: weights, state, and when not to do it."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from types import MethodType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim import SGD, Adam, AdamW, lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from horovod_dpsgd.algorithms.blockwise import blockwise, cut
from horovod_dpsgd.lamb import LAMB
from horovod_dpsgd.parameters import FlatParameters

OPTIMIZERS = {
    "sgd": SGD,
    "sgd, weight decay": partial(SGD, weight_decay=0.1),
    "momentum": partial(SGD, momentum=0.9),
    "nesterov": partial(SGD, momentum=0.9, nesterov=True, weight_decay=0.1),
    "maximize": partial(SGD, momentum=0.9, maximize=True),
    "adam": Adam,
    "adam, weight decay": partial(Adam, betas=(0.8, 0.9), weight_decay=0.1, maximize=True),
    "adam, fused": partial(Adam, fused=True),
    "adamw": partial(AdamW, weight_decay=0.1),
    "lamb": partial(LAMB, weight_decay=0.1),
}
BLOCKS = (16, 64, 10**6)  # elements: a cache line of float32; parameters of all sizes around it; everything
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
default_and_double = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_optimizer = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)


class Net(nn.Module):
    """Parameters: larger than most blocks, smaller, a scalar, an empty, a transposed, a tied, a frozen one."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.large, self.norm = nn.Linear(23, 31), nn.BatchNorm1d(31)
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.turned = nn.Parameter(torch.randn(17, 13).t())
        self.tied = self.large.weight
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.small = nn.Linear(2, 3)


class Learner:
    """A net that is mixed, each step, with a partner who stands still, and updated from given gradients."""

    def __init__(self, make, dtype=torch.float64, block=64):
        torch.manual_seed(0)
        self.net = Net().to(dtype)
        self.parameters = FlatParameters(self.net)
        self.slots = [self.parameters.gather(), torch.full((self.parameters.numel,), torch.nan, dtype=dtype)]
        self.partner = 3 * self.slots[0]
        self.views = [self.parameters.views(slot) for slot in self.slots]
        self.parameters.point_to(self.views[0])
        weights = list(self.net.parameters())  # groups in another order than the flat buffer
        groups = [
            {"params": [p for p in reversed(weights) if p.ndim < 2], "lr": 0.05, "weight_decay": 0.0},
            {"params": [p for p in weights if p.ndim >= 2]},
        ]
        self.optimizer = make(groups, lr=0.1)
        self.update = blockwise(self.optimizer, self.parameters, block)

    def give_gradients(self, step, without=()):
        numbers = torch.Generator().manual_seed(step)
        for index, p in enumerate(self.parameters.parameters):
            gradient = torch.randn(p.shape, dtype=p.dtype, generator=numbers)
            p.grad = None if index in without else torch.empty_like(p).copy_(gradient)

    def end_step(self, blocks):
        own, mixed = self.slots
        self.slots.reverse()
        self.views.reverse()
        self.parameters.point_to(self.views[0])
        if not blocks:
            torch.lerp(own, self.partner, 0.5, out=mixed)
            return self.optimizer.step()
        assert self.update.applies()
        self.update.begin()
        parts = [tensor.split(self.update.sizes) for tensor in (own, self.partner, mixed)]
        for index, (mine, theirs, block) in enumerate(zip(*parts, strict=True)):
            torch.lerp(mine, theirs, 0.5, out=block)
            self.update(index, block)
        return self.update.end()

    def train(self, blocks, first=0, steps=10):
        """Steps with another learning rate each; blocks: whether by blocks, or a function of the step."""
        for step in range(first, first + steps):
            for number, group in enumerate(self.optimizer.param_groups):
                group["lr"] = 0.1 / (1 + step + number)
            self.give_gradients(step)
            self.end_step(blocks(step) if callable(blocks) else blocks)
        return self


def assert_same(ours, theirs):
    """Equal weights and equal optimizer state to rounding; equal kinds, shapes and strides of what is in the state."""
    tolerance = TOLERANCE[ours.slots[0].dtype]
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    close(ours.slots[0], theirs.slots[0])
    mine, other = ours.optimizer.state_dict(), theirs.optimizer.state_dict()
    assert mine["param_groups"] == other["param_groups"]
    assert mine["state"].keys() == other["state"].keys()
    for number, state in mine["state"].items():
        assert state.keys() == other["state"][number].keys()
        for key, value in state.items():
            close(value, other["state"][number][key], check_stride=True)


# The same as optimizer.step()


@every_optimizer
@default_and_double
@pytest.mark.parametrize("block", BLOCKS)
def test_blocks_do_what_step_does(make, dtype, block):
    assert_same(Learner(make, dtype, block).train(blocks=True), Learner(make, dtype).train(blocks=False))


@every_optimizer
def test_blocks_and_step_may_take_turns(make):
    apart = Learner(make).train(blocks=False)
    assert_same(Learner(make).train(blocks=lambda step: step % 3 == 0), apart)
    assert_same(Learner(make).train(blocks=lambda step: step % 3 != 0), apart)


@every_optimizer
@pytest.mark.parametrize("blocks_first", [True, False])
def test_each_goes_on_from_the_other_s_state_dict(make, blocks_first):
    before, after = Learner(make).train(blocks=blocks_first, steps=4), Learner(make)
    after.train(blocks=not blocks_first, first=50, steps=2)  # so that there is older state to be replaced
    for mine, theirs in zip(after.slots, before.slots, strict=True):
        mine.copy_(theirs)
    after.optimizer.load_state_dict(copy.deepcopy(before.optimizer.state_dict()))
    after.train(blocks=not blocks_first, first=4, steps=6)
    assert_same(after, Learner(make).train(blocks=False))


@every_optimizer
def test_a_parameter_without_a_gradient_is_mixed_only(make):
    ours, theirs = Learner(make), Learner(make)
    for step in range(6):
        without = {step, step + 1, 9}  # another pair each step, and one never has one
        for learner, blocks in ((ours, True), (theirs, False)):
            learner.give_gradients(step, without)
            learner.end_step(blocks)
    assert_same(ours, theirs)
    for p in ours.parameters.parameters:
        p.grad = None
    expected = torch.lerp(ours.slots[0], ours.partner, 0.5)
    ours.end_step(blocks=True)
    assert torch.equal(ours.slots[0], expected)


@pytest.mark.parametrize("name", ["nesterov", "adam", "lamb"])
@pytest.mark.parametrize("first", ["blocks", "step"])
def test_gradients_may_have_other_strides(name, first):
    ours, theirs = (Learner(OPTIMIZERS[name]) for _ in range(2))
    for step in range(4):
        for learner in (ours, theirs):
            learner.give_gradients(step)
            learner.net.turned.grad = learner.net.turned.grad.contiguous()
            learner.net.conv.weight.grad = learner.net.conv.weight.grad.contiguous()
            learner.net.small.weight.grad = torch.ones(()).double().expand(3, 2)
            learner.end_step(blocks=learner is ours and (step > 0 or first == "blocks"))
    torch.testing.assert_close(ours.slots[0], theirs.slots[0], rtol=1e-12, atol=1e-12)


def test_hyper_parameters_may_change_while_training():
    def train(blocks):
        learner = Learner(partial(SGD, momentum=0.0))
        for changes in ({}, {"momentum": 0.9}, {"weight_decay": 0.3, "nesterov": True}, {"momentum": 0.5}):
            learner.optimizer.param_groups[1].update(changes)
            learner.train(blocks, steps=2)
        return learner

    assert_same(train(blocks=True), train(blocks=False))


def test_an_adam_with_decoupled_weight_decay_is_adamw():
    try:
        Adam([torch.zeros(1)], decoupled_weight_decay=True)
    except TypeError:
        pytest.skip("decoupled_weight_decay came with torch 2.7")
    make = partial(Adam, weight_decay=0.1, decoupled_weight_decay=True)
    assert_same(Learner(make).train(blocks=True), Learner(make).train(blocks=False))


# Blocks


@given(
    extents=st.lists(st.integers(0, 12).map(lambda lines: 16 * lines), max_size=12),
    block=st.integers(1, 8).map(lambda lines: 16 * lines),
    whole=st.booleans(),
)
def test_pieces_cover_all_elements_once_and_in_order(extents, block, whole):
    blocks = cut(extents, block, whole)
    covered = [number for pieces in blocks for number, size in pieces for _ in range(size)]
    assert covered == [number for number, size in enumerate(extents) for _ in range(size)]
    sizes = [sum(size for _, size in pieces) for pieces in blocks]
    if whole:
        parts = [number for pieces in blocks for number, _ in pieces]
        assert len(set(parts)) == len(parts)
        assert all(size <= block or len(pieces) == 1 for size, pieces in zip(sizes, blocks, strict=True))
    else:
        assert all(size == block for size in sizes[:-1]) and all(0 < size <= block for size in sizes[-1:])


@pytest.mark.parametrize("make", [SGD, LAMB])
@pytest.mark.parametrize("block", [1, 16, 50, 64, 10**6])
def test_blocks_are_whole_cache_lines_and_add_up(make, block):
    learner = Learner(make, block=block)
    assert sum(learner.update.sizes) == learner.parameters.numel
    assert all(size > 0 and size * 8 % 64 == 0 for size in learner.update.sizes)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_element_is_updated_once_and_padding_never(block):
    learner = Learner(SGD, block=block)
    for group in learner.optimizer.param_groups:
        group["lr"] = 1.0
    learner.give_gradients(0)
    flat = torch.zeros(learner.parameters.numel, dtype=torch.float64)
    learner.update.begin()
    for index, part in reversed(list(enumerate(flat.split(learner.update.sizes)))):
        learner.update(index, part)
    learner.update.end()
    gradients = [p.grad for p in learner.parameters.parameters]
    assert torch.equal(flat, -learner.parameters.gather(gradients))


# When it must not be used


class Mine(SGD):
    pass


def nothing(*_):
    return None


@pytest.mark.parametrize("make", [Mine, torch.optim.RMSprop, torch.optim.NAdam])
def test_other_optimizers_are_refused(make):
    assert Learner(make).update is None


def test_weights_elsewhere_than_on_the_cpu_are_refused():
    model = nn.Linear(2, 3, device="meta")
    assert blockwise(SGD(model.parameters()), FlatParameters(model)) is None


@pytest.mark.parametrize(
    "register",
    [
        lambda optimizer: optimizer.register_step_pre_hook(nothing),
        lambda optimizer: optimizer.register_step_post_hook(nothing),
        lambda optimizer: register_optimizer_step_pre_hook(nothing),
        lambda optimizer: register_optimizer_step_post_hook(nothing),
    ],
)
def test_hooks_are_called_by_step_only(register):
    learner = Learner(Adam).train(blocks=True, steps=1)
    handle = register(learner.optimizer)
    assert not learner.update.applies()
    handle.remove()
    assert learner.update.applies()


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (partial(SGD, momentum=0.9), {"dampening": 0.1}),
        (SGD, {"lr": torch.tensor(0.1)}),
        (SGD, {"weight_decay": torch.tensor(0.1)}),
        (SGD, {"differentiable": True}),
        (Adam, {"amsgrad": True}),
        (Adam, {"capturable": True}),
        (Adam, {"differentiable": True}),
        (AdamW, {"betas": (torch.tensor(0.9), 0.999)}),
        (LAMB, {"lr": torch.tensor(0.1)}),
    ],
)
def test_hyper_parameters_no_kernel_takes_are_left_to_step(make, changes):
    learner = Learner(make).train(blocks=True, steps=1)
    group = learner.optimizer.param_groups[1]
    before = dict(group)
    group.update(changes)
    assert not learner.update.applies()
    group.update(before)
    assert learner.update.applies()


def test_gradients_no_kernel_takes_are_left_to_step():
    learner = Learner(SGD).train(blocks=True, steps=1)
    learner.net.frozen.grad = torch.zeros(5, dtype=torch.float64)  # not in the flat buffer
    assert not learner.update.applies()
    learner.net.frozen.grad = None
    assert learner.update.applies()
    learner.net.turned.grad = learner.net.turned.grad.to_sparse()
    assert not learner.update.applies()


def test_loss_scaling_is_left_to_step():
    learner = Learner(partial(SGD, fused=True)).train(blocks=True, steps=1)
    learner.optimizer.grad_scale = torch.tensor(2.0)
    assert not learner.update.applies()


def test_a_replaced_step_is_called():
    learner = Learner(SGD).train(blocks=True, steps=1)
    learner.optimizer.step = MethodType(nothing, learner.optimizer)
    assert not learner.update.applies()
    lr_scheduler.StepLR(learner.optimizer, 1)  # wraps what it finds
    assert not learner.update.applies()
    del learner.optimizer.step
    assert learner.update.applies()


def test_schedulers_work_and_do_not_warn():
    ours, theirs = Learner(Adam), Learner(Adam)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for learner in (ours, theirs):
            schedulers = [lr_scheduler.StepLR(learner.optimizer, 2), lr_scheduler.ExponentialLR(learner.optimizer, 0.9)]
            for step in range(5):
                learner.give_gradients(step)
                learner.end_step(blocks=learner is ours)
                for scheduler in schedulers:
                    scheduler.step()
    assert_same(ours, theirs)


# What else a step leaves behind


def test_autograd_sees_that_the_weights_changed():
    learner = Learner(SGD)
    output = (learner.net.turned**2).sum()
    learner.give_gradients(0)
    learner.end_step(blocks=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


def test_gradients_can_be_freed_after_a_step():
    learner = Learner(Adam).train(blocks=True, steps=2)
    memory = StorageWeakRef(learner.net.turned.grad.untyped_storage())
    assert not memory.expired()
    learner.optimizer.zero_grad()
    assert memory.expired()
