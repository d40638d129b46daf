"""MobileNetV2: Sandler, Howard, Zhu, Zhmoginov and Chen 2018, Inverted Residuals (arXiv 1801.04381).

Table 2 of the paper. In CIFAR form the stem and the stage of 24 channels have stride 1, the activation is ReLU instead
of ReLU6, and, which the known number of parameters tells: every block of stride 1 has a shortcut, by a 1x1 convolution
with BatchNorm where the channels change, and the first block has its 1x1 expansion though the factor is 1.
"""

from __future__ import annotations

from torch import nn

from benchmarks.cv.models.blocks import Residual, Shape, conv_norm, network, pooled_head, shortcut, stages

# Outputs, count, stride of the first, expansion
PLAN = [
    (16, 1, 1, 1),
    (24, 2, 1, 6),
    (32, 3, 2, 6),
    (64, 4, 2, 6),
    (96, 3, 1, 6),
    (160, 3, 2, 6),
    (320, 1, 1, 6),
]


def inverted_residual(inputs: int, outputs: int, stride: int, expansion: int) -> nn.Module:
    """1x1 to more channels, 3x3 in each of them, and 1x1 back, without activation: Figure 4 (d)."""
    inside = expansion * inputs
    body = nn.Sequential(
        conv_norm(inputs, inside),
        conv_norm(inside, inside, kernel=3, stride=stride, groups=inside),
        conv_norm(inside, outputs, activation=None),
    )
    return Residual(body, shortcut(inputs, outputs, stride), activate=False) if stride == 1 else body


def mobilenetv2(shape: Shape) -> nn.Module:
    stem, features = shape.scaled(32), shape.scaled(1280)
    plan = [(shape.scaled(outputs), *more) for outputs, *more in PLAN]
    return network(
        stem=conv_norm(shape.channels, stem, kernel=3),
        body=stages(inverted_residual, stem, plan),
        widen=conv_norm(plan[-1][0], features),
        head=pooled_head(features, shape.classes),
    )
