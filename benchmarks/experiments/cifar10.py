"""The paper's table of all CIFAR-10 networks by batch size (Appendix E), at linearly scaled rates.

At the paper's scale CIFAR-10 on 16 GPUs. At CPU scale the reduced images of `cifar10-cpu`, networks an eighth or a
quarter as wide, and four epochs: enough to see which of them lose at once, and no more.
"""

from __future__ import annotations

from benchmarks.experiments import cv, tables
from benchmarks.experiments.cells import Cell, Net
from benchmarks.experiments.experiment import Scale
from benchmarks.experiments.tables import ACCURACY

# The model, and its width at CPU scale. Not confirmed: which version of EfficientNet-B0 the paper used, and that
# SENet-18 is the tenth.
MODELS = {
    "EfficientNet-B0 (2019)": ("efficientnet-b0-2019", cv.EFFICIENTNET_WIDTH),
    "VGG-19": ("vgg19", 0.125),
    "ResNet-18": ("resnet18", 0.125),
    "DenseNet-121": ("densenet121", 0.125),
    "MobileNet": ("mobilenet", 0.25),
    "MobileNetV2": ("mobilenetv2", 0.25),
    "ShuffleNet": ("shufflenet-g2", 0.25),
    "GoogLeNet": ("googlenet", 0.125),
    "ResNeXt-29": ("resnext29-2x64d", 0.125),
    "SENet-18": ("senet18", 0.125),
}
SHORT = ("--epochs", "4", "--set", "warmup_epochs=1", "--set", "decay_epochs=[3]")
BATCHES: dict[Scale, tuple[int, ...]] = {"cpu": (256, 1024), "paper": (1024, 2048, 4096, 8192)}
BASE_BATCH: dict[Scale, int] = {"cpu": 32, "paper": cv.CIFAR_BASE}


def nets(scale: Scale) -> list[Net]:
    if scale == "paper":
        return [cv.network(label, "cifar10", model) for label, (model, _) in MODELS.items()]
    return [_narrow(label, model, width) for label, (model, width) in MODELS.items()]


def _narrow(label: str, model: str, width: float) -> Net:
    options = model, f"model_options.width={width:g}"
    return cv.network(f"{label}, width {width:g}, short", "cifar10-cpu", *options, more=SHORT)


def cifar10(scale: Scale) -> list[Cell]:
    return cv.by_batch(scale, nets(scale), BATCHES[scale], BASE_BATCH[scale])


PAPER = (
    "The paper's numbers are in an appendix that could not be read; by Section 4.3 EfficientNet-B0 is the only one of "
    "these on which large batches make SSGD diverge."
)
_ladder = tables.over_rates(ACCURACY, "accuracy over batch size")
EXPERIMENTS = {
    "cifar10": cv.experiment("CIFAR-10: all ten networks by batch size", "6 h", cifar10, _ladder, "cifar10", PAPER)
}
