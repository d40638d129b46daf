"""MNIST with a small fully connected network: the paper's Section 2.2."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cv import mnist, models
from horovod_dpsgd.errors import RecipeError
from horovod_dpsgd.training import Batch, Recipe, Score, Task

MEAN, STD = 0.1307, 0.3081  # of the pixels, for `standardize`
EVALUATION_BATCH = 10_000


class MnistTask(Task):
    """Digits as vectors of 784 pixels in [0, 1], kept in memory.

    model: "mlp". model_options: hidden (widths, default [50, 50]), activation (relu, tanh, sigmoid; default relu),
    standardize (pixels to mean 0 and variance 1; default no), init_scale (of the initial weights; default 1).
    """

    classes = 10

    def __init__(self, recipe: Recipe, may_fetch: bool = True) -> None:
        known: dict[str, Any] = {"hidden": [50, 50], "activation": "relu", "standardize": False, "init_scale": 1.0}
        unknown = set(recipe.model_options) - set(known)
        if recipe.model != "mlp" or unknown:
            raise RecipeError(f"task mnist has the model mlp with model_options {', '.join(known)}")
        self.options = known | recipe.model_options
        self.standardize = self.options.pop("standardize")
        models.check("mlp", self.classes, image_size=28, channels=1, **self.options)
        if recipe.synthetic:
            self.data = "synthetic digits"
            self.train, self.heldout = _random_digits(60_000), _random_digits(10_000)
        else:
            source = mnist.find_mnist(recipe.data_dir, allow_download=may_fetch)
            self.data = "MNIST" if not source.reduced else "5,000 digits of MNIST"
            self.train, self.heldout = mnist.load_mnist(source)
        self.samples = len(self.train.labels)

    def make_model(self) -> nn.Module:
        return models.make("mlp", self.classes, image_size=28, channels=1, **self.options)

    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        for chosen in indices:
            yield self._pixels(self.train.images[chosen]), self.train.labels[chosen]

    def shard_batches(self, part: str, shard: int, shards: int) -> Iterator[Batch]:
        split = self.train if part == "train" else self.heldout
        images, labels = split.images[shard::shards], split.labels[shard::shards]
        for some, their in zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True):
            yield self._pixels(some), their

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(images), labels)

    def score(self, model: nn.Module, batch: Batch) -> Score:
        images, labels = batch
        logits = model(images)
        errors = (logits.argmax(1) != labels).sum()
        return Score(float(F.cross_entropy(logits, labels, reduction="sum")), float(errors), len(labels))

    def _pixels(self, images: Tensor) -> Tensor:
        pixels = images.flatten(1).float().div_(255)
        return pixels.sub_(MEAN).div_(STD) if self.standardize else pixels


def _random_digits(samples: int) -> mnist.Split:
    """Noise, labelled by a fixed linear rule so that it can be learned."""
    numbers = torch.Generator().manual_seed(samples)
    images = torch.randint(0, 256, (samples, 28, 28), dtype=torch.uint8, generator=numbers)
    rule = torch.randn(784, 10, generator=torch.Generator().manual_seed(0))
    return mnist.Split(images, (images.flatten(1).float().div_(255).sub_(0.5) @ rule).argmax(1))
