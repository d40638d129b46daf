"""Training runs started by another program: the words before `python`, and the environment that learners want."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

from horovod_dpsgd.errors import UserError

ROOT = Path(__file__).resolve().parents[1]  # where learners are to import this package from, and benchmarks beside it


def mpirun(learners: int | str) -> list[str]:
    """The words that start so many learners on this machine, however few cores it has. Raises UserError without MPI."""
    allow_more_than_cores = [] if is_mpich() else ["--oversubscribe"]
    return ["mpirun", *_unbound(), *allow_more_than_cores, "-np", str(learners)]


def mpirun_on(hosts: str, learners: int | str) -> list[str]:
    """The same for HOST:SLOTS,HOST:SLOTS."""
    return ["mpirun", *_unbound(), "-np", str(learners), "-hosts" if is_mpich() else "-H", hosts]


def _unbound() -> list[str]:
    """As horovodrun starts its processes: Horovod's thread would else share a core with its learner. MPICH binds
    nothing by itself."""
    return [] if is_mpich() else ["--bind-to", "none"]


@functools.cache
def is_mpich() -> bool:
    """Whether mpirun takes the words of MPICH and its kin, not those of Open MPI. Raises UserError without MPI."""
    try:
        version = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"mpirun cannot be started: {error}") from error
    return "Open MPI" not in version and "OpenRTE" not in version


def environment() -> dict[str, str]:
    """This process's, with which learners find the code; and mpirun refuses root, who one is in a container."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | root | {"PYTHONPATH": os.pathsep.join(paths)}
