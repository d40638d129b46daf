"""Images for the computer-vision tasks: layouts, error lines, augmentation, subsets, workers, and what is shared.

All data are made here, a few images of each; torchvision's own transforms are the reference.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, environment
from PIL import Image
from torch import nn
from torchvision.transforms import v2

import benchmarks.cv
from benchmarks.cache import cache_folder
from benchmarks.cv import class_folders, datasets, image_task, in_memory
from benchmarks.cv.augment import CropAndFlip, crop_and_flip
from benchmarks.cv.image_task import ImageTask
from benchmarks.cv.images import Request, first_of_each_class
from benchmarks.cv.on_disk import OnDiskImages
from horovod_dpsgd import launching
from horovod_dpsgd.errors import DataError, RecipeError
from horovod_dpsgd.training import Recipe
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.evaluation import evaluate_own
from horovod_dpsgd.training.task import Part, Sampler

RNG = np.random.default_rng(0)
CLASSES = ("ape", "bee", "cow")
RECIPES = Path(benchmarks.cv.__file__).parent / "recipes"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def models(monkeypatch) -> None:
    """One linear layer stands in for all networks, which have tests of their own."""

    def make(name, classes, image_size, channels, **options):
        if name != "linear" or options:
            raise RecipeError(f"unknown model {name} or option")
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * image_size**2, classes))

    monkeypatch.setattr(image_task, "models", SimpleNamespace(make=make, check=make))


def recipe(task: str, data_dir: Path | None, **keys) -> Recipe:
    training = {"model": "linear", "lr": 1, "max_steps": 1, "seed": 3, "batch_size": 8}
    return Recipe(**{"task": task, "data_dir": data_dir, **training, **keys})


def task(name: str, data_dir: Path | None, **data_options) -> ImageTask:
    return ImageTask(recipe(name, data_dir, data_options=data_options))


def complaint(kind, call, *arguments, **keywords) -> str:
    with pytest.raises(kind) as raised:
        call(*arguments, **keywords)
    line = str(raised.value)
    del (
        raised
    )  # it refers to this frame and so to itself, and workers that only the garbage collector ends take seconds
    assert len(line.splitlines()) == 1, line
    return line


# ---- data to find ----


def write_folders(root: Path, per_class: int, size=(32, 32), classes=CLASSES, suffix=".png") -> np.ndarray:
    """root/CLASS/N.png; the pixels in that order, [N, 3, height, width]."""
    pixels = []
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            image = RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)
            Image.fromarray(image).save(root / name / f"{number:04d}{suffix}")
            pixels.append(image.transpose(2, 0, 1))
    return np.stack(pixels)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_folders(tmp_path / "own" / "train", 6, (40, 52))
    write_folders(tmp_path / "own" / "val", 3, (52, 40))
    return tmp_path / "own"


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> tuple[Path, dict[str, np.ndarray]]:
    """Official files of four images each, with their own checksums."""
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    data = {}
    parts = datasets.cifar_batches()
    for part in parts:
        for name in part:
            data[name] = RNG.integers(0, 256, (4, 3072), np.uint8)
            content = pickle.dumps({"data": data[name], "labels": [3, 0, 9, 3], "filenames": ["a", "b", "c", "d"]})
            (folder / name).write_bytes(content)
            part[name] = hashlib.md5(content).hexdigest()
    monkeypatch.setattr(datasets, "cifar_batches", lambda: parts)
    return tmp_path / "cifar", data


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_idx(folder: Path, suffix: str = "", samples: int = 5) -> np.ndarray:
    folder.mkdir(parents=True, exist_ok=True)
    images = RNG.integers(0, 256, (samples, 28, 28), np.uint8)
    for part in ("train", "t10k"):
        arrays = {"images-idx3": images, "labels-idx1": np.arange(samples, dtype=np.uint8)}
        for name, array in arrays.items():
            content = idx(array)
            path = folder / f"{part}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)
    return images


def all_of(task: ImageTask, part: str) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*task.shard_batches(part, 0, 1), strict=True)
    return torch.cat(images), torch.cat(labels)


def train_batches(task: ImageTask, *batches: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(task.train_batches(map(torch.tensor, batches)))


def assert_same(first, second) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


# ---- layouts ----


@pytest.mark.parametrize("inside", [False, True])
def test_cifar_in_torchvisions_layout(cifar, inside):
    root, data = cifar
    found = task("cifar10", root / "cifar-10-batches-py" if inside else root, augment=False)
    assert (found.data, found.samples, found.classes) == ("CIFAR-10", 20, 10)
    expected = np.concatenate([data[f"data_batch_{n}"] for n in range(1, 6)]).reshape(-1, 3, 32, 32)
    images, labels = all_of(found, "train")
    np.testing.assert_array_equal(images.numpy(), expected)
    assert labels.tolist() == [3, 0, 9, 3] * 5
    np.testing.assert_array_equal(all_of(found, "heldout")[0].numpy(), data["test_batch"].reshape(-1, 3, 32, 32))


def test_the_checksums_of_cifar_are_torchvisions():
    train, heldout = datasets.cifar_batches()
    assert [*train, *heldout] == [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    assert all(len(md5) == 32 for md5 in (train | heldout).values())


def test_training_on_decoded_images_does_not_wait_for_torchvision(tmp_path):
    code = "import sys; import benchmarks.cv.image_task; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=environment(), check=False).returncode == 0


@pytest.mark.parametrize(("suffix", "words"), [(".png", "image files"), (".jpg", "JPEG re-encoded")])
def test_cifar_as_image_files(tmp_path, suffix, words):
    names = [f"class{n}" for n in range(10)]
    pixels = write_folders(tmp_path / "train", 3, classes=names, suffix=suffix)
    write_folders(tmp_path / "test", 1, classes=names, suffix=suffix)
    found = task("cifar10", tmp_path)
    assert (found.data, found.samples, len(found.heldout)) == (f"CIFAR-10 ({words})", 30, 10)
    images, labels = all_of(found, "train")
    assert labels.tolist() == [n for n in range(10) for _ in range(3)]
    if suffix == ".png":
        np.testing.assert_array_equal(images.numpy(), pixels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["", "raw", "FashionMNIST/raw"])
def test_every_layout_of_fashion_mnist(tmp_path, layout, suffix):
    expected = write_idx(tmp_path / layout, suffix)
    found = task("fashion-mnist", tmp_path)
    assert (found.data, found.samples) == ("Fashion-MNIST", 5)
    np.testing.assert_array_equal(all_of(found, "train")[0].numpy(), expected[:, None])
    assert all_of(found, "heldout")[1].tolist() == [0, 1, 2, 3, 4]


def test_mnist_as_images(tmp_path, monkeypatch):
    expected = write_idx(tmp_path)
    sums = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*ubyte")}
    monkeypatch.setattr(datasets.mnist, "MNIST_SHA256", sums)
    images, labels = all_of(task("mnist-images", tmp_path), "train")
    np.testing.assert_array_equal(images.numpy(), expected[:, None])
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert "mnist-images takes those" in complaint(DataError, task, "fashion-mnist", tmp_path)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_folder_of_ones_own(folder, part):
    (folder / "val").rename(folder / part)
    found = task("folder", folder)
    assert (found.data, found.samples, found.classes, len(found.heldout)) == ("own (3 classes)", 18, 3, 9)
    images, labels = all_of(found, "heldout")
    assert images.shape == (9, 3, 224, 224) and images.dtype == torch.uint8
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_images_may_be_deeper_and_gray_and_their_names_strange(folder):
    Image.fromarray(RNG.integers(0, 256, (30, 30), np.uint8)).save(folder / "train" / "bee" / "Z.JPEG")
    (folder / "train" / "ape" / "images").mkdir()
    (folder / "train" / "ape" / "0000.png").rename(folder / "train" / "ape" / "images" / "\u00e9 \udcff.png")
    (folder / "train" / "ape" / "notes.txt").write_text("no image")
    found = class_folders.find(folder / "train")
    assert len(found.labels) == 19 and all(found.path(sample).is_file() for sample in range(19))
    assert all_of(task("folder", folder), "train")[0].shape == (19, 3, 224, 224)


def test_imagenet_has_a_thousand_classes(tmp_path):
    names = [f"n{number:08d}" for number in range(1000)]
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    for folder in [tmp_path / part / name for part in ("train", "val") for name in names]:
        folder.mkdir(parents=True)
        os.link(tmp_path / "one.png", folder / "0000.png")
    found = task("imagenet", tmp_path)
    assert (found.data, found.classes, found.samples) == ("ImageNet-1K", 1000, 1000)
    for part in ("train", "val"):
        (tmp_path / part / names[0] / "0000.png").unlink()
        (tmp_path / part / names[0]).rmdir()
    assert "999 class folders, not 1,000" in complaint(DataError, task, "imagenet", tmp_path)


# ---- what is wrong with it ----


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar10", ["cifar-10-python.tar.gz", "DIR/cifar-10-batches-py", "DIR/train/CLASS"]),
        ("fashion-mnist", ["DIR/FashionMNIST/raw/train-images-idx3-ubyte", "download=True"]),
        ("imagenet", ["image-net.org", "DIR/train/CLASS", "DIR/val/CLASS"]),
        ("folder", ["train/CLASS", "val/CLASS"]),
    ],
)
def test_what_is_missing_is_said_in_one_line_with_where_to_get_it(tmp_path, name, words):
    (tmp_path / "empty").mkdir()
    for data_dir in (None, tmp_path / "nowhere", tmp_path / "empty"):
        line = complaint(DataError, task, name, data_dir)
        assert "--data-dir" in line
        if name != "folder" or data_dir is None:
            assert all(word in line for word in words), line


def test_a_part_of_cifar_that_is_missing_or_damaged_is_named(cifar):
    root, _ = cifar
    path = root / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path} is damaged" in complaint(DataError, task, "cifar10", root)
    path.unlink()
    assert "data_batch_3 missing" in complaint(DataError, task, "cifar10", root)


def test_a_pickle_that_is_not_cifars_is_not_run(cifar, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "evil"),)

    root, _ = cifar
    (root / "cifar-10-batches-py" / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    complaint(DataError, task, "cifar10", root)
    assert not (tmp_path / "evil").exists()


def break_image(folder: Path) -> Path:
    path = folder / "train" / "bee" / "0002.png"
    path.write_bytes(path.read_bytes()[:100])
    return path


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda root: (root / "val").rename(root / "other"), "train/CLASS/ and val/CLASS/ or test/CLASS/"),
        (lambda root: [path.unlink() for path in (root / "val" / "bee").iterdir()], "val/bee has no images"),
        (lambda root: (root / "val" / "bee").rename(root / "val" / "bug"), "2 class folder(s): bee, bug"),
        (lambda root: [(root / "train" / name).rename(root / name) for name in CLASSES], "no class folders"),
    ],
)
def test_a_damaged_folder_is_an_error_before_training(folder, damage, words):
    damage(folder)
    assert words in complaint(DataError, task, "folder", folder)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_cannot_be_decoded_is_named_when_it_is_read(folder, workers):
    path = break_image(folder)
    found = task("folder", folder, image_size=16, workers=workers)
    assert f"image {path} cannot be decoded" in complaint(DataError, all_of, found, "train")


def test_in_memory_it_is_named_before_training(folder, cache):
    path = break_image(folder)
    line = complaint(DataError, task, "folder", folder, image_size=16, in_memory=True)
    assert f"image {path} cannot be decoded" in line
    assert not [*cache.rglob("*.npy")]


def test_cifar_images_of_another_size_or_other_classes_are_named(tmp_path):
    names = [f"class{n}" for n in range(10)]
    for part in ("train", "test"):
        write_folders(tmp_path / part, 1, (32, 31), names)
    assert "class0/0000.png is 32 x 31, not 32 x 32" in complaint(DataError, task, "cifar10", tmp_path)
    for part in ("train", "test"):
        write_folders(tmp_path / part, 1, classes=["more"])
    assert "11 class folders, CIFAR-10 has 10" in complaint(DataError, task, "cifar10", tmp_path)


def test_wrong_idx_shapes_are_named(tmp_path):
    write_idx(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(4, np.uint8)))
    assert "train-images-idx3-ubyte" in complaint(DataError, task, "fashion-mnist", tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    assert "no train-labels-idx1-ubyte" in complaint(DataError, task, "fashion-mnist", tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("cifar10", {"sharpen": True}, "data_options.sharpen: unknown; known are augment, subset"),
        ("cifar10", {"augment": "no"}, "data_options.augment: Input should be a valid boolean"),
        ("cifar10", {"subset": 0}, "data_options.subset: Input should be greater than 0"),
        ("cifar10", {"subset": 2.5}, "data_options.subset: Input should be a valid integer"),
        ("cifar10", {"workers": 2}, "workers"),
        ("cifar10", {"image_size": 64}, "image_size"),
        ("cifar10", {"image_size": 10}, "10 does not divide 32"),
        ("folder", {"workers": -1}, "data_options.workers: Input should be greater than or equal to 0"),
        ("folder", {"workers": True}, "data_options.workers: Input should be a valid integer"),
        ("folder", {"workers": 1, "in_memory": True}, "data_options.workers: these images are in memory"),
        ("folder", {"subset": 16}, "6 of class 0, which has 5"),
        ("folder", {"image_size": "large"}, "data_options.image_size: Input should be a valid integer"),
    ],
)
def test_a_wrong_option_is_named(folder, name, options, words):
    (folder / "train" / "ape" / "0003.png").unlink()
    assert words in complaint(RecipeError, task, name, folder, **options)


def test_a_model_that_is_unknown_is_an_error_before_training(folder):
    assert "nonesuch" in complaint(RecipeError, ImageTask, recipe("folder", folder, model="nonesuch"))
    wrong = recipe("folder", folder, model_options={"classes": 4})
    assert "classes" in complaint(RecipeError, ImageTask, wrong)


# ---- augmentation and normalisation ----


def reference_crop(image: torch.Tensor, padding: int, top: int, left: int, mirrored: bool) -> torch.Tensor:
    height, width = image.shape[-2:]
    cropped = v2.functional.crop(v2.functional.pad(image, [padding] * 4), top, left, height, width)
    return v2.functional.horizontal_flip(cropped) if mirrored else cropped


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 5, 9)])
def test_crop_and_flip_is_torchvisions(shape):
    images = torch.from_numpy(RNG.integers(0, 256, (40, *shape), np.uint8))
    top, left = torch.randint(9, (2, 40))
    mirrored = torch.randint(2, (40,)).bool()
    ours = crop_and_flip(images, 4, top, left, mirrored)
    places = zip(images, top.tolist(), left.tolist(), mirrored.tolist(), strict=True)
    assert torch.equal(ours, torch.stack([reference_crop(image, 4, *place) for image, *place in places]))


def test_places_and_flips_are_drawn_evenly():
    """A ramp shows where it was cropped and whether it was mirrored: each of 9 x 9 x 2 cases 1 in 162."""
    ramp = (torch.arange(16)[:, None] * 16 + torch.arange(16)).to(torch.uint8)
    many = CropAndFlip(4, True)(ramp.expand(16_200, 1, 16, 16), seed=5)[:, 0, 6:10, 6:10]
    counts = many.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(counts) == 162
    assert ((counts - 100) ** 2 / 100).sum() < 220  # chi-squared of 161: 1 in 700 is above
    kept = CropAndFlip(0, False)(ramp.expand(10, 1, 16, 16), seed=5)
    assert torch.equal(kept, ramp.expand(10, 1, 16, 16))


def test_normalisation_is_torchvisions(cifar):
    found = task("cifar10", cifar[0])
    images, _ = all_of(found, "train")
    reference = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))]
    )
    torch.testing.assert_close(found.normalised(images), reference(images))


def test_loss_and_score_are_of_normalised_images(cifar):
    found = task("cifar10", cifar[0])
    model, batch = found.make_model(), all_of(found, "heldout")
    with torch.no_grad():
        logits = model(found.normalised(batch[0]))
        expected = nn.functional.cross_entropy(logits, batch[1])
        torch.testing.assert_close(found.loss(model, batch), expected)
        score = found.score(model, batch)
    assert score.loss == pytest.approx(4 * float(expected)) and score.samples == 4
    assert score.errors == float((logits.argmax(1) != batch[1]).sum())


def test_evaluation_and_training_views_are_torchvisions(folder):
    found = task("folder", folder, image_size=56)
    listed = class_folders.find(folder / "train")
    images = [class_folders.read_image(listed.path(sample)) for sample in range(18)]
    evaluation = v2.Compose([v2.Resize(64), v2.CenterCrop(56), v2.PILToTensor()])
    assert torch.equal(all_of(found, "train")[0], torch.stack([evaluation(image) for image in images]))
    training = v2.Compose([v2.RandomResizedCrop(56), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    ((batch, _),) = found.train.batches([Request(np.arange(18), 7)])
    torch.manual_seed(7)
    assert torch.equal(batch, torch.stack([training(image) for image in images]))


def test_in_memory_a_folder_is_resized_and_cut(folder):
    found = task("folder", folder, image_size=16, in_memory=True)
    listed = class_folders.find(folder / "train")
    view = v2.Compose([v2.Resize(16), v2.CenterCrop(16), v2.PILToTensor()])
    expected = torch.stack([view(class_folders.read_image(listed.path(sample))) for sample in range(18)])
    assert torch.equal(all_of(found, "train")[0], expected)


@pytest.mark.parametrize("name", ["cifar10", "folder"])
def test_without_augment_training_sees_the_images_as_they_are(cifar, folder, name):
    found = task(name, cifar[0] if name == "cifar10" else folder, augment=False)
    everything = all_of(found, "train")
    ((images, labels),) = train_batches(found, [5, 2, 11])
    assert torch.equal(images, everything[0][[5, 2, 11]]) and torch.equal(labels, everything[1][[5, 2, 11]])


# ---- the same whoever prepares it, and when ----

BATCHES = [[5, 2, 11, 0], [1, 3, 17, 4], [9, 8, 7, 6], [5, 2, 11, 1]]


@pytest.fixture(params=["in memory", "on disk"])
def augmented(request, folder):
    """A task made anew at each call."""
    return lambda **options: task("folder", folder, image_size=16, in_memory=request.param == "in memory", **options)


def test_a_resumed_run_sees_what_it_would_have_seen(augmented):
    assert_same(train_batches(augmented(), *BATCHES)[2:], train_batches(augmented(), *BATCHES[2:]))


def test_batches_are_augmented_differently(augmented):
    first, _, _, last = train_batches(augmented(), *BATCHES)
    assert not torch.equal(first[0][:3], last[0][:3])  # the same images in another batch


def test_another_seed_augments_differently(folder):
    batches = [
        train_batches(ImageTask(recipe("folder", folder, seed=seed, data_options={"image_size": 16})), BATCHES[0])
        for seed in (3, 3, 4)
    ]
    assert torch.equal(batches[0][0][0], batches[1][0][0]) and not torch.equal(batches[0][0][0], batches[2][0][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_learners_own_random_numbers_are_left_alone(folder, workers):
    """Dropout draws from them; with workers as without, and in a resumed run, it must draw the same."""
    found = task("folder", folder, image_size=16, workers=workers)
    before = torch.get_rng_state()
    train_batches(found, *BATCHES)
    all_of(found, "heldout")
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_prepare_the_same_batches_in_the_same_order(folder):
    alone, helped = (task("folder", folder, image_size=16, workers=workers) for workers in (0, 2))
    for _ in range(2):  # the same workers again
        assert_same(train_batches(helped, *BATCHES), train_batches(alone, *BATCHES))
    assert_same(list(helped.shard_batches("heldout", 1, 2)), list(alone.shard_batches("heldout", 1, 2)))


def test_training_and_its_evaluation_may_run_in_one_another(folder):
    alone, helped = (task("folder", folder, image_size=16, workers=workers) for workers in (0, 1))
    expected, whole = train_batches(alone, *BATCHES), all_of(alone, "train")
    batches = helped.train_batches(map(torch.tensor, BATCHES))
    first = next(batches)
    assert_same([all_of(helped, "train")], [whole])
    assert_same([first, *batches], expected)


def test_a_loader_that_was_left_half_way_does_no_harm(folder):
    alone, helped = (task("folder", folder, image_size=16, workers=workers) for workers in (0, 1))
    next(helped.train_batches(map(torch.tensor, BATCHES)))
    assert_same(train_batches(helped, *BATCHES), train_batches(alone, *BATCHES))


def test_a_worker_that_dies_is_an_exception_that_says_so(folder):
    found = task("folder", folder, image_size=16, workers=1)
    batches = found.train_batches(iter([torch.arange(4)] * 50))
    next(batches)
    child = subprocess.run(["pgrep", "-P", str(forkserver_pid())], capture_output=True, text=True, check=False)
    for pid in child.stdout.split():
        os.kill(int(pid), 9)
    with pytest.raises(RuntimeError, match=r"DataLoader worker .*exited unexpectedly"):
        list(batches)


def forkserver_pid() -> int:
    from multiprocessing import forkserver

    return forkserver._forkserver._forkserver_pid


def test_workers_do_not_load_mpi(folder):
    """A worker inherits the launcher's environment: there MPI would take it for a learner."""

    class Probe(OnDiskImages):
        pass

    images = Probe(class_folders.find(folder / "train"), 16, workers=1)
    images.decoder = LoadedModules()
    ((loaded, _),) = images.batches([Request(np.arange(1), None)])
    assert loaded.tolist() == [0]


