"""Models of images by name: `make("resnet18")`. One file an architecture; what they share is in `blocks`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from benchmarks.cv.models import (
    alexnet,
    densenet,
    efficientnet,
    googlenet,
    imagenet,
    mlp,
    mobilenet,
    mobilenetv2,
    resnet,
    resnext,
    senet,
    shufflenet,
    vgg,
)
from benchmarks.cv.models.blocks import Shape
from horovod_dpsgd.errors import RecipeError

__all__ = ["MODELS", "NAMES", "check", "make"]

# Ours: for small images, of any width. A maker takes a Shape, and its options as keywords.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp.mlp,
    "efficientnet-b0": efficientnet.efficientnet_b0,
    "efficientnet-b0-2019": efficientnet.efficientnet_b0_2019,
    "vgg19": partial(vgg.vgg_norm, 19),
    "resnet18": resnet.resnet18,
    "densenet121": densenet.densenet121,
    "mobilenet": mobilenet.mobilenet,
    "mobilenetv2": mobilenetv2.mobilenetv2,
    "shufflenet-g2": partial(shufflenet.shufflenet, 2),
    "shufflenet-g3": partial(shufflenet.shufflenet, 3),
    "googlenet": googlenet.googlenet,
    "resnext29-2x64d": partial(resnext.resnext29, 2, 64),
    "resnext29-32x4d": partial(resnext.resnext29, 32, 4),
    "senet18": senet.senet18,
    "vgg11-plain": partial(vgg.vgg_plain, 11),
    "vgg16-plain": partial(vgg.vgg_plain, 16),
    "alexnet-plain": alexnet.alexnet_plain,
}
NAMES = (*MODELS, *imagenet.PAPER)


def make(
    name: str, classes: int = 10, width: float = 1.0, image_size: int = 32, channels: int = 3, **options: Any
) -> nn.Module:
    """A fresh model: logits [B, classes] from images [B, channels, image_size, image_size].

    name: one of `NAMES`, or a classification model of torchvision by its name there (where both have one, as resnet18,
    "torchvision/resnet18" is torchvision's). width: a factor on the numbers of channels. options: the keywords of the
    model's maker.

    Raises RecipeError, in one line, for an unknown name, an option that the model does not have or that is impossible,
    and a width or number of channels that one of torchvision's cannot have.
    """
    shape = Shape(classes, width, image_size, channels)
    _check_shape(shape)
    maker = MODELS.get(name)
    if maker is None:
        if name not in imagenet.PAPER and not imagenet.is_known(name):
            known = ", ".join(NAMES)
            raise RecipeError(f"unknown model {name!r}: choose one of {known}, or a classifier of torchvision's")
        return imagenet.make(name, shape, options)
    known_options = [p.name for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known_options:
            has = f"its options are {', '.join(known_options)}" if known_options else "it has none"
            raise RecipeError(f"model {name} has no option {option!r}: {has}")
    return maker(shape, **options)


def check(
    name: str, classes: int = 10, width: float = 1.0, image_size: int = 32, channels: int = 3, **options: Any
) -> None:
    """Raise RecipeError where `make` would, or if images of this size are too small for the model.

    It allocates no weights and draws no random numbers: the model is made on the meta device.
    """
    with torch.device("meta"), torch.no_grad(), _WithoutInitialisation():
        model = make(name, classes, width, image_size, channels, **options).eval()
        if name in MODELS:  # ours take images of any size, and the first run on the meta device costs seconds
            return
        try:
            model(torch.empty(1, channels, image_size, image_size))
        except (RuntimeError, ValueError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise RecipeError(f"model {name} cannot take images of {image_size} x {image_size}: {reason}") from error


def _check_shape(shape: Shape) -> None:
    if not 0 < shape.width < math.inf:
        raise RecipeError(f"width {shape.width} is not above 0")
    for what, number in (("classes", shape.classes), ("image_size", shape.image_size), ("channels", shape.channels)):
        if number < 1:
            raise RecipeError(f"{what} {number} is not above 0")


class _WithoutInitialisation(TorchFunctionMode):
    """Leaves tensors as they are, where PyTorch would load symbolic algebra, which takes seconds, to draw nothing."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        draws = func in (torch.Tensor.uniform_, torch.Tensor.normal_)
        if draws or getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
