"""ImageNet's models, and every other classification model of torchvision, with fresh weights.

The paper's six: AlexNet in its one-column form (Krizhevsky 2014, arXiv 1404.5997); VGG11 with and without BatchNorm
(Simonyan and Zisserman 2014, arXiv 1409.1556); ResNet-50 (He et al. 2015, arXiv 1512.03385); ResNeXt-50 of 32 groups of
4 channels (Xie et al. 2016, arXiv 1611.05431); DenseNet-161 (Huang et al. 2016, arXiv 1608.06993).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.cv.models.blocks import Shape
from horovod_dpsgd.errors import RecipeError

# What users call them, and what torchvision does
PAPER = {
    "alexnet": "alexnet",
    "vgg11": "vgg11",
    "vgg11-bn": "vgg11_bn",
    "resnet50": "resnet50",
    "resnext50": "resnext50_32x4d",
    "densenet161": "densenet161",
}
# In training they would put out auxiliary logits too; their own initial weights take very long to draw
ONE_HEAD = {"aux_logits": False, "init_weights": False}
FIXED = {"googlenet": ONE_HEAD, "inception_v3": ONE_HEAD}


def is_known(name: str) -> bool:
    """Whether `make` has it; a name may begin with "torchvision/"."""
    return _builder(name) in _torchvision_models().list_models(_torchvision_models())


def make(name: str, shape: Shape, options: dict[str, Any]) -> nn.Module:
    """One of torchvision's models. Raises RecipeError for a width or number of channels that it cannot have."""
    if shape.width != 1:
        raise RecipeError(f"model {name} is torchvision's and has a fixed width: leave width at 1, not {shape.width}")
    if shape.channels != 3:
        raise RecipeError(f"model {name} is torchvision's and takes images of 3 channels, not {shape.channels}")
    builder = _builder(name)
    fixed = {"weights": None, "num_classes": shape.classes} | FIXED.get(builder, {})
    if builder.startswith("vit_"):
        fixed["image_size"] = shape.image_size
    try:
        return _torchvision_models().get_model(builder, **fixed, **options)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        wanted = f"model {name} for images of size {shape.image_size} with model_options {options}"
        raise RecipeError(f"torchvision cannot make {wanted}: {reason}") from error


def _builder(name: str) -> str:
    return PAPER.get(name, name.removeprefix("torchvision/"))


def _torchvision_models() -> Any:
    # Imported only when needed: it takes seconds, in every learner
    from torchvision import models

    return models
