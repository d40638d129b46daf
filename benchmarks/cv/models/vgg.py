"""VGG: Simonyan and Zisserman 2014, Very Deep Convolutional Networks (arXiv 1409.1556), in two CIFAR forms.

`vgg_norm` has BatchNorm after every convolution (which keeps its bias), and one linear layer for a classifier.

`vgg_plain` keeps what makes the paper's VGG11 hard to train at large rates: no BatchNorm, and three linear layers. It
is a quarter as wide (convolutions of 16 to 128 channels, linear layers of 256), to run on a CPU; width 4 is full width.
"""

from __future__ import annotations

from torch import nn

from benchmarks.cv.models import options
from benchmarks.cv.models.blocks import Shape, halve, network, pooled_head
from benchmarks.cv.models.plain import INITIALISATIONS, convolution, he_initialise, linear_head

CHANNELS = (64, 128, 256, 512, 512)
# Convolutions before each of the five poolings, by depth: columns A, D and E of Table 1
COUNTS = {11: (1, 1, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
NARROWER = 4


def vgg_norm(depth: int, shape: Shape) -> nn.Module:
    outputs = [shape.scaled(channels) for channels in CHANNELS]
    body = _convolutions(COUNTS[depth], shape.channels, outputs, batch_norm=True)
    return network(body=body, head=pooled_head(outputs[-1], shape.classes))


def vgg_plain(
    depth: int, shape: Shape, *, batch_norm: bool = False, dropout: float = 0.0, init: str = "he"
) -> nn.Module:
    """batch_norm: the same network with it, for comparison; dropout: before the last two linear layers, 0.5 in the
    paper; init: he (arXiv 1502.01852) or torch (PyTorch's own, with which the signal fades from layer to layer).
    """
    options.one_of("init", init, INITIALISATIONS)
    outputs = [shape.scaled(channels // NARROWER) for channels in CHANNELS]
    body = _convolutions(COUNTS[depth], shape.channels, outputs, options.flag("batch_norm", batch_norm))
    side = -(-shape.image_size // 2 ** len(outputs))  # halved by each pooling, rounded up
    head = linear_head(outputs[-1] * side**2, shape.scaled(256), shape.classes, options.fraction("dropout", dropout))
    model = network(body=body, head=head)
    if init == "he":
        he_initialise(model)
    return model


def _convolutions(counts: tuple[int, ...], inputs: int, outputs: list[int], batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for count, channels in zip(counts, outputs, strict=True):
        for _ in range(count):
            layers.append(convolution(inputs, channels, 3, batch_norm))
            inputs = channels
        layers.append(halve())
    return nn.Sequential(*layers)
