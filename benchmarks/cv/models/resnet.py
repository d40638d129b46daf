"""ResNet-18: He, Zhang, Ren and Sun 2015, Deep Residual Learning for Image Recognition (arXiv 1512.03385).

In CIFAR form the stem is a 3x3 convolution of stride 1 without max-pooling, so that the first stage sees the whole
32 x 32. (The paper's own CIFAR networks are others: three stages of 16, 32 and 64 channels.) The rest is that of
ImageNet.
"""

from __future__ import annotations

from torch import nn

from benchmarks.cv.models.blocks import Residual, Shape, conv_norm, network, pooled_head, shortcut, stages


def basic_block(inputs: int, outputs: int, stride: int) -> nn.Module:
    """Two 3x3 convolutions around a shortcut: Figure 5, left."""
    body = nn.Sequential(
        conv_norm(inputs, outputs, kernel=3, stride=stride), conv_norm(outputs, outputs, kernel=3, activation=None)
    )
    return Residual(body, shortcut(inputs, outputs, stride), activate=True)


def resnet18(shape: Shape) -> nn.Module:
    first, second, third, fourth = (shape.scaled(channels) for channels in (64, 128, 256, 512))
    return network(
        stem=conv_norm(shape.channels, first, kernel=3),
        body=stages(basic_block, first, [(first, 2, 1), (second, 2, 2), (third, 2, 2), (fourth, 2, 2)]),
        head=pooled_head(fourth, shape.classes),
    )
