"""Small data sets decoded once, and one copy of them in memory for all learners of a node.

The decoded images are a file in the cache folder that every learner maps: the pages are the operating system's, shared
by whoever maps them, and stay there from one run to the next.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.cache import cache_folder
from benchmarks.cv.augment import CropAndFlip
from benchmarks.cv.images import Images, Request
from horovod_dpsgd.errors import DataError

log = logging.getLogger(__name__)

FORMAT = 1  # of the cached files: raise it when what `read` gives for the same files changes


class Decoded(NamedTuple):
    """pixels: uint8 [N, C, H, W]; labels: int64 [N]."""

    pixels: np.ndarray
    labels: np.ndarray


class Source(Protocol):
    """Files that can be decoded."""

    def state(self) -> object:
        """What tells these files, as they are now, from any others; its repr is hashed."""

    def read(self) -> Decoded:
        """Decode them all. Raises DataError naming a file that is damaged."""


class InMemoryImages(Images):
    """Images as arrays, usually mapped from the cache."""

    def __init__(self, decoded: Decoded, augmentation: CropAndFlip) -> None:
        self.pixels, self.labels = decoded
        self.augmentation = augmentation

    def batches(self, requests: Iterable[Request]) -> Iterator[tuple[Tensor, Tensor]]:
        for samples, seed in requests:
            pixels = torch.from_numpy(self.pixels[self._place(samples)])
            if seed is not None:
                pixels = self.augmentation(pixels, seed)
            yield pixels, torch.from_numpy(self.labels[samples])

    def _place(self, samples: np.ndarray) -> np.ndarray:
        return samples


class RandomImages(InMemoryImages):
    """Noise of a data set's shape, to measure speed: `samples` of them, but only `DIFFERENT` different ones.

    Each of the different ones has a class of its own choosing, so it can be learned.
    """

    DIFFERENT = 500

    def __init__(self, samples: int, classes: int, shape: tuple[int, int, int], augmentation: CropAndFlip) -> None:
        numbers = np.random.default_rng(0)  # the same for training and held-out part
        pixels = numbers.integers(0, 256, (min(samples, self.DIFFERENT), *shape), np.uint8)
        labels = numbers.integers(0, classes, self.DIFFERENT)
        super().__init__(Decoded(pixels, labels[np.arange(samples) % len(pixels)]), augmentation)

    def _place(self, samples: np.ndarray) -> np.ndarray:
        return samples % len(self.pixels)


def load(source: Source, name: str, cache: Path | None = None) -> Decoded:
    """The decoded images, mapped read-only from the cache, into which they are put if they are not there.

    Safe in many processes at once; but each of them would decode, so let one of a node come first.
    Raises DataError if the files are damaged, or the cache cannot be written.
    """
    cache = cache or cache_folder("images")
    folder = cache / f"{name}-{hashlib.sha256(repr((FORMAT, source.state())).encode()).hexdigest()[:16]}"
    mapped = _map(folder)
    if mapped is None:
        log.info("decoding the images of %s, once for all runs, into %s", name, cache)
        _write(folder, source.read())
        mapped = _map(folder)
    if mapped is None:
        raise DataError(f"{folder} does not hold what was just written to it: is the disk full?")
    return mapped


def _map(folder: Path) -> Decoded | None:
    """None where it is missing or damaged."""
    try:
        pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        labels = np.load(folder / "labels.npy")
    except (OSError, ValueError, EOFError):
        return None
    return Decoded(pixels, labels) if len(pixels) == len(labels) else None


def _write(folder: Path, decoded: Decoded) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, array in zip(Decoded._fields, decoded, strict=True):
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as new:
                np.save(new, array)
            os.replace(new.name, folder / f"{name}.npy")  # readers see a whole file or none
    except OSError as error:
        raise DataError(
            f"cannot write decoded images to the cache {folder} ({error.strerror}); set XDG_CACHE_HOME"
        ) from error
