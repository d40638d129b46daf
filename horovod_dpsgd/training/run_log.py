"""A run's folder: `config.yaml`, `metrics.jsonl`, TensorBoard events, `result.json`, and a progress bar on rank 0.

`result.json` is there if the run ended, as one that completed or diverged; `interrupted.json` if it was asked to end.

Only rank 0 writes; the other learners have a `SilentRunLog`, so that nobody has to ask who they are.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from horovod_dpsgd import __version__
from horovod_dpsgd.files import json_number, write_json, write_whole
from horovod_dpsgd.training.recipe import Recipe

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
RESULT, INTERRUPTED = "result.json", "interrupted.json"  # how a run came to its end: one of them, or neither


class SilentRunLog:
    """The log of the learners that do not write."""

    def metrics(self, step: int, values: dict[str, float], advanced: int = 0) -> None:
        """Note `values` for `step`; the bar advances by so many steps."""

    def histogram(self, step: int, name: str, counts: dict[int, int]) -> None:
        """Note how often each value has occurred up to `step`."""

    def say(self, line: str) -> None:
        """A line for the user."""

    def result(self, values: dict[str, Any]) -> None:
        """The run has ended: write its result."""

    def interrupted(self, step: int, by: str) -> None:
        """The run was asked to end after `step`, by the signal of this name: write that down."""

    def close(self) -> None:
        """Release files and the terminal."""


class RunLog(SilentRunLog):
    """The log of rank 0, in `folder`; `steps` of `total` are done already (resumed)."""

    def __init__(self, folder: Path, recipe: Recipe, done: int, total: int) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from tqdm import tqdm

        self.folder = folder
        write_whole(folder / CONFIG, recipe.text())
        (folder / INTERRUPTED).unlink(missing_ok=True)
        if (folder / RESULT).exists():  # resumed to train longer: it is no result of what comes now
            (folder / RESULT).rename(folder / f"result-step-{done:08d}.json")
        _keep_lines_until(folder / METRICS, done)
        self._lines = (folder / METRICS).open("a")
        self._events = SummaryWriter(str(folder), purge_step=done + 1)
        name = f"{recipe.task} {recipe.algo}"
        pause = 1.0 if sys.stderr.isatty() else 10.0  # seconds between two looks of the bar; files get fewer
        self._bar = tqdm(total=total, initial=done, desc=name, unit="step", mininterval=pause, dynamic_ncols=True)

    def metrics(self, step: int, values: dict[str, float], advanced: int = 0) -> None:
        line = {"step": step} | {name: json_number(value) for name, value in values.items()}
        self._lines.write(json.dumps(line) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)
        self._bar.update(advanced)
        if "train_loss" in values:
            self._bar.set_postfix_str(f"loss {values['train_loss']:.4g}", refresh=False)

    def histogram(self, step: int, name: str, counts: dict[int, int]) -> None:
        values = np.array(list(counts), dtype=float)
        if values.size:
            weights = np.array(list(counts.values()), dtype=float)
            self._events.add_histogram_raw(
                name,
                min=values.min(),
                max=values.max(),
                num=weights.sum(),
                sum=values @ weights,
                sum_squares=values**2 @ weights,
                bucket_limits=list(values + 0.5),
                bucket_counts=list(weights),
                global_step=step,
            )

    def say(self, line: str) -> None:
        self._bar.write(line)

    def result(self, values: dict[str, Any]) -> None:
        write_json(self.folder / RESULT, values)

    def interrupted(self, step: int, by: str) -> None:
        write_json(self.folder / INTERRUPTED, {"step": step, "by": by})

    def close(self) -> None:
        self._bar.close()
        self._events.close()
        self._lines.close()


def versions() -> dict[str, str]:
    """Of everything a result may depend on."""
    from mpi4py import MPI

    packages = ("torch", "torchvision", "numpy", "mpi4py", "horovod", "transformers", "tokenizers")
    found = {name: _version(name) for name in packages}
    library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0 ")
    return {"horovod_dpsgd": __version__, "python": platform.python_version(), **found, "mpi_library": library}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def git_revision() -> str | None:
    """The commit of the code that runs, "-dirty" if it was changed since; None outside a git checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _keep_lines_until(path: Path, step: int) -> None:
    """Drop what an interrupted run wrote after the checkpoint that is resumed from."""
    if path.exists():
        whole = [
            line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")
        ]  # not one cut short
        write_whole(path, "".join(line for line in whole if json.loads(line)["step"] <= step))
