"""The data sets, and the layouts in which people have them:

task           --data-dir DIR holds
cifar10        cifar-10-batches-py/ (as torchvision keeps it), or image files: train/CLASS/*.jpg, test/CLASS/*.jpg
fashion-mnist  FashionMNIST/raw/*-ubyte (as torchvision keeps it), each raw or .gz
mnist-images   as for task mnist: MNIST/raw/*-ubyte; fetched where there is no --data-dir
imagenet       train/CLASS/*.JPEG and val/CLASS/*.JPEG, 1,000 classes each
folder         train/CLASS/* and val/CLASS/* or test/CLASS/*: images of your own
"""

from __future__ import annotations

import gzip
import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.cv import class_folders, mnist
from benchmarks.cv.augment import CropAndFlip
from benchmarks.cv.class_folders import ClassFolders
from benchmarks.cv.in_memory import Decoded, Source
from horovod_dpsgd.errors import DataError

Colour = tuple[float, ...]  # a number for each channel


class Found(NamedTuple):
    """A data set on this machine: what it is in words, and the files of both parts."""

    words: str
    train: Source | ClassFolders
    heldout: Source | ClassFolders


@dataclass(frozen=True)
class DataSet:
    """What is known of a data set before its files are seen. `samples` and `classes` are those of its synthetic
    form; `size`: pixels a side, unless image_size says another; mean and std: of pixels in [0, 1].

    find: the files, from --data-dir and whether something may be fetched. Raises DataError if they are not there.
    """

    title: str
    samples: int
    classes: int
    channels: int
    size: int
    mean: Colour
    std: Colour
    augmentation: CropAndFlip  # in memory; what is read from disk is augmented as ImageNet is
    find: Callable[[Path | None, bool], Found]
    any_size: bool = False  # images come in all sizes, and are cut to one


# ---- CIFAR-10 ----

CIFAR_HELP = (
    "get cifar-10-python.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it there, so that "
    "DIR/cifar-10-batches-py/data_batch_1 exists; or put image files there as DIR/train/CLASS/*.png and "
    "DIR/test/CLASS/*.png"
)


@dataclass(frozen=True)
class CifarBatches:
    """The official pickled batches of 10,000 images, in `folder`, with the MD5 of each."""

    folder: Path
    md5: dict[str, str]

    def state(self) -> object:
        return _state([self.folder / name for name in self.md5])

    def read(self) -> Decoded:
        batches = [self._read(self.folder / name, md5) for name, md5 in self.md5.items()]
        pixels = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, 32, 32)
        return Decoded(pixels, np.concatenate([batch["labels"] for batch in batches]).astype(np.int64))

    def _read(self, path: Path, md5: str) -> dict:
        content = _content(path)
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise DataError(f"{path} is damaged ({len(content)} bytes, wrong MD5): unpack it again")
        return pickle.loads(content, encoding="latin1")  # a pickle may run anything, but not one of this MD5


def cifar_batches() -> tuple[dict[str, str], dict[str, str]]:
    """The files of the training and of the held-out part, with the MD5 of each."""
    from torchvision.datasets import CIFAR10  # takes seconds, which only the start with these files has to wait for

    return dict(CIFAR10.train_list), dict(CIFAR10.test_list)


def find_cifar10(data_dir: Path | None, may_fetch: bool) -> Found:
    data_dir = _given(data_dir, "cifar10", CIFAR_HELP)
    for folder in (data_dir / "cifar-10-batches-py", data_dir):
        if not any(folder.glob("*_batch*")):
            continue
        train, heldout = cifar_batches()
        if missing := [name for name in (*train, *heldout) if not (folder / name).is_file()]:
            raise DataError(f"CIFAR-10 in {folder} is incomplete: {', '.join(missing)} missing; {CIFAR_HELP}")
        return Found("CIFAR-10", CifarBatches(folder, train), CifarBatches(folder, heldout))
    if not (data_dir / "train").is_dir():
        raise DataError(f"--data-dir {data_dir} does not hold CIFAR-10: {CIFAR_HELP}")
    images, others = class_folders.find_parts(data_dir, heldout=("test", "val"))
    if len(images.classes) != 10:
        raise DataError(
            f"{images.root} has {len(images.classes)} class folders, CIFAR-10 has 10; task folder takes any"
        )
    jpeg = images.path(0).suffix.lower() in (".jpg", ".jpeg")
    words = "CIFAR-10 (JPEG re-encoded)" if jpeg else "CIFAR-10 (image files)"
    return Found(words, DecodedFolders(images, 32, cut=False), DecodedFolders(others, 32, cut=False))


