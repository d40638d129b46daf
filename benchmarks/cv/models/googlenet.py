"""GoogLeNet: Szegedy et al. 2014, Going Deeper with Convolutions (arXiv 1409.4842).

Table 1 of the paper. In CIFAR form one 3x3 convolution to 192 channels is the stem; as in its successors every
convolution has a BatchNorm, two of 3x3 stand for one of 5x5, and there are neither auxiliary classifiers nor dropout.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from benchmarks.cv.models.blocks import Concatenated, Shape, conv_norm, network, pooled_head

STEM = 192
# 1x1; reduction for 3x3, 3x3; reduction for 5x5, 5x5; projection of the pool; None: max-pooling to half the size
PLAN = [
    (64, 96, 128, 16, 32, 32),
    (128, 128, 192, 32, 96, 64),
    None,
    (192, 96, 208, 16, 48, 64),
    (160, 112, 224, 24, 64, 64),
    (128, 128, 256, 24, 64, 64),
    (112, 144, 288, 32, 64, 64),
    (256, 160, 320, 32, 128, 128),
    None,
    (256, 160, 320, 32, 128, 128),
    (384, 192, 384, 48, 128, 128),
]

# The known number of parameters counts a bias before each BatchNorm, which makes it do nothing
convolution = partial(conv_norm, bias=True)


def inception(inputs: int, one: int, reduce3: int, three: int, reduce5: int, five: int, pooled: int) -> nn.Module:
    """Four branches over the same inputs: Figure 2 (b)."""
    return Concatenated(
        [
            convolution(inputs, one),
            nn.Sequential(convolution(inputs, reduce3), convolution(reduce3, three, kernel=3)),
            nn.Sequential(
                convolution(inputs, reduce5), convolution(reduce5, five, kernel=3), convolution(five, five, kernel=3)
            ),
            nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), convolution(inputs, pooled)),
        ]
    )


def googlenet(shape: Shape) -> nn.Module:
    inputs = shape.scaled(STEM)
    stem = convolution(shape.channels, inputs, kernel=3)
    body: list[nn.Module] = []
    for row in PLAN:
        if row is None:
            body.append(nn.MaxPool2d(3, stride=2, padding=1))
            continue
        one, reduce3, three, reduce5, five, pooled = (shape.scaled(channels) for channels in row)
        body.append(inception(inputs, one, reduce3, three, reduce5, five, pooled))
        inputs = one + three + five + pooled
    return network(stem=stem, body=nn.Sequential(*body), head=pooled_head(inputs, shape.classes))
