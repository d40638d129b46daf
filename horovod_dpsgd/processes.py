"""This process among those of its job and machine: what its launcher says of it, whose end and signals reach it.

Needs no PyTorch: `python -m horovod_dpsgd.restart` stays in memory for as long as a job.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
LOCAL_SIZE_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
LOCAL_RANK_VARIABLES = ("OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "PMI_LOCAL_RANK", "SLURM_LOCALID")
MPI_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
RANK_VARIABLES = (*MPI_RANK_VARIABLES, "SLURM_PROCID")  # the last is also set in the shell of a batch job


def is_launched() -> bool:
    """Whether a launcher of MPI jobs started this process."""
    return any(name in os.environ for name in MPI_RANK_VARIABLES)


def environment_rank() -> int:
    """This process's rank by the launcher's environment, known before MPI starts; 0 where no launcher is at work."""
    return _environment_integer(RANK_VARIABLES, 0)


def environment_local_rank() -> int:
    """The same among the processes of this host."""
    return _environment_integer(LOCAL_RANK_VARIABLES, environment_rank())


def environment_local_size() -> int:
    """How many processes the launcher started on this host, as far as it says; else 1."""
    return _environment_integer(LOCAL_SIZE_VARIABLES, 1)


def _environment_integer(names: tuple[str, ...], default: int) -> int:
    return next((int(os.environ[name]) for name in names if name in os.environ), default)


def end_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it ends, killed or not."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextmanager
def sparing_children() -> Iterator[None]:
    """Processes started inside the block are spared the signals that mpirun passes on.

    It sends them to a learner's whole process group, where a data loader's workers would die of them. The mask is
    inherited by whatever they start. (SIGTERM is not in it: loaders end their workers by that.)
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
