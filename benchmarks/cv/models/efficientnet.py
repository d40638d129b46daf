"""EfficientNet-B0 in two CIFAR forms: Tan and Le 2019, Rethinking Model Scaling for CNNs (arXiv 1905.11946).

`efficientnet_b0` (3,599,686 parameters) is Table 1 of the paper with a stem of stride 1 and a linear layer directly on
the 320 channels, without the 1x1 convolution to 1280. The first block has a 1x1 expansion though its factor is 1: the
known number of parameters counts one. Here it is applied; the paper's block has none.

`efficientnet_b0_2019` (2,912,089 parameters, 11.11 MiB) is a form that was public in May 2019, and may be the one on
which the paper that this project reproduces saw SSGD diverge: a size of 11.11 MB is remembered of its table, though not
confirmed. It is another network: all kernels are 3x3, ReLU stands for swish, the squeeze-and-excitation comes behind
the block, and the strides leave 1 x 1 of a 32 x 32 image, so that the last BatchNorm sees one value of each image.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.cv.models import options
from benchmarks.cv.models.blocks import (
    Residual,
    Shape,
    SqueezeExcite,
    conv_norm,
    network,
    pooled_head,
    shortcut,
    stages,
)

STEM = 32
# Outputs, count, stride of the first, expansion, kernel
PLAN = [
    (16, 1, 1, 1, 3),
    (24, 2, 2, 6, 3),
    (40, 2, 2, 6, 5),
    (80, 3, 2, 6, 3),
    (112, 3, 1, 6, 5),
    (192, 4, 2, 6, 5),
    (320, 1, 1, 6, 3),
]
# Outputs, count, stride of the first, expansion
PLAN_2019 = [
    (16, 1, 2, 1),
    (24, 2, 1, 6),
    (40, 2, 2, 6),
    (80, 3, 2, 6),
    (112, 3, 1, 6),
    (192, 4, 2, 6),
    (320, 1, 2, 6),
]


def mbconv(inputs: int, outputs: int, stride: int, expansion: int, kernel: int) -> nn.Module:
    """MobileNetV2's inverted residual with a squeeze to a quarter of the inputs inside, and swish."""
    inside = expansion * inputs
    body = nn.Sequential(
        conv_norm(inputs, inside, activation=nn.SiLU),
        conv_norm(inside, inside, kernel, stride, groups=inside, activation=nn.SiLU),
        SqueezeExcite(inside, max(1, inputs // 4), nn.SiLU),
        conv_norm(inside, outputs, activation=None),
    )
    same_shape = stride == 1 and inputs == outputs
    return Residual(body, nn.Identity(), activate=False) if same_shape else body


def efficientnet_b0(shape: Shape, *, dropout: float = 0.2) -> nn.Module:
    """dropout: before the linear layer. No blocks are dropped (stochastic depth)."""
    stem = shape.scaled(STEM)
    plan = [(shape.scaled(outputs), *more) for outputs, *more in PLAN]
    return network(
        stem=conv_norm(shape.channels, stem, kernel=3, activation=nn.SiLU),
        body=stages(mbconv, stem, plan),
        head=pooled_head(plan[-1][0], shape.classes, options.fraction("dropout", dropout)),
    )


class Block2019(nn.Module):
    """An inverted residual, then the gate; with stride 2 the ungated result stands where a shortcut would."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inside = expansion * inputs
        self.body = nn.Sequential(
            conv_norm(inputs, inside),
            conv_norm(inside, inside, kernel=3, stride=stride, groups=inside),
            conv_norm(inside, outputs, activation=None),
        )
        self.gated = SqueezeExcite(outputs, max(1, outputs // 16))
        self.shortcut = shortcut(inputs, outputs, stride) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        result = self.body(x)
        return self.gated(result) + (result if self.shortcut is None else self.shortcut(x))


def efficientnet_b0_2019(shape: Shape) -> nn.Module:
    stem = shape.scaled(STEM)
    plan = [(shape.scaled(outputs), *more) for outputs, *more in PLAN_2019]
    return network(
        stem=conv_norm(shape.channels, stem, kernel=3),
        body=stages(Block2019, stem, plan),
        head=pooled_head(plan[-1][0], shape.classes),
    )