# ---- MNIST and Fashion-MNIST ----

FASHION_HELP = (
    "get the four files from https://github.com/zalandoresearch/fashion-mnist and put them there as "
    "DIR/FashionMNIST/raw/train-images-idx3-ubyte.gz and so on; or "
    "torchvision.datasets.FashionMNIST(DIR, download=True) does both"
)


@dataclass(frozen=True)
class IdxFiles:
    """Images and labels as two IDX files, each raw or gzipped."""

    images: Path
    labels: Path

    def state(self) -> object:
        return _state([self.images, self.labels])

    def read(self) -> Decoded:
        contents = {path: _content(path) for path in (self.images, self.labels)}
        for path, content in contents.items():
            if hashlib.sha256(content).hexdigest() in mnist.MNIST_SHA256.values():  # its files have the same names
                raise DataError(f"{path} is a file of MNIST, not of Fashion-MNIST; task mnist-images takes those")
        images = mnist.parse_idx(contents[self.images], self.images, dimensions=3)
        labels = mnist.parse_idx(contents[self.labels], self.labels, dimensions=1)
        if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
            raise DataError(f"{self.images} {images.shape} are not images of 28 x 28 with a class each, 0 to 9")
        return Decoded(images[:, None], labels.astype(np.int64))


def find_fashion_mnist(data_dir: Path | None, may_fetch: bool) -> Found:
    data_dir = _given(data_dir, "fashion-mnist", FASHION_HELP)
    folders = [data_dir / "FashionMNIST" / "raw", data_dir / "raw", data_dir]
    folder = next((each for each in folders if any(each.glob("t*-ubyte*"))), folders[0])
    parts = {}
    for part in ("train", "t10k"):
        names = [f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"]
        images, labels = (
            next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None) for name in names
        )
        if images is None or labels is None:
            missing = names[0] if images is None else names[1]
            raise DataError(f"--data-dir {data_dir} does not hold Fashion-MNIST: no {missing}; {FASHION_HELP}")
        parts[part] = IdxFiles(images, labels)
    return Found("Fashion-MNIST", parts["train"], parts["t10k"])


@dataclass(frozen=True)
class MnistSplit:
    """Training (0) or held-out (1) part of MNIST, or of the 5,000 digits that are there in its place."""

    source: mnist.MnistSource
    part: int

    def state(self) -> object:
        return _state(sorted(path for path in self.source.path.iterdir() if path.is_file())), self.part

    def read(self) -> Decoded:
        images, labels = mnist.load_mnist(self.source)[self.part]
        return Decoded(images[:, None].numpy(), labels.numpy())


def find_mnist(data_dir: Path | None, may_fetch: bool) -> Found:
    source = mnist.find_mnist(data_dir, allow_download=may_fetch)
    words = "5,000 digits of MNIST" if source.reduced else "MNIST"
    return Found(words, MnistSplit(source, 0), MnistSplit(source, 1))


# ---- folders of images ----

IMAGENET_HELP = (
    "get ILSVRC2012 from https://image-net.org (it wants an account) and put its images there as "
    "DIR/train/CLASS/*.JPEG and DIR/val/CLASS/*.JPEG, CLASS being names like n01440764"
)
FOLDER_HELP = "a folder with images as DIR/train/CLASS/*.jpg and DIR/val/CLASS/*.jpg (or test/) is expected"


