"""Images in classes, from memory or from disk, and the networks of `benchmarks/cv/models`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.cv import in_memory, models
from benchmarks.cv.class_folders import ClassFolders
from benchmarks.cv.datasets import DATA_SETS, DataSet, DecodedFolders, Found
from benchmarks.cv.images import Images, Request, first_of_each_class
from benchmarks.cv.in_memory import InMemoryImages, RandomImages, Source
from benchmarks.options import Options, parse
from horovod_dpsgd.errors import DataError, RecipeError
from horovod_dpsgd.learners import seed_for
from horovod_dpsgd.training import Batch, Recipe, Score, Task

EVALUATION_PIXELS = {"cpu": 2**19, "cuda": 2**23}  # of a held-out batch: 512 images of CIFAR, or 167 of ImageNet

TOP5_CLASSES = 100  # with fewer, five guesses are too many to say anything

SYNTHETIC_HELDOUT = 1_000  # images: few, as it is training whose speed is measured


class DataOptions(Options):
    """What a recipe's data_options may hold.

    augment: random crops and flips; subset: train on the first so many samples, evenly of all classes; workers:
    processes that decode images ahead, for images read from disk; image_size: pixels a side, for tasks imagenet and
    folder any, for the others a divisor of theirs, to which the network's input is averaged; in_memory: decode images
    of imagenet and folder once too (then resized and cut to image_size, and augmented by flips alone); channels_last:
    give the network its images in that layout, with which convolutions may be faster.
    """

    augment: bool = True
    subset: int | None = Field(None, gt=0)
    workers: int = Field(0, ge=0)
    image_size: int | None = Field(None, ge=8)
    in_memory: bool = False
    channels_last: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> DataOptions:
        """Raises RecipeError for an option that is unknown, wrong, or has no meaning for the recipe's task."""
        options = parse(cls, "data_options", recipe.data_options)
        any_size, size = DATA_SETS[recipe.task].any_size, DATA_SETS[recipe.task].size
        if not any_size and options.in_memory:
            raise RecipeError(f"data_options: task {recipe.task} has no in_memory: its images always are")
        if not any_size and options.image_size and size % options.image_size:
            raise RecipeError(f"data_options.image_size: {options.image_size} does not divide {size}, {recipe.task}'s")
        if options.workers and (options.in_memory or not any_size):
            raise RecipeError("data_options.workers: these images are in memory; workers are for those read from disk")
        return options


