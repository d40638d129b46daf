"""How large each of the paper's networks is, and how long a training step of it takes one learner on this machine.

    python benchmarks/model_costs.py --output DIR
    python benchmarks/model_costs.py --output DIR --device cuda --scale paper     # larger batches

Data are made up, in the shapes of the recipe's. A step is timed in a bare loop, communication left out. Written to DIR:
costs.jsonl, a line a network, and the table; a command given once more goes on with those that are missing.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from benchmarks import tasks
from benchmarks.comm import arguments
from benchmarks.comm.loops import Timed, train_bare
from benchmarks.comm.output import duration
from horovod_dpsgd import learners, machine
from horovod_dpsgd.command_line import OneLineParser, give_up
from horovod_dpsgd.diagnostics.points import Point, Points, load, measure_all
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import table
from horovod_dpsgd.training import Recipe, Task
from horovod_dpsgd.training import recipe as recipes

RECIPES = Path(__file__).resolve().parent
STEPS = 5  # that are timed
POINTS, REPORT = "costs.jsonl", "costs.md"


@dataclass(frozen=True)
class Net:
    """One of the paper's networks by its recipe. batch: of one learner, by scale; epoch: samples, and unit what they
    are."""

    label: str
    recipe: str  # BENCHMARK/NAME
    batch: dict[str, int]
    epoch: int
    unit: str = "images"
    model: str = ""  # where it is not the recipe's

    def load(self, scale: str, device: str) -> Recipe:
        benchmark, name = self.recipe.split("/")
        changes = {"synthetic": True, "device": device, "batch_size": self.batch[scale], "max_steps": STEPS + 2}
        model = {"model": self.model} if self.model else {}
        return recipes.load(name, RECIPES / benchmark / "recipes", changes | model | {"lr": 1e-4, "warmup_from": 0})


CIFAR10 = partial(Net, recipe="cv/cifar10", batch={"cpu": 32, "paper": 512}, epoch=50_000)
# 224 x 224 pixels. 1,281,167 images, which Section 3 rounds.
IMAGENET = partial(Net, recipe="cv/imagenet", batch={"cpu": 4, "paper": 64}, epoch=1_281_167)
SPEECH = partial(Net, batch={"cpu": 16, "paper": 512}, unit="sub-sequences of 21 frames")
# Section 3: 103 million tokens, which are words. The recipe's are parts of words, 10 to 20 % more.
TEXT = partial(Net, batch={"cpu": 2, "paper": 16}, epoch=103_000_000 // 256, unit="blocks of 256 words")
NETS = [
    CIFAR10("EfficientNet-B0 (2019)", model="efficientnet-b0-2019"),
    CIFAR10("EfficientNet-B0 (2020)", model="efficientnet-b0"),
    CIFAR10("VGG-19", model="vgg19"),
    CIFAR10("ResNet-18", model="resnet18"),
    CIFAR10("DenseNet-121", model="densenet121"),
    CIFAR10("MobileNet", model="mobilenet"),
    CIFAR10("MobileNetV2", model="mobilenetv2"),
    CIFAR10("ShuffleNet (2 groups)", model="shufflenet-g2"),
    CIFAR10("GoogLeNet", model="googlenet"),
    CIFAR10("ResNeXt-29 (2x64d)", model="resnext29-2x64d"),
    CIFAR10("SENet-18", model="senet18"),
    IMAGENET("AlexNet", recipe="cv/imagenet-low-rate", model="alexnet"),
    IMAGENET("VGG11", recipe="cv/imagenet-low-rate", model="vgg11"),
    IMAGENET("VGG11-BN", model="vgg11-bn"),
    IMAGENET("ResNet-50", model="resnet50"),
    IMAGENET("ResNeXt-50", model="resnext50"),
    IMAGENET("DenseNet-161", model="densenet161"),
    SPEECH("LSTM, SWB-300", recipe="asr/swb300", epoch=4_000_000),
    SPEECH("LSTM, SWB-2000", recipe="asr/swb2000", epoch=30_000_000),
    TEXT("transformer, WikiText-103", recipe="nlp/wikitext103"),
    Net("784-50-50-10, MNIST", "cv/mnist", {"cpu": 400, "paper": 400}, 60_000),
]


def main() -> None:
    given = parser().parse_args()
    us = learners.start()
    if us.size > 1:
        arguments.refuse(us, f"this is about one learner, not {us.size}")
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # a launcher may have bound it to one of its cores
    learners.use_threads(us)
    nets = {net.label: net for net in NETS if given.only is None or net.label in given.only}
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    setup = {
        "machine": machine.in_words(),
        "device": device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }

    def measure(point: Point) -> Point:
        return _costs(nets[point["network"]].load(given.scale, given.device))

    points = [{"network": net.label, "batch": net.batch[given.scale]} for net in nets.values()]
    try:
        measure_all(points, measure, given.output / POINTS, setup, us, partial(print, flush=True))
        text = report(load(given.output / POINTS))
    except UserError as error:
        give_up(error)
    (given.output / REPORT).write_text(f"{text}\n")
    print(text)


def parser() -> OneLineParser:
    p = OneLineParser(description=__doc__)
    p.add_argument("--output", type=Path, required=True, metavar="DIR")
    p.add_argument("--scale", choices=["cpu", "paper"], default="cpu", help="of batches (default: %(default)s)")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")
    p.add_argument("--only", nargs="+", choices=[net.label for net in NETS], metavar="NETWORK", help="of the table's")
    return p


def report(measured: Points) -> str:
    """The table: a row for each network."""
    nets = {net.label: net for net in NETS}
    rows = []
    for point in measured.points:
        net, batch, seconds = nets[point["network"]], point["batch"], point["seconds"]
        step = float(np.median(seconds))
        rows.append(
            [
                net.label,
                f"{point['parameters']:,}",
                f"{point['bytes'] / 2**20:.2f}",
                str(batch),
                f"{duration(step)} ({duration(min(seconds))} - {duration(max(seconds))})",
                f"{net.epoch:,} {net.unit}",
                f"{step * net.epoch / batch / 3600:.3g} h",
            ]
        )
    setup = measured.setup
    header = ["network", "parameters", "MB (2^20 bytes)", "batch", "step, median (range)", "epoch", "takes"]
    return "\n\n".join(
        [
            f"Steps of one learner, without communication, on {setup['machine']}, device {setup['device']}, "
            f"{setup['threads']} threads, PyTorch {setup['torch']}: forward, backward and update, float32, made-up "
            "data. An epoch is counted as its steps alone, that of a text by its words: the recipe's tokens, parts of "
            "words, are 10 to 20 % more, and so are its steps.",
            table.markdown(header, rows),
        ]
    )


def _costs(recipe: Recipe) -> Point:
    """Parameters, their bytes, and the seconds of each step."""
    task = tasks.find(recipe.task)(recipe, False)
    parameters, nbytes = count(task)
    timed = Timed(task)
    train_bare(recipe, timed)
    return {"parameters": parameters, "bytes": nbytes, "seconds": timed.seconds}


def count(task: Task) -> tuple[int, int]:
    """Parameters of the task's model, and their bytes."""
    with torch.device("meta"):
        parameters = list(task.make_model().parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


if __name__ == "__main__":
    main()
