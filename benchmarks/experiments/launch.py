"""The training runs an experiment is made of: started one after the other, and skipped where they exist."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Job:
    """One training run: `learners` x `python script arguments --output folder`."""

    name: str
    script: str
    learners: int
    arguments: tuple[str, ...]

    def command(self, folder: Path) -> list[str]:
        python = [sys.executable, str(REPOSITORY / self.script)]
        return [*mpirun(self.learners), *python, *self.arguments, "--output", str(folder)]


def mpirun(learners: int) -> list[str]:
    """The words that start so many learners on this machine, however few cores it has."""
    version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    allow_more_than_cores = ["--oversubscribe"] if "Open MPI" in version or "OpenRTE" in version else []
    return ["mpirun", *allow_more_than_cores, "-np", str(learners)]


def environment() -> dict[str, str]:
    """This process's, with which learners find the code; and mpirun refuses root, who one is in a container."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return os.environ | root | {"PYTHONPATH": str(REPOSITORY)}


def run_all(jobs: list[Job], folder: Path, dry_run: bool) -> list[Path]:
    """Run what has no result yet below `folder`; return the run folders. Ends the program if a run fails."""
    folders = [folder / job.name for job in jobs]
    for number, (job, output) in enumerate(zip(jobs, folders, strict=True), 1):
        command = job.command(output)
        if dry_run:
            print(shlex.join(command))
        elif (output / "result.json").exists():
            print(f"[{number}/{len(jobs)}] {job.name}: done before", flush=True)
        else:
            print(f"[{number}/{len(jobs)}] {job.name}: {shlex.join(command)}", flush=True)
            _run(command, output)
    return folders


def _run(command: list[str], output: Path) -> None:
    # What an interrupted run left can be gone on with.
    status = subprocess.run([*command, "--resume", "auto"], env=environment(), check=False).returncode
    if status:
        sys.exit(f"reproduce.py: the run {output.name} failed with status {status}; the reason is above")
