"""What a benchmark brings to the loop: data, model, loss. Everything else is shared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from horovod_dpsgd.learners import generator

Batch = tuple[Tensor, ...]
Order = Literal["random", "sequential"]


class Score(NamedTuple):
    """Sums over a batch, to be added up over batches and learners."""

    loss: float  # the sum of the samples' losses, nats
    errors: float
    samples: float
    groups: tuple[Score, ...] = ()  # the same for those samples that belong to each of the task's groups
    other_errors: tuple[float, ...] = ()  # by the task's other kinds of error


class Task(ABC):
    """One data set and loss; a new task is a subclass of this in `benchmarks/`.

    samples: in the training set; classes: K, so that ln K is the loss of knowing nothing; data: what it was trained on,
    in words fit to stand beside a result; groups: kinds of held-out samples to be scored on their own too, by name;
    other_errors: kinds of error that are counted too, by name, as "top5"; order: in which training samples are taken,
    see `Sampler`.
    """

    samples: int
    classes: int
    data: str
    groups: tuple[str, ...] = ()
    other_errors: tuple[str, ...] = ()
    order: Order = "random"

    @abstractmethod
    def make_model(self) -> nn.Module:
        """A fresh model; PyTorch's random state is seeded alike on all learners before the call."""

    @abstractmethod
    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        """A batch for each tensor of sample numbers [B], augmented as training wants it."""

    @abstractmethod
    def shard_batches(self, part: str, shard: int, shards: int) -> Iterator[Batch]:
        """Every `shards`-th sample of the "train" or "heldout" part, from `shard` on, in large batches as they are."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The mean loss over the batch, a scalar to differentiate."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> Score:
        """What the batch adds to the held-out loss and error."""

    @property
    def chance_loss(self) -> float:
        """The loss of knowing nothing, where a diverged run ends up: ln K, the cross-entropy of a uniform guess, unless
        the task knows better."""
        return math.log(self.classes)

    def heldout_figures(self, loss: float) -> dict[str, float]:
        """What else a mean held-out loss says in this task, for the result: perplexity, say."""
        return {}


def to_device(batch: Batch, device: str) -> Batch:
    """The batch on "cpu" or "cuda"; copies that overlap computation where memory is pinned."""
    return tuple(tensor.to(device, non_blocking=True) for tensor in batch)


def split(batch: Batch, parts: int) -> list[Batch]:
    """The batch in so many equal parts; its tensors have the samples in their first dimension."""
    return list(zip(*(tensor.chunk(parts) for tensor in batch), strict=True))


class Part(NamedTuple):
    """One learner's share of one global batch."""

    step: int
    part: int  # 0 to n-1


class Sampler:
    """Which training samples make up each part of each global batch, for `parts` learners.

    In random order, every epoch has one of its own, drawn from (seed, epoch), and step s of an epoch takes the s-th
    `batch` samples of it, cut into parts. In sequential order, each place in the global batch goes through a stretch of
    samples that follow each other, one a step, and so does a learner through the stretches of its places; an epoch
    begins behind the sample that the one before ended with.

    Thus all learners together take the same samples whatever their number is, each at most once an epoch, and a resumed
    run goes on where it was. Samples that do not fill a global batch are left out for that epoch.
    """

    def __init__(self, samples: int, batch: int, parts: int, seed: int, order: Order = "random") -> None:
        self.samples, self.batch, self.seed, self.order = samples, batch, seed, order
        self.local, self.steps = batch // parts, samples // batch
        self._permutation, self._epoch = torch.empty(0), -1

    def indices(self, part: Part) -> Tensor:
        """The numbers of the samples, [batch / parts]."""
        epoch, step = divmod(part.step, self.steps)
        first = part.part * self.local  # place in the global batch
        if self.order == "sequential":
            places = torch.arange(first, first + self.local)
            return (epoch * self.steps * self.batch + places * self.steps + step) % self.samples
        if epoch != self._epoch:
            permutation = torch.randperm(self.samples, generator=generator("data", self.seed, epoch))
            self._permutation, self._epoch = permutation, epoch
        first += step * self.batch
        return self._permutation[first : first + self.local]