class LoadedModules:
    def __getitem__(self, request: Request):
        return torch.tensor([sum(name.startswith(("mpi4py.MPI", "horovod.")) for name in sys.modules)]), torch.zeros(1)


# ---- who sees which sample ----


@pytest.mark.parametrize("shards", [1, 2, 4, 5])
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_shards_cover_every_sample_once(folder, shards, part, monkeypatch):
    monkeypatch.setattr(image_task, "EVALUATION_PIXELS", {"cpu": 2 * 16**2})
    found = task("folder", folder, image_size=16)
    seen = [batch for shard in range(shards) for batch in found.shard_batches(part, shard, shards)]
    assert all(len(images) <= 2 for images, _ in seen)
    images, labels = all_of(found, part)
    assert sorted(torch.cat([each for _, each in seen]).tolist()) == labels.tolist()
    assert len(torch.cat([each for each, _ in seen]).unique(dim=0)) == len(images)


def test_learners_together_train_on_every_sample_once(folder):
    found = task("folder", folder, image_size=16, augment=False)
    sampler = Sampler(found.samples, 6, 3, seed=0)
    parts = [Part(step, learner) for step in range(3) for learner in range(3)]
    seen = torch.cat([images for images, _ in found.train_batches(map(sampler.indices, parts))])
    assert len(seen.unique(dim=0)) == len(seen) == 18


