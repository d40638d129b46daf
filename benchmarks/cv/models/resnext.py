"""ResNeXt-29: Xie, Girshick, Dollar, Tu and He 2016, Aggregated Residual Transformations (arXiv 1611.05431).

The paper's CIFAR network (Section 5.3: three stages of three bottlenecks) at 2 groups of 64 channels, or 32 of 4. To
have the known numbers of parameters the stem is a 1x1 convolution, where the paper has 3x3, and a bottleneck puts out
twice, not four times, the channels of its groups.
"""

from __future__ import annotations

import math
from functools import partial

from torch import nn

from benchmarks.cv.models.blocks import Residual, Shape, conv_norm, network, pooled_head, shortcut, stages

EXPANSION = 2


def bottleneck(inputs: int, outputs: int, stride: int, groups: int) -> nn.Module:
    """1x1, a 3x3 in groups, and 1x1 around a shortcut: Figure 3 (c)."""
    inside = outputs // EXPANSION
    body = nn.Sequential(
        conv_norm(inputs, inside),
        conv_norm(inside, inside, kernel=3, stride=stride, groups=groups),
        conv_norm(inside, outputs, activation=None),
    )
    return Residual(body, shortcut(inputs, outputs, stride), activate=True)


def resnext29(groups: int, group_channels: int, shape: Shape) -> nn.Module:
    """`group_channels` of the first stage; each stage has twice those of the one before."""
    stem, multiple = shape.scaled(64), math.lcm(groups, 4)
    inside = groups * group_channels
    outputs = [EXPANSION * shape.scaled(inside * 2**stage, multiple) for stage in range(3)]
    return network(
        stem=conv_norm(shape.channels, stem),
        body=stages(partial(bottleneck, groups=groups), stem, zip(outputs, (3, 3, 3), (1, 2, 2), strict=True)),
        head=pooled_head(outputs[-1], shape.classes),
    )
