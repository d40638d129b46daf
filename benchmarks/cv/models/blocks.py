"""What the CIFAR models share: a model's shape, convolutions with BatchNorm, residuals, squeeze-and-excitation, heads.

Batch normalization: Ioffe and Szegedy 2015 (arXiv 1502.03167). Initial weights are PyTorch's own unless a file says
otherwise.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

Activation = Callable[[], nn.Module]


class Shape(NamedTuple):
    """What every model is made for: classes, a factor on the numbers of channels, and images [channels, size, size]."""

    classes: int
    width: float
    image_size: int
    channels: int

    def scaled(self, channels: int, multiple: int = 4) -> int:
        """`channels` times the width, as a multiple of what the layers need to divide it by; never 0."""
        return multiple * max(1, math.floor(channels * self.width / multiple + 0.5))


def relu() -> nn.Module:
    # In place: the backward passes of what comes before it (a convolution, BatchNorm, sum) do not need their outputs
    return nn.ReLU(inplace=True)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    """A convolution that keeps the size of the image, or divides it by the stride, rounded up."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def conv_norm(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    bias: bool = False,
    activation: Activation | None = relu,
) -> nn.Sequential:
    """Convolution, BatchNorm, and the activation if there is one."""
    layers = [conv(inputs, outputs, kernel, stride, groups, bias), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


def norm_conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """The order of pre-activation networks: BatchNorm, ReLU, convolution."""
    return nn.Sequential(nn.BatchNorm2d(inputs), relu(), conv(inputs, outputs, kernel, stride))


def halve() -> nn.Module:
    """Max-pooling to half the size, rounded up: images of 28 x 28 pass through five of them, as those of 32 x 32 do."""
    return nn.MaxPool2d(2, ceil_mode=True)


class Residual(nn.Module):
    """body(x) + shortcut(x), through a ReLU if `activate`."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, activate: bool) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut
        self.activation = relu() if activate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    """The identity where the shapes allow it, else a 1x1 convolution with BatchNorm."""
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return conv_norm(inputs, outputs, stride=stride, activation=None)


class SqueezeExcite(nn.Module):
    """Each channel times a gate in (0, 1) that is computed from all their means: Hu et al. 2017 (arXiv 1709.01507)."""

    def __init__(self, channels: int, squeezed: int, activation: Activation = relu) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            conv(channels, squeezed, bias=True),
            activation(),
            conv(squeezed, channels, bias=True),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)


class Concatenated(nn.ModuleList):
    """The channels of all branches, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self], dim=1)


def stages(block: Callable[..., nn.Module], inputs: int, plan: Iterable[tuple[Any, ...]]) -> nn.Sequential:
    """For each (outputs, count, stride, ...) of the plan, `count` of block(inputs, outputs, stride, ...).

    Only the first block of a stage has its stride and its inputs; the others keep size and channels.
    """
    blocks: list[nn.Module] = []
    for outputs, count, stride, *more in plan:
        for place in range(count):
            blocks.append(block(inputs, outputs, stride if place == 0 else 1, *more))
            inputs = outputs
    return nn.Sequential(*blocks)


def dropping(dropout: float) -> list[nn.Module]:
    """The dropout layer, if there is any dropout: one of 0 would still draw its random numbers."""
    return [nn.Dropout(dropout)] if dropout else []


def pooled_head(features: int, classes: int, dropout: float = 0.0) -> nn.Sequential:
    """The mean over the image, and a linear layer: logits [B, classes] from features [B, features, H, W]."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropping(dropout), nn.Linear(features, classes))


def network(**parts: nn.Module) -> nn.Sequential:
    """The parts in order, by name."""
    return nn.Sequential(OrderedDict(parts))
