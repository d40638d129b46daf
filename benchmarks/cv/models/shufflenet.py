"""ShuffleNet with 2 or 3 groups: Zhang, Zhou, Lin and Sun 2017 (arXiv 1707.01083).

Table 1 of the paper at scale 1. In CIFAR form the stem is a 1x1 convolution of stride 1 (the known numbers of
parameters have no room for 3x3), without max-pooling, and there is a ReLU after the depthwise convolution too.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from benchmarks.cv.models.blocks import Concatenated, Residual, Shape, conv_norm, network, pooled_head, relu, stages

STEM = 24
OUTPUTS = {2: (200, 400, 800), 3: (240, 480, 960)}  # of the stages, by the number of groups


class Shuffle(nn.Module):
    """Deal the channels out: each group of the next convolution has some of all groups of the last (Figure 1)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def unit(inputs: int, outputs: int, stride: int, groups: int, stem: int) -> nn.Module:
    """Figure 2 (b); with stride 2 Figure 2 (c), where the inputs, pooled, become the last channels of the outputs."""
    made = outputs if stride == 1 else outputs - inputs
    inside = made // 4
    first_groups = groups if inputs > stem else 1  # the stem has few channels: Section 3.2
    body = nn.Sequential(
        conv_norm(inputs, inside, groups=first_groups),
        Shuffle(first_groups),
        conv_norm(inside, inside, kernel=3, stride=stride, groups=inside),
        conv_norm(inside, made, groups=groups, activation=None),
    )
    if stride == 1:
        return Residual(body, nn.Identity(), activate=True)
    return nn.Sequential(Concatenated([body, nn.AvgPool2d(3, stride, padding=1)]), relu())


def shufflenet(groups: int, shape: Shape) -> nn.Module:
    multiple = 4 * groups  # a quarter of the channels is divided into the groups
    stem = shape.scaled(STEM, multiple)
    outputs = [stem]
    for channels in OUTPUTS[groups]:
        outputs.append(max(shape.scaled(channels, multiple), outputs[-1] + multiple))
    return network(
        stem=conv_norm(shape.channels, stem),
        body=stages(partial(unit, groups=groups, stem=stem), stem, zip(outputs[1:], (4, 8, 4), (2, 2, 2), strict=True)),
        head=pooled_head(outputs[-1], shape.classes),
    )
