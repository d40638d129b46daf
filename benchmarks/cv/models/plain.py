"""What VGG and the small AlexNet share: convolutions that may go without BatchNorm, linear layers, initial weights."""

from __future__ import annotations

from torch import nn

from benchmarks.cv.models.blocks import conv, conv_norm, dropping, relu

INITIALISATIONS = ("he", "torch")


def convolution(inputs: int, outputs: int, kernel: int, batch_norm: bool) -> nn.Sequential:
    """A convolution with bias, BatchNorm if wanted, and ReLU."""
    if batch_norm:
        return conv_norm(inputs, outputs, kernel, bias=True)
    return nn.Sequential(conv(inputs, outputs, kernel, bias=True), relu())


def linear_head(features: int, hidden: int, classes: int, dropout: float) -> nn.Sequential:
    """Two hidden layers, and the logits; features [B, C, H, W] count C * H * W."""
    return nn.Sequential(
        nn.Flatten(),
        *[nn.Linear(features, hidden), relu(), *dropping(dropout)],
        *[nn.Linear(hidden, hidden), relu(), *dropping(dropout)],
        nn.Linear(hidden, classes),
    )


def he_initialise(model: nn.Module) -> None:
    """Weights N(0, 2 / inputs) and no bias where a ReLU follows: He et al. 2015 (arXiv 1502.01852), equation 10.

    The last layer, which no ReLU follows, stays as it is.
    """
    *layers, _last = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
