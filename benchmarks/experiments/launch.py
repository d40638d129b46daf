"""The training runs an experiment is made of: started one after the other, and skipped where they exist."""

from __future__ import annotations

import itertools
import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from horovod_dpsgd.launching import environment
from horovod_dpsgd.report import runs
from horovod_dpsgd.training.run_log import METRICS, RESULT

REPOSITORY = Path(__file__).resolve().parents[2]
SEVERAL = Path(__file__).resolve().parent / "several.py"


@dataclass(frozen=True)
class Job:
    """One training run: `learners` x `python script arguments --output folder`."""

    name: str
    script: str
    learners: int
    arguments: tuple[str, ...]

    def words(self, folder: Path, more: tuple[str, ...] = ()) -> list[str]:
        """The script's arguments."""
        return [*self.arguments, *more, "--output", str(folder)]


@dataclass(frozen=True)
class Place:
    """Where and how jobs run.

    folder: of the run folders. launcher: the words before `python`, where {np} stands for the number of learners. more:
    arguments for all runs, as --data-dir. keep: a folder for what reports are made of, without checkpoints; what is
    there is not run again, whatever `folder` holds. together: so many runs in one launch.
    """

    folder: Path
    launcher: str
    more: tuple[str, ...] = ()
    keep: Path | None = None
    together: int = 1

    def start(self, learners: int) -> list[str]:
        return [*(word.replace("{np}", str(learners)) for word in shlex.split(self.launcher)), sys.executable]


def print_all(jobs: list[Job], place: Place) -> None:
    for job in jobs:
        words = job.words(place.folder / job.name, place.more)
        print(shlex.join([*place.start(job.learners), str(REPOSITORY / job.script), *words]))


def run_all(jobs: list[Job], place: Place) -> list[runs.Run]:
    """Run what has no result yet; return all runs. Ends the program if one fails."""
    missing = [job for job in jobs if _found(job, place) is None]
    print(f"{len(jobs)} runs, of which {len(jobs) - len(missing)} have a result", flush=True)
    for (script, learners), alike in itertools.groupby(missing, lambda job: (job.script, job.learners)):
        group = list(alike)
        for at in range(0, len(group), place.together):
            _run(group[at : at + place.together], script, learners, place)
    for job in jobs:
        _keep(job, place)
    return [runs.load(_found(job, place) or place.folder / job.name) for job in jobs]


def _found(job: Job, place: Place) -> Path | None:
    """Where the job's result is, if it is there."""
    folders = [place.folder / job.name, *([place.keep / job.name] if place.keep else [])]
    return next((folder for folder in folders if (folder / RESULT).exists()), None)


def _run(jobs: list[Job], script: str, learners: int, place: Place) -> None:
    # What an interrupted run left can be gone on with.
    words = [[*job.words(place.folder / job.name, place.more), "--resume", "auto"] for job in jobs]
    if len(jobs) == 1:
        command = [*place.start(learners), str(REPOSITORY / script), *words[0]]
    else:
        place.folder.mkdir(parents=True, exist_ok=True)
        file = place.folder / "together.jsonl"
        file.write_text("".join(json.dumps(each) + "\n" for each in words))
        command = [*place.start(learners), str(SEVERAL), str(REPOSITORY / script), str(file)]
    names = ", ".join(job.name for job in jobs)
    print(f"{names}: {shlex.join(command)}", flush=True)
    status = subprocess.run(command, env=environment(), check=False).returncode
    if status:
        sys.exit(f"reproduce.py: the run {names} failed with status {status}; the reason is above")
    for job in jobs:
        _keep(job, place)


def _keep(job: Job, place: Place) -> None:
    folder, kept = place.folder / job.name, place.keep / job.name if place.keep else None
    if kept is None or (kept / RESULT).exists():
        return
    kept.mkdir(parents=True, exist_ok=True)
    for file in (METRICS, RESULT):  # the result last: it says that the run is whole
        shutil.copyfile(folder / file, kept / file)
