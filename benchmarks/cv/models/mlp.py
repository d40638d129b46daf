"""A fully connected network for small images: on MNIST, 784-50-50-10, the one of the paper's Section 2.2."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.cv.models import options
from benchmarks.cv.models.blocks import Shape

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class FullyConnected(nn.Sequential):
    """Layers one after another, for images [B, C, H, W] or for the same numbers as [B, C * H * W]."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


def mlp(
    shape: Shape, *, hidden: Sequence[int] = (50, 50), activation: str = "relu", init_scale: float = 1.0
) -> nn.Module:
    """hidden: widths; activation: relu, tanh or sigmoid; init_scale: a factor on PyTorch's initial parameters."""
    kind = ACTIVATIONS[options.one_of("activation", activation, tuple(ACTIVATIONS))]
    scale = options.factor("init_scale", init_scale)
    inside = [shape.scaled(width, multiple=1) for width in options.widths("hidden", hidden)]
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([shape.channels * shape.image_size**2, *inside, shape.classes]):
        layers += [nn.Linear(inputs, outputs), kind()]
    model = FullyConnected(*layers[:-1])
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model