@dataclass(frozen=True)
class DecodedFolders:
    """Images of class folders for memory, `size` x `size`. cut: whatever their size is, the shorter side is resized to
    that and the centre cut out; otherwise another size is an error."""

    folders: ClassFolders
    size: int
    cut: bool

    def state(self) -> object:
        return self.folders.state(), self.size, self.cut

    def read(self) -> Decoded:
        from torchvision.transforms import v2

        view = v2.Compose([v2.Resize(self.size), v2.CenterCrop(self.size), v2.PILToTensor()])
        pixels = np.empty((len(self.folders.files), 3, self.size, self.size), np.uint8)
        for sample in range(len(pixels)):
            path = self.folders.path(sample)
            image = class_folders.read_image(path)
            if image.size == (self.size, self.size):
                pixels[sample] = np.asarray(image).transpose(2, 0, 1)  # as the view gives it, in half the time
            elif self.cut:
                pixels[sample] = view(image)
            else:
                raise DataError(f"image {path} is {image.width} x {image.height}, not {self.size} x {self.size}")
        return Decoded(pixels, self.folders.labels)


def find_imagenet(data_dir: Path | None, may_fetch: bool) -> Found:
    data_dir = _given(data_dir, "imagenet", IMAGENET_HELP)
    if not (data_dir / "train").is_dir():
        raise DataError(f"--data-dir {data_dir} does not hold ImageNet-1K: no train/ there; {IMAGENET_HELP}")
    train, heldout = class_folders.find_parts(data_dir, heldout=("val",))
    if len(train.classes) != 1000:
        raise DataError(f"{train.root} has {len(train.classes)} class folders, not 1,000; task folder takes any number")
    return Found("ImageNet-1K", train, heldout)


def find_folder(data_dir: Path | None, may_fetch: bool) -> Found:
    data_dir = _given(data_dir, "folder", FOLDER_HELP)
    train, heldout = class_folders.find_parts(data_dir)
    return Found(f"{data_dir.resolve().name} ({len(train.classes)} classes)", train, heldout)


def _given(data_dir: Path | None, task: str, help_line: str) -> Path:
    if data_dir is None:
        raise DataError(f"task {task} needs --data-dir DIR (or --synthetic): {help_line}")
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a folder; {help_line}")
    return data_dir


def _state(paths: list[Path]) -> list[tuple[str, int, int]]:
    return [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in paths]


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, *mnist.BROKEN) as error:
        raise DataError(f"{path} is damaged or unreadable ({error})") from error


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # pytorch/examples, imagenet/main.py
LIKE_IMAGENET = partial(
    DataSet,
    channels=3,
    size=224,
    mean=IMAGENET_MEAN,
    std=IMAGENET_STD,
    augmentation=CropAndFlip(0, True),
    any_size=True,
)
DATA_SETS = {
    "cifar10": DataSet(
        title="CIFAR-10", samples=50_000, classes=10, channels=3, size=32,
        mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010),  # kuangliu/pytorch-cifar, main.py
        augmentation=CropAndFlip(4, True), find=find_cifar10,
    ),
    "fashion-mnist": DataSet(
        title="Fashion-MNIST", samples=60_000, classes=10, channels=1, size=28,
        mean=(0.2860,), std=(0.3530,),  # in general use; not computed here
        augmentation=CropAndFlip(2, True), find=find_fashion_mnist,
    ),
    "mnist-images": DataSet(
        title="MNIST", samples=60_000, classes=10, channels=1, size=28,
        mean=(0.1307,), std=(0.3081,),  # tests/test_mnist_data.py computes them
        augmentation=CropAndFlip(2, False), find=find_mnist,
    ),
    "imagenet": LIKE_IMAGENET(
        title="ImageNet-1K", samples=1_281_167, classes=1000, find=find_imagenet
    ),
    "folder": LIKE_IMAGENET(title="folder", samples=10_000, classes=10, find=find_folder),
}  # fmt: skip