def test_a_subset_takes_the_first_of_each_class_and_says_so(folder):
    found = task("folder", folder, image_size=16, subset=7)
    whole = task("folder", folder, image_size=16)
    assert (found.samples, found.data) == (7, "own (3 classes), 7 of 18 training images")
    images, labels = all_of(found, "train")
    assert labels.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert torch.equal(images, all_of(whole, "train")[0][[0, 1, 2, 6, 7, 12, 13]])
    assert len(found.heldout) == 9


def test_first_of_each_class():
    labels = np.array([1, 0, 1, 1, 0, 2, 2, 0])
    assert first_of_each_class(labels, 3, 3).tolist() == [0, 1, 5]
    assert first_of_each_class(labels, 3, 5).tolist() == [0, 1, 2, 4, 5]
    with pytest.raises(ValueError, match="9 samples are 3 of class 2, which has 2"):
        first_of_each_class(labels, 3, 9)


# ---- one copy for all learners of a node ----


def test_decoded_images_are_decoded_once_and_mapped(cifar, monkeypatch):
    task("cifar10", cifar[0])
    monkeypatch.setattr(datasets.CifarBatches, "read", None)  # not needed again
    again = task("cifar10", cifar[0])
    for images in (again.train, again.heldout):
        assert isinstance(images.pixels, np.memmap) and not images.pixels.flags.writeable
        with open("/proc/self/maps") as maps:
            assert str(images.pixels.filename) in maps.read()


