"""MobileNet: Howard et al. 2017, Efficient Convolutional Neural Networks for Mobile Vision (arXiv 1704.04861).

Table 1 of the paper. In CIFAR form the stem has stride 1, so that a 32 x 32 image ends as 2 x 2.
"""

from __future__ import annotations

from torch import nn

from benchmarks.cv.models.blocks import Shape, conv_norm, network, pooled_head, stages

# Outputs, count, stride of the first
PLAN = [(64, 1, 1), (128, 1, 2), (128, 1, 1), (256, 1, 2), (256, 1, 1), (512, 1, 2), (512, 5, 1), (1024, 1, 2)]
PLAN += [(1024, 1, 1)]


def depthwise_separable(inputs: int, outputs: int, stride: int) -> nn.Module:
    """A 3x3 convolution in each channel, then a 1x1 convolution over them: Figure 3, right."""
    depthwise = conv_norm(inputs, inputs, kernel=3, stride=stride, groups=inputs)
    return nn.Sequential(depthwise, conv_norm(inputs, outputs))


def mobilenet(shape: Shape) -> nn.Module:
    stem = shape.scaled(32)
    plan = [(shape.scaled(outputs), count, stride) for outputs, count, stride in PLAN]
    return network(
        stem=conv_norm(shape.channels, stem, kernel=3),
        body=stages(depthwise_separable, stem, plan),
        head=pooled_head(plan[-1][0], shape.classes),
    )
