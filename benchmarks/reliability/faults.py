"""Faults, each injected into a training job of three learners: does the job end, how soon, and what does it leave?"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from benchmarks.experiments.launch import REPOSITORY
from horovod_dpsgd.launching import environment, mpirun
from horovod_dpsgd.training import checkpoint

PROGRAM = REPOSITORY / "benchmarks/reliability/faulty_train.py"
LEARNERS, EVERY, AT_STEP = 3, 10, 25  # a checkpoint every 10 steps; the fault comes at step 25, on learner 1
STALL_SECONDS = 8
RUN = ["--synthetic", "--batch-size", "300", "--max-steps", "60", "--log-every", "5", "--checkpoint-every", str(EVERY)]
DPSGD, SSGD = ("--algo", "dpsgd", "--topology", "matching"), ("--algo", "ssgd")
ADPSGD = ("--algo", "adpsgd", "--topology", "matching")
SHM_OF_FAULTS = "256m"  # for the job's own /dev/shm


@dataclass(frozen=True)
class Fault:
    """kind: of `faulty_train.FAULTS`; says: a pattern that must be in what the job prints, and names the learner.

    shm: the size of /dev/shm; disk: of the file system of the run folder, if it is one of its own;
    starts: whether any learner trains before it happens; at: the step; stall: the stall timeout, seconds.
    """

    name: str
    kind: str
    algo: tuple[str, ...]
    says: str
    shm: str = SHM_OF_FAULTS
    disk: str = ""
    starts: bool = True
    at: int = AT_STEP
    stall: float = STALL_SECONDS

    @property
    def status(self) -> int | None:
        """2 for what is found before training; else any but 0."""
        return None if self.starts else 2


KILLED = r"process rank 1 with PID \d+ on node \S+ exited on signal 9"  # Open MPI's words
FAULTS = [
    Fault("killed in forward, DPSGD", "kill-forward", DPSGD, KILLED),
    Fault("killed in forward, SSGD", "kill-forward", SSGD, KILLED),
    Fault("killed in the exchange, DPSGD", "kill-exchange", DPSGD, KILLED),
    Fault("killed in the all-reduce, SSGD", "kill-exchange", SSGD, KILLED),
    Fault("killed in forward, AD-PSGD", "kill-forward", ADPSGD, KILLED),
    Fault("killed in a checkpoint", "kill-checkpoint", DPSGD, KILLED),
    Fault("stopped (SIGSTOP), DPSGD", "stop", DPSGD, r"learner 1 has published \d+; gave up after 8 s"),
    Fault(
        "stopped (SIGSTOP), SSGD",
        "stop",
        SSGD,
        r"learner \d waits in [\w\s-]+ for the other learners; gave up after 8 s: learner 1 on \S+ did not get there",
    ),
    Fault("an exception", "exception", DPSGD, r"learner 1 ends the job: ArithmeticError"),
    # PyTorch looks every five seconds whether its workers live.
    Fault(
        "a data loader's worker dies",
        "worker",
        DPSGD,
        r"learner 1 ends the job: RuntimeError: DataLoader worker",
        stall=60,
    ),
    Fault("out of memory", "memory", DPSGD, r"learner 1 ends the job: RuntimeError: .*(allocate|memory)"),
    Fault(
        "disk full while saving", "none", DPSGD, r"learner \d ends the job: CheckpointError: cannot write", disk="700k"
    ),
    Fault("/dev/shm too small", "none", DPSGD, r"need .* MB of shared memory, and /dev/shm has", "512k", starts=False),
    Fault("another model on one learner", "model", DPSGD, r"the model of learner 1 differs", starts=False),
]


@dataclass(frozen=True)
class Outcome:
    """seconds: from the fault to the end of the job (NaN where nobody noted the fault); said: the reason, in the job's
    own words; "" if it gives none that names the learner.

    left: processes, shared memory or session folders that are still there; intact: the step of the newest checkpoint.
    """

    status: int
    seconds: float
    said: str
    left: list[str]
    intact: int | None
    output: str


def inject(
    fault: Fault, folder: Path, horovodrun: bool = False, timeout: float = 120, kill_launcher: bool = False
) -> Outcome:
    """Run the job in `folder`, with the fault. Raises subprocess.TimeoutExpired if it does not end.

    kill_launcher: have the launcher killed by SIGKILL when the fault has happened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run, scratch = folder / "run", folder / "tmp"
    scratch.mkdir()
    command = [str(PROGRAM), *fault.algo, *RUN, "--stall-timeout", str(fault.stall), "--output", str(run)]
    if fault.disk:
        run.mkdir()
    world = _world(fault, run, folder / "shm")
    # Session folders go to TMPDIR, to see what is left of them.
    env = environment() | {"FAULT": f"{fault.kind}:1:{fault.at}", "TMPDIR": str(scratch), "OMP_NUM_THREADS": "1"}
    hvd = ["horovodrun", "-np", str(LEARNERS), "-H", f"localhost:{LEARNERS}"]
    words = [*world, *(hvd if horovodrun else mpirun(LEARNERS)), sys.executable, *command]
    job = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, start_new_session=True
    )
    noted = folder / "run.fault"
    try:
        if kill_launcher:
            _kill_when(noted, scratch, timeout)
        output, _ = job.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        raise
    ended = time.time()
    seconds = ended - float(noted.read_text()) if noted.exists() else float("nan")
    reason = re.search(fault.says, " ".join(output.split()))
    left = [*_still_running(scratch), *_names_in(folder / "shm"), *_sessions(scratch)]
    return Outcome(job.returncode, seconds, reason[0] if reason else "", left, _intact(run), output)


