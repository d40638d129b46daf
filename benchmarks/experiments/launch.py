"""The training runs an experiment is made of, and what is measured of them: started one after the other, and skipped
where they exist."""

from __future__ import annotations

import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from horovod_dpsgd.diagnostics.points import Points
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.launching import environment
from horovod_dpsgd.report import runs
from horovod_dpsgd.report.runs import Run
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.cli import recipe_of
from horovod_dpsgd.training.recipe import shaping
from horovod_dpsgd.training.run_log import METRICS, RESULT

REPOSITORY = Path(__file__).resolve().parents[2]
INDIFFERENT = runs.INDIFFERENT - {"seed"}  # keys of a recipe that shape no result
SEVERAL = Path(__file__).resolve().parent / "several.py"


@dataclass(frozen=True)
class Place:
    """Where and how jobs run.

    folder: of the run folders. launcher: the words before `python`, in which {np} is the number of learners. more:
    arguments for all runs, as --data-dir. keep: a folder for what reports are made of, without checkpoints; what is
    there is not run again, whatever `folder` holds. together: so many runs in one launch.
    """

    folder: Path
    launcher: tuple[str, ...]
    more: tuple[str, ...] = ()
    keep: Path | None = None
    together: int = 1

    def start(self, learners: int) -> list[str]:
        return [*(word.replace("{np}", str(learners)) for word in self.launcher), sys.executable]


@dataclass(frozen=True)
class Loaded:
    """What jobs have come to: training runs, and what was measured of them or beside them."""

    runs: Sequence[Run]
    measured: Sequence[Points] = ()


@dataclass(frozen=True)
class Job:
    """One training run: `learners` x `python script arguments --output folder`."""

    name: str
    script: str
    learners: int
    arguments: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """What reports are made of, in its folder; the last is there only if it has ended."""
        return METRICS, RESULT

    @property
    def inputs(self) -> tuple[Job, ...]:
        """The runs whose checkpoints it reads."""
        return ()

    def start(self, place: Place) -> list[str]:
        """The words before the script."""
        return place.start(self.learners)

    def impossible(self) -> str | None:
        """Why it cannot be run on this machine; None if it can."""
        return None

    def words(self, place: Place) -> list[str]:
        """The script's arguments."""
        return [*self.arguments, *place.more, "--output", str(place.folder / self.name)]

    def going_on(self, place: Place) -> list[str]:
        """The same, for one that goes on with what an interrupted one left."""
        return [*self.words(place), "--resume", "auto"]

    def found(self, place: Place) -> Path | None:
        """The folder that holds what reports are made of, if there is one."""
        folders = [place.folder / self.name, *([place.keep / self.name] if place.keep else [])]
        return next((folder for folder in folders if (folder / self.files[-1]).exists()), None)

    def has_checkpoint(self, place: Place) -> bool:
        return bool(checkpoint.folders(place.folder / self.name / "checkpoints"))

    def load(self, folder: Path, place: Place) -> Run | Points:
        """Raises UserError if what is there was not made as this would be."""
        run = runs.load(folder)
        check_made_by(run, self.script, self.learners, self.words(place))
        return run


def check_made_by(run: Run, script: str, learners: int, words: Sequence[str]) -> None:
    """Raise UserError if a run that has ended was made by other settings than those of a command that stands for it."""
    recipe = recipe_of(words, (REPOSITORY / script).parent / "recipes")
    # a recipe names a topology even where the algorithm has none
    free = INDIFFERENT if run.result["topology"] else INDIFFERENT | {"topology"}
    asked = shaping(recipe.model_dump(mode="json"), free) | {"learners": learners}
    made = shaping(run.config, free) | {"learners": run.result["learners"]}
    if changed := [key for key in asked if asked[key] != made[key]]:
        differences = ", ".join(f"{key} {made[key]!r}, now {asked[key]!r}" for key in changed)
        raise UserError(
            f"the run in {run.folder} was made with {differences}: give the same arguments for runs (after --), name "
            "other folders, or remove it"
        )


def print_all(jobs: list[Job], place: Place) -> None:
    for job in jobs:
        print(shlex.join([*job.start(place), str(REPOSITORY / job.script), *job.words(place)]))


def run_all(jobs: list[Job], place: Place) -> Loaded:
    """Run what has no result yet, or is of a run that has none, and runs whose checkpoints are wanted for that and
    missing; return what all have come to.

    Ends the program if one fails. Raises UserError if one that is there was made by other settings.
    """
    _load_all(jobs, place)  # those that there are: what cannot be used is said before hours are spent beside it
    missing = [job for job in jobs if any(each.found(place) is None for each in (job, *job.inputs))]
    print(f"{len(jobs)} runs, of which {len(jobs) - len(missing)} have a result", flush=True)
    lost = {run for job in missing for run in job.inputs if not run.has_checkpoint(place)}
    to_do = [job for job in jobs if (job in missing or job in lost) and not _impossible(job)]
    for (script, start), alike in itertools.groupby(to_do, lambda job: (job.script, job.start(place))):
        group = list(alike)
        for at in range(0, len(group), place.together):
            _run(group[at : at + place.together], start, script, place)
    for job in jobs:
        if job.found(place) is not None:
            _keep(job, place)
    return _load_all(jobs, place)


def _impossible(job: Job) -> bool:
    reason = job.impossible()
    if reason:
        print(f"{job.name}: left out, {reason}", flush=True)
    return reason is not None


def those_there(jobs: list[Job], place: Place) -> Loaded:
    """What those jobs have come to that have a result; run nothing. Raises UserError for runs of other settings."""
    loaded = _load_all(jobs, place)
    print(f"{len(jobs)} runs, of which {len(loaded.runs) + len(loaded.measured)} have a result", flush=True)
    return loaded


def _load_all(jobs: Iterable[Job], place: Place) -> Loaded:
    loaded = [job.load(folder, place) for job in jobs if (folder := job.found(place)) is not None]
    runs = [each for each in loaded if isinstance(each, Run)]
    return Loaded(runs, [each for each in loaded if isinstance(each, Points)])


def _run(jobs: list[Job], start: list[str], script: str, place: Place) -> None:
    words = [job.going_on(place) for job in jobs]
    if len(jobs) == 1:
        command = [*start, str(REPOSITORY / script), *words[0]]
    else:
        place.folder.mkdir(parents=True, exist_ok=True)
        file = place.folder / f"together-{os.getpid()}.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in words))
        command = [*start, str(SEVERAL), str(REPOSITORY / script), str(file)]
    names = ", ".join(job.name for job in jobs)
    print(f"{names}: {shlex.join(command)}", flush=True)
    status = subprocess.run(command, env=environment(), check=False).returncode
    if status:
        sys.exit(f"the run {names} failed with status {status}; the reason is above")
    for job in jobs:
        _keep(job, place, anew=True)


def _keep(job: Job, place: Place, anew: bool = False) -> None:
    folder, kept = place.folder / job.name, place.keep / job.name if place.keep else None
    if kept is None or ((kept / job.files[-1]).exists() and not anew):
        return
    kept.mkdir(parents=True, exist_ok=True)
    for file in job.files:  # the last says that all are there
        shutil.copyfile(folder / file, kept / file)
