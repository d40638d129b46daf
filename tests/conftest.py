"""Real jobs: `mpirun(n, script, ...)` starts n learners on this machine and returns the completed process."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from horovod_dpsgd import launching

REPOSITORY = Path(__file__).resolve().parents[1]
PROGRAMS = REPOSITORY / "tests" / "programs"

Job = Callable[..., subprocess.CompletedProcess[str]]


def mpi_library() -> str:
    """The first line of what mpirun says of itself, for skips."""
    if shutil.which("mpirun") is None:
        return "no mpirun on PATH"
    out = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout
    return out.strip().split("\n")[0]


def environment() -> dict[str, str]:
    return launching.environment() | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def run(command: list[str], timeout: float, status: int | None, **kwargs: object) -> subprocess.CompletedProcess[str]:
    """Run a command; fail the test, showing its output, unless it ends with `status` (None: any)."""
    env = environment() | kwargs.pop("env", {})  # type: ignore[operator]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, env=env, check=False, **kwargs
    )  # type: ignore[call-overload]
    if status is not None and done.returncode != status:
        pytest.fail(f"{' '.join(command)}\nstatus {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
    return done


@pytest.fixture
def mpirun() -> Job:
    """mpirun(n, script, *arguments, timeout=120, status=0): run `python script arguments` as n learners."""
    if shutil.which("mpirun") is None:
        pytest.skip(mpi_library())

    def job(
        n: int, script: Path | str, *arguments: object, timeout: float = 120, status: int | None = 0, **kwargs: object
    ):
        words = [str(word) for word in (script, *arguments)]
        return run([*launching.mpirun(n), sys.executable, *words], timeout, status, **kwargs)

    return job


@pytest.fixture
def horovodrun() -> Job:
    """horovodrun(n, hosts, script, *arguments): the same through Horovod's launcher."""
    if shutil.which("horovodrun") is None:
        pytest.skip("no horovodrun on PATH")

    def job(n: int, hosts: str, script: Path | str, *arguments: object, timeout: float = 180, status: int | None = 0):
        words = [str(word) for word in (script, *arguments)]
        return run(["horovodrun", "-np", str(n), "-H", hosts, "python", *words], timeout, status)

    return job