def test_decoded_images_belong_to_the_files_they_are_of(folder, cache):
    def first_pixels():
        return all_of(task("folder", folder, image_size=16, in_memory=True), "train")[0][0]

    before = first_pixels()
    path = folder / "train" / "ape" / "0000.png"
    Image.fromarray(RNG.integers(0, 256, (33, 33, 3), np.uint8)).save(path)
    assert not torch.equal(first_pixels(), before)
    task("folder", folder, image_size=20, in_memory=True)
    assert len([*cache.rglob("pixels.npy")]) == 3 + 2  # train: before, after, at 20; held-out: at 16, at 20


@pytest.mark.parametrize("name", ["pixels.npy", "labels.npy"])
def test_a_damaged_cache_is_made_anew(cifar, cache, name):
    expected = all_of(task("cifar10", cifar[0]), "train")
    for path in cache.rglob(name):
        path.write_bytes(path.read_bytes()[:-5])
    assert_same([all_of(task("cifar10", cifar[0]), "train")], [expected])


def test_a_cache_that_cannot_be_written_is_named(cifar, cache):
    cache.write_text("a file")
    assert "set XDG_CACHE_HOME" in complaint(DataError, task, "cifar10", cifar[0])


def test_the_default_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_folder("images") == Path("/home/somebody/.cache/horovod_dpsgd/images")


