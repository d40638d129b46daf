"""Checkpoints: n learners have n different models, so a checkpoint is a folder with a file for each of them.

    checkpoints/step-00001000/learner-003.pt, ..., manifest.json

The folder appears under its name only when all files are complete and on disk, and the manifest, written last, has the
size and the SHA-256 of each (as `sha256sum` prints it). All learners must see the same folder.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_dpsgd.errors import DataError
from horovod_dpsgd.files import sha256, sync, write_whole
from horovod_dpsgd.learners import Learners

MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{8,}")


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
    """Write all learners' `state` as the checkpoint of `step`, and leave the `keep` newest up to it (0: all).

    Collective. Raises CheckpointError on the learner that cannot write its file; the others' and those there were
    before are left as they are.
    """
    final = folder_of(folder, step)
    partial = _hidden(final, "partial")
    if learners.rank == 0:
        for left in (*folder.glob(".step-*.partial"), *folder.glob(".step-*.old")):  # a run was killed meanwhile
            shutil.rmtree(left)
        partial.mkdir(parents=True)
    learners.barrier("the start of a checkpoint")
    own = partial / file_name(learners.rank)
    _write(own, state | {"random": _random_state()})
    written = learners.gather((own.name, (own.stat().st_size, sha256(own))))
    if learners.rank == 0:
        about = {"step": step, "learners": learners.size, "files": dict(written)}
        write_whole(partial / MANIFEST, json.dumps(about, indent=1) + "\n")
        sync(partial)
        old = _put_aside(final) if final.exists() else None  # damaged, or of an AD-PSGD run that took this step anew
        partial.rename(final)
        sync(folder)
        if old is not None:
            shutil.rmtree(old)
        # Not counting what lies beyond: it was passed over when this run was resumed.
        passed = [each for each in folders(folder) if step_of(each) <= step]
        for each in passed[keep:] if keep else []:
            shutil.rmtree(_put_aside(each))
    learners.barrier("the naming of a checkpoint")
    return final


def newest(folder: Path, say: Callable[[str], None], learners: Learners | None = None) -> Manifest | None:
    """The newest undamaged checkpoint below `folder`; None if there are none at all. Collective, if learners are given.

    Every learner checks a part of the files; of each damaged checkpoint that is passed over, one `say`s a line. Raises
    DataError, on all, if there are checkpoints and all are damaged.
    """
    rank, size = (learners.rank, learners.size) if learners else (0, 1)
    candidates = folders(folder) if rank == 0 else []
    if learners:
        candidates = learners.broadcast(candidates)
    for candidate in candidates:
        manifest, problem = _look_at(candidate, rank, size)
        problems = [each for each in (learners.gather(problem) if learners else [problem]) if each]
        if not problems:
            return manifest
        if rank == 0:
            say(f"checkpoint {candidate} is damaged and passed over: {problems[0]}")
    if candidates:
        raise DataError(f"none of the {len(candidates)} checkpoints in {folder} is intact")
    return None


def _look_at(folder: Path, share: int, shares: int) -> tuple[Manifest | None, str | None]:
    """A checkpoint, and what is wrong with it, by a part of its files."""
    try:
        manifest = Manifest.read(folder)
    except ValueError as error:
        return None, str(error)
    return manifest, manifest.damage(share, shares)


def load(manifest: Manifest, learners: Learners) -> dict[str, Any]:
    """This learner's state in a checkpoint of as many learners; restores the random state too."""
    state = read(manifest, learners.rank)
    _set_random_state(state.pop("random"))
    return state


def load_mean(manifest: Manifest) -> dict[str, Any]:
    """One state for any number of learners: the mean of all in a checkpoint, in weights and the optimizer's state.

    What is no number with a fraction (counters, names) is learner 0's; the random state is left out.
    """
    mean = _mean_of(manifest, lambda state: state)
    del mean["random"]
    return mean


def mean_model(manifest: Manifest) -> dict[str, torch.Tensor]:
    """The state dict of the model at w_a: means of weights and floating buffers, the rest as learner 0 has it."""
    return _mean_of(manifest, lambda state: state["algorithm"]["model"])


def _mean_of(manifest: Manifest, part: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    """The mean over the learners of a part of their states, of which two are in memory at a time."""
    mean = part(read(manifest, 0))
    for rank in range(1, manifest.learners):
        mean = _moved(mean, part(read(manifest, rank)), 1 / (rank + 1))
    return mean


def folder_of(checkpoints: Path, step: int) -> Path:
    """Where among a run's checkpoints that of `step` is."""
    return checkpoints / f"step-{step:08d}"


def file_name(rank: int) -> str:
    return f"learner-{rank:03d}.pt"


def read(manifest: Manifest, rank: int) -> dict[str, Any]:
    """A learner's state in a checkpoint."""
    # Not only weights: the random states of Python and NumPy are among it. The files are the user's own.
    state: dict[str, Any] = torch.load(manifest.folder / file_name(rank), map_location="cpu", weights_only=False)
    return state


def _moved(mean: Any, other: Any, share: float) -> Any:
    """`mean` moved by `share` of the way towards `other`. What only one of them has (the optimizer's state for a
    parameter without gradients, say) is taken as it is."""
    if isinstance(mean, dict) and isinstance(other, dict):
        both = {key: _moved(value, other[key], share) if key in other else value for key, value in mean.items()}
        return both | {key: value for key, value in other.items() if key not in mean}
    if isinstance(mean, list | tuple) and isinstance(other, list | tuple) and len(mean) == len(other):
        return type(mean)(_moved(one, two, share) for one, two in zip(mean, other, strict=True))
    if isinstance(mean, torch.Tensor) and isinstance(other, torch.Tensor) and mean.is_floating_point():
        return torch.lerp(mean.double(), other.double(), share).to(mean.dtype)
    return other if mean is None else mean


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def folders(folder: Path) -> list[Path]:
    """Of the checkpoints there are, the newest first; nothing else that users may have put there."""
    return sorted((each for each in folder.glob("step-*") if NAME.fullmatch(each.name)), key=step_of, reverse=True)


def _hidden(checkpoint: Path, why: str) -> Path:
    return checkpoint.with_name(f".{checkpoint.name}.{why}")


def _put_aside(checkpoint: Path) -> Path:
    """Under another name, so that at no moment there is half a checkpoint under its own."""
    aside = _hidden(checkpoint, "old")
    checkpoint.rename(aside)
    return aside


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