class ImageTask(Task):
    """Classification of the images of `DATA_SETS[recipe.task]`.

    Batches are uint8 images [B, C, H, W], as few bytes as possible on their way to the device, and labels [B]; pixels
    are normalised just before the network. Augmentations are drawn from the seed and the numbers of the samples that
    are together in a learner's batch: they are the same for any number of workers, and in a run that is resumed, but
    others for another number of learners. (A learner's batch of one image is augmented alike in every epoch.)

    Where there are many classes, the top-5 error is reported too.
    """

    train: Images
    heldout: Images

    def __init__(self, recipe: Recipe, may_fetch: bool = True) -> None:
        self.recipe, self.options = recipe, DataOptions.of(recipe)
        data_set = DATA_SETS[recipe.task]
        self.channels, self.size = data_set.channels, self.options.image_size or data_set.size
        self.shrink = 1 if data_set.any_size else data_set.size // self.size
        self.mean, self.std = (torch.tensor(each).mul(255)[:, None, None] for each in (data_set.mean, data_set.std))
        if recipe.synthetic:
            self._take_noise(data_set)
        else:
            self._take(data_set.find(recipe.data_dir, may_fetch), data_set)
        if self.classes >= TOP5_CLASSES:
            self.other_errors = ("top5",)
        models.check(**self._model_arguments())  # while it is still one line for the user
        self.chosen = self._subset()
        self.samples = len(self.chosen)
        if self.samples < len(self.train):
            self.data += f", {self.samples:,} of {len(self.train):,} training images"
        if self.shrink > 1:
            self.data += f", shrunk to {self.size} x {self.size}"

    def _take_noise(self, data_set: DataSet) -> None:
        self.classes, self.data = data_set.classes, f"synthetic {data_set.title}"
        shape = self.channels, self.size * self.shrink, self.size * self.shrink
        self.train, self.heldout = (
            RandomImages(samples, self.classes, shape, data_set.augmentation)
            for samples in (data_set.samples, SYNTHETIC_HELDOUT)
        )

    def _take(self, found: Found, data_set: DataSet) -> None:
        self.data = found.words
        self.classes = len(found.train.classes) if isinstance(found.train, ClassFolders) else data_set.classes
        self.train, self.heldout = (
            self._images(part, name, data_set) for part, name in ((found.train, "train"), (found.heldout, "heldout"))
        )
        for images in (self.train, self.heldout):
            if not len(images) or images.labels.max() >= self.classes:
                raise DataError(f"{found.words} is to have {self.classes} classes, 0 to {self.classes - 1}")

    def _images(self, part: Source | ClassFolders, name: str, data_set: DataSet) -> Images:
        if isinstance(part, ClassFolders):
            if not self.options.in_memory:
                from benchmarks.cv.on_disk import OnDiskImages  # and torchvision, which takes two seconds

                return OnDiskImages(part, self.size, self.options.workers, pin=self.recipe.device == "cuda")
            part = DecodedFolders(part, self.size, cut=True)
        return InMemoryImages(in_memory.load(part, f"{self.recipe.task}-{name}"), data_set.augmentation)

    def _subset(self) -> np.ndarray:
        wanted, there = self.options.subset, len(self.train)
        if wanted is None or wanted == there:
            return np.arange(there)
        try:
            return first_of_each_class(self.train.labels, self.classes, wanted)
        except ValueError as error:
            raise RecipeError(f"data_options.subset: {error}") from error

    # ---- model ----

    def make_model(self) -> nn.Module:
        return models.make(**self._model_arguments())

    def _model_arguments(self) -> dict[str, Any]:
        follow = {
            "name": self.recipe.model,
            "classes": self.classes,
            "image_size": self.size,
            "channels": self.channels,
        }
        if given := follow.keys() & self.recipe.model_options.keys():
            raise RecipeError(f"model_options: {', '.join(sorted(given))} cannot be chosen there")
        return follow | self.recipe.model_options

    # ---- data ----

    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        return self.train.batches(self._request(self.chosen[batch.numpy()]) for batch in indices)

    def _request(self, samples: np.ndarray) -> Request:
        """The same samples come together again only by a rare chance, unless a batch is a single one."""
        if not self.options.augment:
            return Request(samples, None)
        digest = hashlib.blake2b(samples.tobytes(), digest_size=8).digest()
        return Request(samples, seed_for("augmentation", self.recipe.seed, int.from_bytes(digest, "little")))

    def shard_batches(self, part: str, shard: int, shards: int) -> Iterator[Batch]:
        images, samples = (self.train, self.chosen) if part == "train" else (self.heldout, np.arange(len(self.heldout)))
        batch = max(1, EVALUATION_PIXELS[self.recipe.device] // self.size**2)
        if part == "train":  # gradients are wanted of these
            batch = min(batch, self.recipe.samples_at_once(shards))
        mine = samples[shard::shards]
        return images.batches(Request(mine[at : at + batch], None) for at in range(0, len(mine), batch))

    # ---- loss ----

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(self.normalised(images)), labels)

    def score(self, model: nn.Module, batch: Batch) -> Score:
        images, labels = batch
        logits = model(self.normalised(images)).float()
        errors = (logits.argmax(1) != labels).sum()
        score = Score(float(F.cross_entropy(logits, labels, reduction="sum")), float(errors), len(labels))
        if not self.other_errors:
            return score
        among_5 = (logits.topk(5).indices == labels[:, None]).sum()
        return score._replace(other_errors=(len(labels) - float(among_5),))

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 pixels to float32 of about mean 0 and variance 1 in each channel, in the size and layout wanted."""
        if self.mean.device != images.device:
            self.mean, self.std = self.mean.to(images.device), self.std.to(images.device)
        layout = torch.channels_last if self.options.channels_last else torch.contiguous_format
        pixels = images.to(torch.float32, memory_format=layout)
        if self.shrink > 1:
            pixels = F.avg_pool2d(pixels, self.shrink)
        return pixels.sub_(self.mean).div_(self.std)