# ---- noise, and recipes ----


@pytest.mark.parametrize(
    ("name", "size", "samples", "shape"),
    [
        ("cifar10", None, 50_000, (3, 32, 32)),
        ("fashion-mnist", None, 60_000, (1, 28, 28)),
        ("imagenet", 64, 1_281_167, (3, 64, 64)),
        ("folder", 16, 10_000, (3, 16, 16)),
    ],
)
def test_synthetic_images_have_the_data_sets_shapes_and_are_few(name, size, samples, shape):
    options = {"image_size": size} if size else {}
    found = ImageTask(recipe(name, None, synthetic=True, data_options=options))
    assert found.samples == samples and "synthetic" in found.data
    ((images, labels),) = train_batches(found, [0, samples - 1, 7])
    assert images.shape == (3, *shape) and labels.max() < found.classes
    assert found.train.pixels.nbytes < 50e6 and len(found.heldout) == 1000
    first, later = (found.train.batches([Request(np.array([n]), None)]) for n in (3, 503))
    assert_same(list(first), list(later))


def test_the_top_5_error_is_that_of_the_five_highest_logits(monkeypatch):
    monkeypatch.setattr(image_task, "SYNTHETIC_HELDOUT", 300)
    made = ImageTask(recipe("imagenet", None, synthetic=True, data_options={"image_size": 8}))
    monkeypatch.setitem(image_task.EVALUATION_PIXELS, "cpu", 70 * 8**2)  # 70 images a batch
    model = nn.Linear(8, 1000)
    monkeypatch.setattr(made, "normalised", lambda images: images[:, 0, 0].float() / 255)
    algorithm = SimpleNamespace(
        model=model,
        parameters=SimpleNamespace(device=torch.device("cpu")),
        learners=SimpleNamespace(gather=lambda thing: [thing]),
    )
    made.heldout.labels[::3] = 7
    nn.init.zeros_(model.weight)
    with torch.no_grad():
        model.bias.copy_(torch.arange(1000) == 7).add_(-0.001 * torch.arange(1000))  # 7, and then 0 to 3
    (found,) = evaluate_own(algorithm, made)
    labels = made.heldout.labels
    assert found.error_percent == pytest.approx(100 * (labels != 7).mean())
    among = np.isin(labels, [7, 0, 1, 2, 3]).mean()
    assert found.other_error_percents == {"top5_error_percent": pytest.approx(100 * (1 - among))}
    assert among > (labels == 7).mean()


