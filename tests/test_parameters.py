"""The flat buffer against the model's own parameters: shapes, strides, values, forward passes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from horovod_dpsgd.parameters import ALIGNMENT, FlatParameters, floating_buffers


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3))


class Odd(nn.Module):
    """Parameters: a scalar, an empty, a transposed one, one with gaps, a frozen one; a convolution."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(1)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.empty(0, 4))
        self.turned = nn.Parameter(torch.randn(6, 9).t())
        self.gaps = nn.Parameter(torch.randn(8, 10)[:, ::2])
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        self.to(dtype)

    def forward(self, x):
        rest = self.nothing.sum() + self.turned.sum() + self.gaps.square().sum() + self.frozen[0]
        return self.conv(x).mean((2, 3)) * self.scale + rest


def test_views_share_the_buffer_s_memory():
    parameters = FlatParameters(small_model())
    flat = torch.zeros(parameters.numel)
    for number, view in enumerate(parameters.views(flat), 1):
        view.fill_(number)
    offsets, sizes = parameters.offsets, [p.numel() for p in parameters.parameters]
    for number, (offset, size) in enumerate(zip(offsets, sizes, strict=True), 1):
        assert (flat[offset : offset + size] == number).all()
    assert sum(i * size for i, size in enumerate(sizes, 1)) == flat.sum()  # and nothing else was touched


def test_views_of_a_part_of_a_buffer_stay_in_that_part():
    parameters = FlatParameters(small_model())
    two_slots = torch.zeros(2, parameters.numel)
    for view in parameters.views(two_slots[1]):
        view.fill_(1)
    assert two_slots[0].sum() == 0
    assert two_slots[1].sum() == sum(p.numel() for p in parameters.parameters)


@pytest.mark.parametrize("model", [small_model(), Odd(), Odd(torch.float64)])
def test_gather_then_views_gives_the_parameters_back(model):
    parameters = FlatParameters(model)
    for view, p in zip(parameters.views(parameters.gather()), parameters.parameters, strict=True):
        assert torch.equal(view, p)


@pytest.mark.parametrize("model", [small_model(), Odd(), Odd(torch.float64)])
def test_layout_is_aligned_and_as_small_as_alignment_allows(model):
    parameters = FlatParameters(model)
    size = parameters.dtype.itemsize
    end = 0
    for offset, p in zip(parameters.offsets, parameters.parameters, strict=True):
        assert offset * size % ALIGNMENT == 0 and end <= offset * size < end + ALIGNMENT
        end = offset * size + p.numel() * size
    assert parameters.nbytes == parameters.numel * size
    assert parameters.nbytes % ALIGNMENT == 0 and end <= parameters.nbytes < end + ALIGNMENT


def test_padding_is_zero():
    parameters = FlatParameters(Odd())
    flat = parameters.gather()
    for view in parameters.views(flat):
        view.zero_()
    assert not flat.any()


def test_padding_is_zero_in_a_given_buffer_too():
    parameters = FlatParameters(Odd())
    flat = torch.full((parameters.numel,), 7.0)
    assert torch.equal(parameters.gather(out=flat), parameters.gather())


def test_gather_of_gradients_matches_the_gradients():
    model = small_model()
    parameters = FlatParameters(model)
    model(torch.randn(4, 5)).sum().backward()
    gradients = [p.grad for p in model.parameters()]
    for view, gradient in zip(parameters.views(parameters.gather(gradients)), gradients, strict=True):
        assert torch.equal(view, gradient)


def test_gather_into_a_buffer_matches_a_new_one():
    parameters = FlatParameters(Odd())
    out = torch.zeros(parameters.numel)
    assert parameters.gather(out=out) is out
    assert torch.equal(out, parameters.gather())


def test_gather_is_a_copy():
    model = small_model()
    flat = FlatParameters(model).gather()
    before = flat.clone()
    model[0].weight.data.add_(1)
    assert torch.equal(flat, before) and not flat.requires_grad


