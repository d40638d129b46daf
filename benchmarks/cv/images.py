"""A set of labelled images, wherever it is kept, as a source of batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor


class Request(NamedTuple):
    """One batch: which images, and the random stream that augments them; None: as evaluation wants them."""

    samples: np.ndarray  # int64 [B]
    seed: int | None


class Images(ABC):
    """N labelled images. labels: int64 [N], the classes 0 to K-1."""

    labels: np.ndarray

    @abstractmethod
    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        """For each request, in their order: pixels uint8 [B, C, H, W] and labels int64 [B].

        A batch is a function of its request alone. So it does not matter which process prepares it, nor when, and a run
        that is resumed sees the images it would have seen. May take requests ahead of what it gives.
        """

    def __len__(self) -> int:
        return len(self.labels)


def first_of_each_class(labels: np.ndarray, classes: int, samples: int) -> np.ndarray:
    """The numbers of the first `samples` / `classes` samples of each class (of one more, in the first classes, where
    that has a remainder), in ascending order. Where a class has fewer, ValueError says what would have to be less."""
    wanted = np.full(classes, samples // classes)
    wanted[: samples % classes] += 1
    there = np.bincount(labels, minlength=classes)
    if (there < wanted).any():
        short = int(np.argmax(there < wanted))
        raise ValueError(f"{samples} samples are {wanted[short]} of class {short}, which has {there[short]}")
    return np.sort(np.concatenate([np.flatnonzero(labels == k)[: wanted[k]] for k in range(classes)]))