def test_few_classes_have_no_top_5_error(cifar):
    assert task("cifar10", cifar[0]).other_errors == ()


def test_synthetic_images_need_no_workers():
    keys = {"synthetic": True, "data_options": {"workers": 8, "image_size": 16}}  # a recipe may ask for them
    assert isinstance(ImageTask(recipe("imagenet", None, **keys)).train, in_memory.RandomImages)


def test_small_images_are_shrunk_by_averaging(cifar):
    whole, half = (ImageTask(recipe("cifar10", cifar[0], data_options={"image_size": size})) for size in (32, 16))
    images = next(iter(half.shard_batches("heldout", 0, 1)))[0]
    assert images.shape[2:] == (32, 32)
    shrunk = half.normalised(images)
    np.testing.assert_allclose(shrunk, nn.functional.avg_pool2d(whole.normalised(images), 2), atol=1e-5)
    assert half.data.endswith("shrunk to 16 x 16")


def test_channels_last_is_a_layout_and_changes_no_number(cifar):
    plain, other = (ImageTask(recipe("cifar10", cifar[0], data_options={"channels_last": on})) for on in (False, True))
    images = next(iter(plain.shard_batches("heldout", 0, 1)))[0]
    assert other.normalised(images).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain.normalised(images), other.normalised(images))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_recipes_of_known_tasks(path):
    recipe = recipes.load(path.stem, path.parent, {})
    if recipe.task in datasets.DATA_SETS:
        image_task.DataOptions.of(recipe)
        recipe.check_learners(16)
        assert recipe.decay_epochs == sorted(recipe.decay_epochs)
    if recipe.base_lr:  # linear scaling and warm-up from the base rate
        assert recipe.lr == pytest.approx(recipe.base_lr * recipe.batch_size / recipe.base_batch_size)
        assert recipe.warmup_from == recipe.base_lr