def test_tied_parameters_appear_once_and_frozen_ones_not():
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 11, bias=False))
    model[2].weight = model[0].weight
    model[1].bias.requires_grad_(False)
    parameters = FlatParameters(model)
    assert parameters.names == ["0.weight", "1.weight"]
    assert parameters.numel == 80 + 48  # 66 and 36 elements, in whole cache lines of 16
    parameters.point_to(parameters.views(torch.ones(parameters.numel)))
    assert model[2].weight is model[0].weight and (model[2].weight == 1).all()


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (8, 1, 3, 3), (8, 4, 1, 1), (1, 4, 3, 3)])
def test_channels_last_strides_are_kept(shape):
    model = nn.ParameterList([torch.randn(shape).to(memory_format=torch.channels_last)])
    parameters = FlatParameters(model)
    before = model[0].stride()
    parameters.point_to(parameters.views(parameters.gather()))
    assert model[0].stride() == before
    assert model[0].is_contiguous(memory_format=torch.channels_last)


def test_dense_strides_are_kept_and_others_become_contiguous():
    model = Odd()
    parameters = FlatParameters(model)
    parameters.point_to(parameters.views(parameters.gather()))
    assert model.turned.stride() == (1, 9)
    assert model.gaps.stride() == (5, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward_and_backward_are_equal_bit_for_bit_after_point_to(dtype):
    model = Odd(dtype)
    same = copy.deepcopy(model)
    x = torch.randn(2, 3, 8, 8, dtype=dtype)
    parameters = FlatParameters(model)
    parameters.point_to(parameters.views(parameters.gather()))
    ours, theirs = model(x), same(x)
    assert torch.equal(ours, theirs)
    ours.sum().backward()
    theirs.sum().backward()
    for p, q in zip(model.parameters(), same.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad) if p.requires_grad else p.grad is None


def test_point_to_copies_nothing():
    model = small_model()
    parameters = FlatParameters(model)
    flat = parameters.gather()
    parameters.point_to(parameters.views(flat))
    assert model[0].weight.data_ptr() == flat.data_ptr()
    flat.fill_(2)
    assert all((p == 2).all() for p in model.parameters())


def test_an_optimizer_steps_in_the_buffer_as_it_does_outside():
    model, same = small_model(), small_model()
    parameters = FlatParameters(model)
    flat = parameters.gather()
    ours = torch.optim.Adam(model.parameters())  # made before the parameters move
    theirs = torch.optim.Adam(same.parameters())
    parameters.point_to(parameters.views(flat))
    for step in range(3):
        x = torch.randn(4, 5, generator=torch.Generator().manual_seed(step))
        for net, optimizer in ((model, ours), (same, theirs)):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()
    assert torch.equal(flat, FlatParameters(same).gather())


def test_holding_gives_other_weights_for_a_while():
    model, other = small_model(), small_model()
    parameters = FlatParameters(model)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(-3)
    x, before, place = torch.randn(4, 5), parameters.gather(), model[0].weight.data_ptr()
    with parameters.holding(FlatParameters(other).gather()):
        assert torch.equal(model(x), other(x))
    assert torch.equal(parameters.gather(), before) and model[0].weight.data_ptr() == place


def test_holding_restores_after_an_exception_and_when_nested():
    model = small_model()
    parameters = FlatParameters(model)
    before = parameters.gather()

    def fail_inside():
        with parameters.holding(torch.ones(parameters.numel)):
            with parameters.holding(torch.zeros(parameters.numel)):
                assert not parameters.gather().any()
            assert (model[2].bias == 1).all()
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.equal(parameters.gather(), before)


@pytest.mark.parametrize(
    "change",
    [lambda m: m[2].double(), lambda m: m[2].half(), lambda m: m.bfloat16(), lambda m: m[2].to("meta")],
)
def test_mixed_or_unsupported_dtypes_and_devices_are_refused_by_name(change):
    model = small_model()
    change(model)
    with pytest.raises(ValueError, match=r"parameter (0|2)\.weight is .*float32"):
        FlatParameters(model)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(ValueError, match="no trainable parameters"):
        FlatParameters(small_model().requires_grad_(False))


def test_floating_buffers_are_batchnorm_s_statistics():
    norm = nn.BatchNorm1d(3)
    found = floating_buffers(norm)
    assert [b.data_ptr() for b in found] == [norm.running_mean.data_ptr(), norm.running_var.data_ptr()]
