"""DenseNet-121: Huang, Liu, van der Maaten and Weinberger 2016, Densely Connected Networks (arXiv 1608.06993).

The layers of the ImageNet network (growth 32, bottlenecks, channels halved in transitions). In CIFAR form the stem is a
bare 3x3 convolution of stride 1, without BatchNorm and max-pooling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.cv.models.blocks import Shape, conv, network, norm_conv, pooled_head, relu

GROWTH = 32
LAYERS = (6, 12, 24, 16)


class DenseLayer(nn.Module):
    """The inputs, followed by `growth` new channels made of them: DenseNet-B, Section 3."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(norm_conv(inputs, 4 * growth), norm_conv(4 * growth, growth, kernel=3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], dim=1)


def transition(inputs: int, outputs: int) -> nn.Module:
    """Half the size, and fewer channels."""
    return nn.Sequential(norm_conv(inputs, outputs), nn.AvgPool2d(2, ceil_mode=True))


def densenet121(shape: Shape) -> nn.Module:
    growth = shape.scaled(GROWTH)
    channels = 2 * growth
    stem = conv(shape.channels, channels, kernel=3)
    body: list[nn.Module] = []
    for block, layers in enumerate(LAYERS):
        if block:
            body.append(transition(channels, channels // 2))
            channels //= 2
        body += [DenseLayer(channels + growth * layer, growth) for layer in range(layers)]
        channels += growth * layers
    body += [nn.BatchNorm2d(channels), relu()]
    return network(stem=stem, body=nn.Sequential(*body), head=pooled_head(channels, shape.classes))
