"""Run folders as places in one landscape: the mean model w_a of a checkpoint, under the run's own task and model."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import tasks
from horovod_dpsgd.diagnostics.objective import Objective
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.learners import Learners, use_device
from horovod_dpsgd.training import Batch, Recipe, Task, checkpoint
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.checkpoint import Manifest
from horovod_dpsgd.training.cli import make_task
from horovod_dpsgd.training.run_log import CONFIG
from horovod_dpsgd.training.task import to_device

LANDSCAPE = ("task", "model", "model_options", "data_options", "synthetic")  # what makes a landscape, of a recipe


@dataclass(frozen=True)
class Run:
    """A run whose solution is looked at. name: its folder's, which tells it from the others."""

    name: str
    folder: Path
    recipe: Recipe
    newest: Manifest

    @property
    def label(self) -> str:
        """ "dpsgd, complete: NAME"."""
        with_whom = f", {self.recipe.topology}" if self.recipe.algo in ("dpsgd", "adpsgd") else ""
        return f"{self.recipe.algo}{with_whom}: {self.name}"

    def checkpoints(self) -> list[Manifest]:
        """All that are intact, the first step first."""
        found = []
        for folder in reversed(checkpoint.folders(self.folder / "checkpoints")):
            with suppress(ValueError):
                manifest = Manifest.read(folder)
                if manifest.damage() is None:
                    found.append(manifest)
        return found


class Landscape:
    """The loss that runs of one task and model share, on `samples` of the training set, `at_once` in a batch, and where
    they are in it.

    The model is in evaluation mode, the samples are not augmented (Li et al. 2018).
    """

    def __init__(self, runs: list[Run], task: Task, device: str, samples: int, at_once: int) -> None:
        self.runs = runs
        self.task, self.device = task, device
        self.model = task.make_model().to(device).eval()
        batches = list(self._sample(samples, at_once))
        self.objective = Objective(self.model, partial(task.loss, self.model), batches)
        self._read: dict[Path, dict[str, Tensor]] = {}

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)

    def enter(self, manifest: Manifest) -> Tensor:
        """The weights w_a of a checkpoint, [numel]; the model now has its BatchNorm statistics."""
        if manifest.folder not in self._read:
            self._read = {manifest.folder: checkpoint.mean_model(manifest)}  # the last one only: models may be large
        self.model.load_state_dict(self._read[manifest.folder])
        return self.objective.weights()

    def state(self, manifest: Manifest) -> list[Tensor]:
        """The weights, and BatchNorm's statistics after them."""
        return [self.enter(manifest), *(b.clone() for b in self.objective.buffers)]

    def spread(self, manifest: Manifest) -> float:
        """The standard deviation of one weight among the learners of a checkpoint: sigma of Theorem 1."""
        mean = self.enter(manifest)
        total = 0.0
        for rank in range(manifest.learners):
            self.model.load_state_dict(checkpoint.read(manifest, rank)["algorithm"]["model"])
            total += float((self.objective.weights() - mean).square().sum())
        return (total / (manifest.learners * self.objective.dimension)) ** 0.5

    def _sample(self, samples: int, at_once: int) -> Iterator[Batch]:
        """Every k-th sample of the training set, `samples` at most."""
        parts = list(self.task.shard_batches("train", 0, -(-self.task.samples // samples)))
        columns = [torch.cat(column) for column in zip(*parts, strict=True)]
        for batch in zip(*(column.split(at_once) for column in columns), strict=True):
            yield to_device(batch, self.device)


def open_runs(
    folders: list[Path],
    samples: int,
    data_dir: Path | None,
    device: str | None,
    us: Learners,
    batch_size: int | None = None,
) -> Landscape:
    """batch_size: samples at once; without it what a learner had, which is known to fit.

    Raises UserError, on all learners, for folders without a run or a checkpoint, and runs that share no landscape.
    Collective.
    """
    runs = [_open(folder, us) for folder in folders]
    if len({run.name for run in runs}) < len(runs):
        raise UserError("two of the run folders have the same name, by which their points are told apart")
    first = runs[0].recipe
    for run in runs[1:]:
        for key in LANDSCAPE:
            one, other = getattr(first, key), getattr(run.recipe, key)
            if one != other:
                raise UserError(f"{runs[0].name} and {run.name} share no landscape: {key} {one!r} and {other!r}")
    given = {key: value for key, value in (("data_dir", data_dir), ("device", device)) if value is not None}
    recipe = recipes.load(str(runs[0].folder / CONFIG), runs[0].folder, given)
    use_device(us, recipe.device)
    at_once = batch_size or min(run.recipe.samples_at_once(run.newest.learners) for run in runs)
    return Landscape(runs, make_task(recipe, tasks.find(recipe.task), us), recipe.device, samples, at_once)


def _open(folder: Path, us: Learners) -> Run:
    if not (folder / CONFIG).exists():
        raise UserError(f"{folder} holds no run: {CONFIG} is missing")
    recipe = recipes.load(str(folder / CONFIG), folder, {"device": "cpu"})
    manifest = checkpoint.newest(folder / "checkpoints", lambda line: print(line, flush=True), us)
    if manifest is None:
        raise UserError(f"{folder} holds no checkpoint")
    return Run(folder.resolve().name, folder, recipe, manifest)


def identity(manifest: Manifest) -> str:
    """A word that stands for the contents of a checkpoint."""
    return hashlib.sha256(repr(sorted(manifest.files.items())).encode()).hexdigest()[:12]