def _kill_when(noted: Path, scratch: Path, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not noted.exists() and time.monotonic() < end:
        time.sleep(0.05)
    for pid, words in _processes(scratch).items():
        if Path(words[0]).name in ("mpirun", "prterun"):
            os.kill(pid, signal.SIGKILL)


@cache
def can_make_worlds() -> bool:
    """Whether a job can be given a /dev/shm of its own here."""
    trial = [*_unshare(), "sh", "-c", "mount -t tmpfs tmpfs /dev/shm"]
    return bool(shutil.which("unshare")) and subprocess.run(trial, capture_output=True, check=False).returncode == 0


def _world(fault: Fault, run: Path, listing: Path) -> list[str]:
    """What gives the job its own /dev/shm, of which afterwards `listing` says what is left in it."""
    disk = f"mount -t tmpfs -o size={fault.disk} tmpfs {run} && " if fault.disk else ""
    # the run folder is lost with its mount: what is of interest goes out first
    keep = f"cp -r {run} {run}.kept; umount {run}; rm -r {run}; mv {run}.kept {run}; " if fault.disk else ""
    job = f'"$@"; s=$?; ls /dev/shm >{listing}; {keep}exit $s'
    script = f"mount -t tmpfs -o size={fault.shm} tmpfs /dev/shm && {disk}{{ {job}; }}"
    return [*_unshare(), "sh", "-c", script, "sh"]


def _unshare() -> list[str]:
    return ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount"]


def _still_running(scratch: Path, patience: float = 5.0) -> list[str]:
    """The job's processes, if they are still there when they have been given time to end."""
    end = time.monotonic() + patience
    while (found := _processes(scratch)) and time.monotonic() < end:
        time.sleep(0.1)
    return [f"process {' '.join(words)[:100]}" for words in found.values()]


def _processes(scratch: Path) -> dict[int, list[str]]:
    """The command line of every process that has inherited the job's folder for temporary files."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"TMPDIR={scratch}" in (folder / "environ").read_bytes().decode(errors="replace").split("\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile, or is another user's
            continue
    return found


def _names_in(listing: Path) -> list[str]:
    # Not the semaphores, 32 bytes each, of a data loader: the process of Python that removes them is killed too.
    names = listing.read_text().split() if listing.exists() else []
    return [f"/dev/shm/{name}" for name in names if not name.startswith("sem.mp-")]


def _sessions(scratch: Path) -> list[str]:
    """Launchers' session folders. (Torch's own temporary files stay behind too, where a process is killed.)"""
    return [path.name for kind in ("prte*", "ompi*", "pmix*", "openmpi*") for path in scratch.glob(kind)]


def _intact(run: Path) -> int | None:
    manifest = checkpoint.newest(run / "checkpoints", lambda line: None)
    return manifest.step if manifest else None