@pytest.mark.mpi
def test_signals_to_the_job_spare_the_workers(folder, tmp_path):
    """mpirun sends them to a learner's whole process group, and its workers have no handlers."""
    recipe_file = tmp_path / "recipe.yaml"
    keys = {"task": "folder", "model": "vgg11-plain", "model_options": {"width": 0.25}, "lr": 0.01, "batch_size": 4}
    keys |= {"data_options": {"image_size": 32, "workers": 1}, "max_steps": 100_000, "checkpoint_every": 0}
    recipe_file.write_text(json.dumps(keys | {"log_every": 5, "data_dir": str(folder), "slow_learner": "1:5"}))
    train = REPOSITORY / "benchmarks/cv/train.py"
    words = [*launching.mpirun(2), sys.executable, str(train), "--recipe", str(recipe_file)]
    job = subprocess.Popen(
        [*words, "--output", str(tmp_path / "run")], env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    metrics, saved = tmp_path / "run/metrics.jsonl", tmp_path / "run/checkpoints"

    def wait_for(condition) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)

    wait_for(lambda: metrics.exists() and metrics.read_text())
    job.send_signal(signal.SIGUSR1)
    wait_for(lambda: list(saved.glob("step-*")))
    lines = len(metrics.read_text().splitlines())
    wait_for(lambda: len(metrics.read_text().splitlines()) > lines + 2)  # it goes on
    job.send_signal(signal.SIGUSR2)
    out, _ = job.communicate(timeout=60)
    assert job.returncode == 143, out


def test_the_training_script_knows_every_data_set():
    """It names them without importing what they need."""
    from benchmarks.cv.tasks import IMAGE_TASKS

    assert set(IMAGE_TASKS) == set(datasets.DATA_SETS)
