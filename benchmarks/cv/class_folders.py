"""Images on disk in a folder for each class, the layout of ImageNet and of torchvision's ImageFolder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from horovod_dpsgd.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
HELDOUT = ("val", "test")


@dataclass(frozen=True)
class ClassFolders:
    """root/CLASS/**/*.jpg. labels: int64 [N], the place of CLASS in `classes`, which are in alphabetical order.

    files: below their class's folder, [N], as bytes in one array: a list of ImageNet's million names would take ten
    times the memory in every learner, and as long to send to every worker.
    """

    root: Path
    classes: tuple[str, ...]
    files: np.ndarray
    labels: np.ndarray

    def path(self, sample: int) -> Path:
        return self.root / self.classes[self.labels[sample]] / os.fsdecode(self.files[sample])

    def state(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change (ns) of every file: what changes when the images do."""
        paths = [self.path(sample) for sample in range(len(self.files))]
        return [(str(path), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]


def find(root: Path) -> ClassFolders:
    """List the images below `root`. Raises DataError where there are none, or none of a class."""
    try:
        classes = tuple(sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and entry.name[0] != "."))
    except OSError as error:
        raise DataError(f"{root} cannot be read ({error.strerror})") from error
    if not classes:
        raise DataError(f"{root} has no class folders: images are expected in {root}/CLASS/")
    names = [_images_below(root / name) for name in classes]
    for name, some in zip(classes, names, strict=True):
        if not some:
            raise DataError(f"class folder {root / name} has no images ({', '.join(SUFFIXES)})")
    labels = np.repeat(np.arange(len(classes)), [len(some) for some in names])
    return ClassFolders(root, classes, np.array([name for some in names for name in some]), labels)


def find_parts(data_dir: Path, heldout: tuple[str, ...] = HELDOUT) -> tuple[ClassFolders, ClassFolders]:
    """`data_dir`/train, and the first there is of `heldout`. Raises DataError if one is missing or classes differ."""
    there = [name for name in heldout if (data_dir / name).is_dir()]
    if not (data_dir / "train").is_dir() or not there:
        judged_by = " or ".join(f"{name}/CLASS/" for name in heldout)
        raise DataError(f"--data-dir {data_dir} has not both train/CLASS/ and {judged_by}, folders with images")
    train, judged = find(data_dir / "train"), find(data_dir / there[0])
    if differing := sorted(set(train.classes) ^ set(judged.classes)):
        some = ", ".join(differing[:3]) + (", ..." if len(differing) > 3 else "")
        raise DataError(f"{train.root} and {judged.root} differ in {len(differing)} class folder(s): {some}")
    return train, judged


def read_image(path: Path) -> Image.Image:
    """The image in RGB. Raises DataError, with its path, if it cannot be decoded to the end."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(f"image {path} cannot be decoded ({' '.join(str(error).split())})") from error


def _images_below(folder: Path) -> list[bytes]:
    found = []
    for below, _, names in os.walk(folder, followlinks=True):
        inner = os.path.relpath(below, folder)
        found += [os.path.normpath(os.path.join(inner, name)) for name in names if name.lower().endswith(SUFFIXES)]
    return [os.fsencode(name) for name in sorted(found)]
