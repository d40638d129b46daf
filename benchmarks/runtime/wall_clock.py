"""Training runs against the clock: samples a second, and seconds to a training loss, of each algorithm.

On one host, on two emulated ones with a link of several rates, with a learner slowed down, and with random delays. All
on MNIST, by a network large enough (7 MB) that a slow link is felt. Runs that have a result are not run again, and one
that was interrupted goes on from its checkpoint.
"""

from __future__ import annotations

import fnmatch
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.comm.jobs import mpirun_here, mpirun_on_two_hosts
from benchmarks.comm.output import duration
from benchmarks.experiments.launch import REPOSITORY, check_made_by
from benchmarks.two_hosts.netns import why_not
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.launching import environment
from horovod_dpsgd.report import runs, table
from horovod_dpsgd.report.runs import Run
from horovod_dpsgd.training.run_log import RESULT

RATES: dict[str, str | None] = {"unlimited": None, "10gbit": "10gbit", "1gbit": "1gbit", "200mbit": "200mbit"}
TRAIN = "benchmarks/cv/train.py"
TO_END = 60.0  # seconds that a program has to end what it started
NETWORK = "model_options.hidden=[1000, 1000]"  # 1.8 million weights
COMMON = ("--recipe", "mnist", "--batch-size", "1600", "--max-steps", "300", "--set", NETWORK, "--log-every", "5")
LOSS = 0.15  # nats, that all reach
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "ssgd": ("--algo", "ssgd", "--lr", "0.2"),
    "ssgd-lamb": ("--algo", "ssgd", "--optimizer", "lamb", "--lr", "0.01"),
    "dpsgd-matching": ("--algo", "dpsgd", "--topology", "matching", "--lr", "0.2"),
    "dpsgd-ring": ("--algo", "dpsgd", "--topology", "ring", "--lr", "0.2"),
    "dpsgd-hierarchical": ("--algo", "dpsgd", "--topology", "hierarchical", "--lr", "0.2"),
    "adpsgd-matching": ("--algo", "adpsgd", "--topology", "matching", "--lr", "0.2"),
}
DISTURBED: dict[str, tuple[str, ...]] = {
    "slow": ("--slow-learner", "1:4"),
    "jitter": ("--jitter", "0.5"),
}
LABELS = {"": "", "slow": "learner 1 slowed 4x", "jitter": "random delays, 50% on average"}


