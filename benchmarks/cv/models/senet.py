"""SENet-18: Hu, Shen, Albanie, Sun and Wu 2017, Squeeze-and-Excitation Networks (arXiv 1709.01507).

The ResNet-18 in it is that of pre-activation: He, Zhang, Ren and Sun 2016, Identity Mappings (arXiv 1603.05027).

In CIFAR form the stem is a 3x3 convolution of stride 1 without max-pooling. It has a BatchNorm and a ReLU of its own,
and nothing normalizes the last sum before it is pooled: so the parameters add up to the 11,260,354 that are known of
this network, where He et al. would have them the other way round.
"""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.cv.models.blocks import (
    Shape,
    SqueezeExcite,
    conv,
    conv_norm,
    network,
    norm_conv,
    pooled_head,
    relu,
    stages,
)

REDUCTION = 16  # channels per squeezed channel: r in Hu et al., Section 3.2


class PreActivationBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; a shortcut that changes the shape starts behind the first two."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), relu())
        self.body = nn.Sequential(
            conv(inputs, outputs, kernel=3, stride=stride),
            norm_conv(outputs, outputs, kernel=3),
            SqueezeExcite(outputs, max(1, outputs // REDUCTION)),
        )
        changes = stride != 1 or inputs != outputs
        self.shortcut = conv(inputs, outputs, stride=stride) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        activated = self.before(x)
        return self.body(activated) + (x if self.shortcut is None else self.shortcut(activated))


def senet18(shape: Shape) -> nn.Module:
    first, second, third, fourth = (shape.scaled(channels) for channels in (64, 128, 256, 512))
    return network(
        stem=conv_norm(shape.channels, first, kernel=3),
        body=stages(PreActivationBlock, first, [(first, 2, 1), (second, 2, 2), (third, 2, 2), (fourth, 2, 2)]),
        head=pooled_head(fourth, shape.classes),
    )
