"""The training runs an experiment is made of: started one after the other, and skipped where they exist."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from horovod_dpsgd.report import runs
from horovod_dpsgd.training.run_log import METRICS, RESULT

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One training run: `learners` x `python script arguments --output folder`."""

    name: str
    script: str
    learners: int
    arguments: tuple[str, ...]

    def command(self, folder: Path, launcher: str, more: tuple[str, ...] = ()) -> list[str]:
        """launcher: the words before `python`, where {np} stands for the number of learners."""
        words = [word.replace("{np}", str(self.learners)) for word in shlex.split(launcher)]
        return [*words, sys.executable, str(REPOSITORY / self.script), *self.arguments, *more, "--output", str(folder)]


@dataclass(frozen=True)
class Place:
    """Where and how jobs run.

    folder: of the run folders. launcher: see `Job.command`. more: arguments for all runs, as --data-dir. keep: a folder
    for what reports are made of, without checkpoints; what is there is not run again, whatever `folder` holds.
    """

    folder: Path
    launcher: str
    more: tuple[str, ...] = ()
    keep: Path | None = None


def mpirun() -> str:
    """The words that start learners on this machine, however few cores it has."""
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    allow_more_than_cores = "--oversubscribe " if "Open MPI" in version or "OpenRTE" in version else ""
    return f"mpirun {allow_more_than_cores}-np {{np}}"


def environment() -> dict[str, str]:
    """This process's, with which learners find the code; and mpirun refuses root, who one is in a container."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return os.environ | root | {"PYTHONPATH": str(REPOSITORY)}


def print_all(jobs: list[Job], place: Place) -> None:
    for job in jobs:
        print(shlex.join(job.command(place.folder / job.name, place.launcher, place.more)))


def run_all(jobs: list[Job], place: Place) -> list[runs.Run]:
    """Run what has no result yet; return all runs. Ends the program if one fails."""
    return [runs.load(_run(job, place, f"[{number}/{len(jobs)}] {job.name}")) for number, job in enumerate(jobs, 1)]


def _run(job: Job, place: Place, name: str) -> Path:
    """The folder of the job's result, which is made if it is not there."""
    kept = place.keep / job.name if place.keep else None
    if kept and (kept / RESULT).exists():
        print(f"{name}: kept from before", flush=True)
        return kept
    folder = place.folder / job.name
    if (folder / RESULT).exists():
        print(f"{name}: done before", flush=True)
    else:
        command = job.command(folder, place.launcher, place.more)
        print(f"{name}: {shlex.join(command)}", flush=True)
        # What an interrupted run left can be gone on with.
        status = subprocess.run([*command, "--resume", "auto"], env=environment(), check=False).returncode
        if status:
            sys.exit(f"reproduce.py: the run {job.name} failed with status {status}; the reason is above")
    if kept:
        kept.mkdir(parents=True, exist_ok=True)
        for file in (METRICS, RESULT):  # the result last: it says that the run is whole
            shutil.copyfile(folder / file, kept / file)
    return folder