@dataclass(frozen=True)
class Job:
    """One run of `learners`, on this host or, with `link` of `RATES`, on two emulated ones, half of them on each.

    disturbed: of `DISTURBED`, or empty.
    """

    algorithm: str
    learners: int
    link: str | None = None
    disturbed: str = ""
    more: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of the training command."""
        return (*COMMON, *ALGORITHMS[self.algorithm], *DISTURBED.get(self.disturbed, ()), *self.more)

    @property
    def name(self) -> str:
        """What its folder is called."""
        place = f"two-hosts-{self.link}" if self.link else "one-host"
        return "-".join(filter(None, [place, f"n{self.learners}", self.algorithm, self.disturbed]))

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        if not self.link:
            return "one host"
        return "two emulated hosts" + (f", link of {RATES[self.link]}" if RATES[self.link] else "")

    def command(self, folder: Path, timeout: float) -> list[str]:
        words = [sys.executable, str(REPOSITORY / TRAIN), *self.arguments, "--output", str(folder.resolve())]
        if not self.link:
            return [*mpirun_here(self.learners), *words]
        rate = RATES[self.link]
        world = [sys.executable, "-m", "benchmarks.two_hosts", "--timeout", f"{timeout:g}"]
        world += ["--rate", rate] if rate else []
        half = self.learners // 2
        return [*world, *mpirun_on_two_hosts(f"host1:{half},host2:{half}", self.learners), *words]


def jobs(more: Sequence[str] = (), learners: Sequence[int] = (2, 4, 8, 16)) -> list[Job]:
    """All runs; more: further arguments of the training command."""
    here = [(algorithm, n, None, "") for n in learners for algorithm in ALGORITHMS]
    late = [(algorithm, 4, None, name) for name in DISTURBED for algorithm in ALGORITHMS]
    away = [(algorithm, n, link, "") for link in RATES for n in (2, 4) for algorithm in ALGORITHMS]
    return [Job(algorithm, n, link, name, tuple(more)) for algorithm, n, link, name in [*here, *late, *away]]


def chosen(known: Sequence[Job], patterns: Iterable[str]) -> list[Job]:
    """Those whose name is like one of the patterns ("one-host-*"); all where there are none. Raises UserError."""
    patterns = list(patterns)
    found = [job for job in known if not patterns or any(fnmatch.fnmatch(job.name, each) for each in patterns)]
    if not found:
        raise UserError(f"no run is called {' or '.join(patterns)} (--list names them)")
    return found


def shown(job: Job, folder: Path, timeout: float) -> str:
    """The command as one types it in the repository."""
    words = ["python" if word == sys.executable else word for word in job.command(folder / job.name, timeout)]
    return shlex.join(words).replace(f"{REPOSITORY}/", "")


def impossible(job: Job) -> str | None:
    """Why it cannot be run here; None if it can."""
    return why_not() if job.link else None


def run(job: Job, folder: Path, timeout: float) -> str | None:
    """Run a job unless it has its result; how it failed, or None."""
    output = folder / job.name
    if (output / RESULT).exists():
        return None
    command = [*job.command(output, timeout), "--resume", "auto"]
    try:
        # two emulated hosts are taken down by their own program, which has the same limit
        limit = timeout + TO_END if job.link else timeout
        status = subprocess.run(command, env=environment(), check=False, timeout=limit).returncode
    except subprocess.TimeoutExpired:
        return f"it did not end within {timeout:.0f} s"
    return f"it failed with status {status}" if status else None


def results(known: Sequence[Job], folder: Path) -> list[tuple[Job, Run]]:
    """Those that have run. Raises UserError for one that other settings have made."""
    found = [(job, runs.load(folder / job.name)) for job in known if (folder / job.name / RESULT).exists()]
    for job, each in found:
        check_made_by(each, TRAIN, job.learners, job.arguments)
    return found


def seconds_a_step(run_: Run) -> float:
    """Of all learners together, without evaluation and start-up; NaN if no step was timed."""
    speed = run_.result["samples_per_second"]
    return run_.result["global_batch"] / speed if speed else float("nan")


def seconds_to(run_: Run, loss: float) -> float:
    """Until the mean training loss of an interval was first at `loss`; NaN if it never was."""
    steps, losses = run_.curve("train_loss")
    there = steps[losses <= loss]
    return float(there[0] * seconds_a_step(run_)) if len(there) else float("nan")


def report(finished: Sequence[tuple[Job, Run]], loss: float = LOSS, cores: int = os.cpu_count() or 1) -> str:
    """A table of all that ran: each against SSGD of as many learners at the same place."""
    rows = []
    base = {(job.learners, job.link, job.disturbed): r for job, r in finished if job.algorithm == "ssgd"}
    for job, each in finished:
        result = each.result
        other = base.get((job.learners, job.link, job.disturbed))
        ratio = seconds_a_step(other) / seconds_a_step(each) if other else float("nan")
        crowded = " (more than cores)" if job.learners > cores else ""
        rows.append(
            [
                job.place,
                f"{job.learners}{crowded}",
                job.algorithm,
                LABELS[job.disturbed],
                f"{result['samples_per_second'] or 0:.0f}",
                _number(ratio),
                "diverged" if result["diverged"] else _seconds(seconds_to(each, loss)),
                _seconds(result["exposed_communication_seconds_median"]),
                _number(each.error_percent),
            ]
        )
    header = ["place", "learners", "algorithm", "disturbed", "samples/s", "x SSGD", f"to loss {loss:g}"]
    return table.markdown([*header, "exposed a step", "held-out error %"], rows)


def _number(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "-"


def _seconds(value: float | None) -> str:
    return duration(value) if value is not None and np.isfinite(value) else "-"
