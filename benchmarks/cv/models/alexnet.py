"""A small AlexNet: Krizhevsky, Sutskever and Hinton 2012, ImageNet Classification with Deep CNNs (NeurIPS 25).

Five convolutions and three linear layers, without any normalization, at a quarter of the channels of the one-column
form (Krizhevsky 2014, arXiv 1404.5997): 16, 48, 96, 64, 64, and 256 for the linear layers. In CIFAR form the first
convolution is 5x5 of stride 1 where ImageNet's is 11x11 of stride 4, and pooling is over 2x2.
"""

from __future__ import annotations

from torch import nn

from benchmarks.cv.models import options
from benchmarks.cv.models.blocks import Shape, halve, network
from benchmarks.cv.models.plain import INITIALISATIONS, convolution, he_initialise, linear_head

# Outputs, kernel, whether pooling follows
PLAN = [(16, 5, True), (48, 5, True), (96, 3, False), (64, 3, False), (64, 3, True)]
POOLINGS = 3


def alexnet_plain(shape: Shape, *, batch_norm: bool = False, dropout: float = 0.0, init: str = "he") -> nn.Module:
    """The options are those of `vgg.vgg_plain`."""
    options.one_of("init", init, INITIALISATIONS)
    options.flag("batch_norm", batch_norm)
    inputs = shape.channels
    layers: list[nn.Module] = []
    for channels, kernel, pooled in PLAN:
        outputs = shape.scaled(channels)
        layers.append(convolution(inputs, outputs, kernel, batch_norm))
        if pooled:
            layers.append(halve())
        inputs = outputs
    side = -(-shape.image_size // 2**POOLINGS)  # halved by each pooling, rounded up
    head = linear_head(inputs * side**2, shape.scaled(256), shape.classes, options.fraction("dropout", dropout))
    model = network(body=nn.Sequential(*layers), head=head)
    if init == "he":
        he_initialise(model)
    return model
