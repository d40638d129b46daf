"""Checkpoints: n learners have n different models, so a checkpoint is a folder with a file for each of them.

    checkpoints/step-00001000/learner-003.pt, ..., manifest.json

The folder appears under its name only when all files are complete and on disk, and the manifest, written last, has the
size and the SHA-256 of each (as `sha256sum` prints it). All learners must see the same folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_dpsgd.learners import Learners

MANIFEST = "manifest.json"


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written."""


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself; files: for each file's name its bytes and SHA-256."""

    folder: Path
    step: int
    learners: int
    files: dict[str, tuple[int, str]]

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ValueError if the manifest is not there, or not one."""
        try:
            keys = json.loads((folder / MANIFEST).read_text())
            files = {str(name): (int(size), str(digest)) for name, (size, digest) in keys["files"].items()}
            found = cls(folder, int(keys["step"]), int(keys["learners"]), files)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{MANIFEST} cannot be read ({type(error).__name__}: {error})") from error
        if set(files) != {file_name(rank) for rank in range(found.learners)}:
            raise ValueError(f"{MANIFEST} does not name the files of {found.learners} learners")
        return found

    def damage(self, share: int = 0, shares: int = 1) -> str | None:
        """What is wrong with the files, or with every `shares`-th of them from `share` on; None if they are intact."""
        for name in sorted(self.files)[share::shares]:
            path, (size, digest) = self.folder / name, self.files[name]
            try:
                if path.stat().st_size != size:
                    return f"{name} has {path.stat().st_size} bytes and not {size}"
                if sha256(path) != digest:
                    return f"{name} has another SHA-256 than when it was written"
            except OSError as error:
                return f"{name}: {error.strerror}"
        return None


def save(folder: Path, step: int, state: dict[str, Any], learners: Learners, keep: int = 0) -> Path:
    """Write all learners' `state` as the checkpoint of `step`, and leave the `keep` newest (0: all). Collective.

    Raises CheckpointError on the learner that cannot write its file; those there were before are left as they were.
    """
    final = folder_of(folder, step)
    partial = _partial(final)
    if learners.rank == 0:
        for left in folder.glob(".step-*.partial"):  # of a run that was killed while it wrote
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    learners.barrier("the start of a checkpoint")
    own = partial / file_name(learners.rank)
    _write(own, state | {"random": _random_state()})
    written = learners.gather((own.name, (own.stat().st_size, sha256(own))))
    if learners.rank == 0:
        manifest = partial / MANIFEST
        about = {"step": step, "learners": learners.size, "files": dict(written)}
        manifest.write_text(json.dumps(about, indent=1) + "\n")
        _sync(manifest)
        _sync(partial)
        if final.exists():
            _remove(final)
        partial.rename(final)
        _sync(folder)
        for old in _folders(folder)[keep:] if keep else []:
            _remove(old)
    learners.barrier("the naming of a checkpoint")
    return final


def newest(folder: Path, learners: Learners, say: Callable[[str], None]) -> Manifest | None:
    """The newest undamaged checkpoint below `folder`, if there is one. Collective.

    Every learner checks a part of the files; of each damaged checkpoint that is passed over, rank 0 `say`s a line.
    """
    for candidate in learners.broadcast(_folders(folder) if learners.rank == 0 else None):
        manifest, problem = None, None
        try:
            manifest = Manifest.read(candidate)
            problem = manifest.damage(learners.rank, learners.size)
        except ValueError as error:
            problem = str(error)
        problems = [each for each in learners.gather(problem) if each]
        if not problems:
            return manifest
        if learners.rank == 0:
            say(f"checkpoint {candidate} is damaged and passed over: {problems[0]}")
    return None


def newest_intact(folder: Path) -> Manifest:
    """The same for a program that has no learners. Raises ValueError, naming what is damaged, if there is none."""
    problems = []
    for candidate in _folders(folder):
        try:
            manifest = Manifest.read(candidate)
            if (problem := manifest.damage()) is None:
                return manifest
        except ValueError as error:
            problem = str(error)
        problems.append(f"{candidate.name}: {problem}")
    raise ValueError("; ".join([f"{folder} holds no intact checkpoint", *problems]))


def load(manifest: Manifest, learners: Learners) -> dict[str, Any]:
    """This learner's state in a checkpoint of as many learners; restores the random state too."""
    state = _read(manifest, learners.rank)
    _set_random_state(state.pop("random"))
    return state


def load_mean(manifest: Manifest) -> dict[str, Any]:
    """One state for any number of learners: the mean of all in a checkpoint, in weights and the optimizer's state.

    What is no number with a fraction (counters, names) is learner 0's; the random state is left out.
    """
    mean: Any = None
    for rank in range(manifest.learners):
        state = _read(manifest, rank)
        mean = state if mean is None else _moved(mean, state, 1 / (rank + 1))
    del mean["random"]
    return dict(mean)


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where among a run's checkpoints that of `step` is."""
    return checkpoints / f"step-{step:08d}"


def file_name(rank: int) -> str:
    return f"learner-{rank:03d}.pt"


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()


def _read(manifest: Manifest, rank: int) -> dict[str, Any]:
    # Not only weights: the random states of Python and NumPy are among it. The files are the user's own.
    state: dict[str, Any] = torch.load(manifest.folder / file_name(rank), map_location="cpu", weights_only=False)
    return state


def _moved(mean: Any, other: Any, share: float) -> Any:
    """`mean` moved by `share` of the way towards `other`; the two are alike but for their numbers."""
    if isinstance(mean, dict):
        return {key: _moved(value, other[key], share) for key, value in mean.items()}
    if isinstance(mean, list | tuple):
        return type(mean)(_moved(one, two, share) for one, two in zip(mean, other, strict=True))
    if isinstance(mean, torch.Tensor) and mean.is_floating_point():
        return torch.lerp(mean.double(), other.double(), share).to(mean.dtype)
    return mean


def _folders(folder: Path) -> list[Path]:
    """Of the checkpoints there are, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _remove(checkpoint: Path) -> None:
    """At no moment is there half a checkpoint under its name."""
    gone = checkpoint.with_name(f".{checkpoint.name}.old.partial")
    checkpoint.rename(gone)
    shutil.rmtree(gone)


def _write(path: Path, state: dict[str, Any]) -> None:
    try:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch makes a RuntimeError of what the file says while it is written
        with suppress(OSError):
            path.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free / 1e6
        raise CheckpointError(f"cannot write {path} ({free:.0f} MB free there): {error}") from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    state = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    return state | {"cuda": cuda}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])
