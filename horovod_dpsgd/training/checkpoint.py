"""Checkpoints: n learners have n different models, so a checkpoint is a folder with a file for each of them.

    checkpoints/step-00001000/learner-003.pt, ..., manifest.json

The folder appears under its name only when all files are complete and on disk. All learners must see the same folder.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from horovod_dpsgd.learners import Learners


def save(folder: Path, step: int, state: dict[str, Any], learners: Learners) -> Path:
    """Write all learners' `state` as the checkpoint of `step`. Collective."""
    final = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.partial"
    if learners.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    learners.barrier("the start of a checkpoint")
    _write(_file_of(partial, learners.rank), state | {"random": _random_state()})
    learners.barrier("the end of a checkpoint")
    if learners.rank == 0:
        manifest = partial / "manifest.json"
        manifest.write_text(json.dumps({"step": step, "learners": learners.size}) + "\n")
        _sync(manifest)
        _sync(partial)
        if final.exists():
            shutil.rmtree(final)
        partial.rename(final)
        _sync(folder)
    learners.barrier("the naming of a checkpoint")
    return final


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself."""

    folder: Path
    step: int
    learners: int


def newest(folder: Path) -> Manifest | None:
    """The newest complete checkpoint below `folder`, if there is one. Not collective: ask on one learner."""
    found = max(folder.glob("step-*/manifest.json"), default=None)
    return None if found is None else Manifest(found.parent, **json.loads(found.read_text()))


def load(manifest: Manifest, learners: Learners) -> dict[str, Any]:
    """This learner's state in a checkpoint; restores the random state too."""
    state: dict[str, Any] = torch.load(_file_of(manifest.folder, learners.rank), weights_only=False)
    _set_random_state(state.pop("random"))
    return state


def _file_of(folder: Path, rank: int) -> Path:
    return folder / f"learner-{rank:03d}.pt"


def _write(path: Path, state: dict[str, Any]) -> None:
    with path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _random_state() -> dict[str, Any]:
    return {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
