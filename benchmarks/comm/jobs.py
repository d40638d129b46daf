"""The measurements that run.py makes, each a command of its own, and their results."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.experiments.launch import REPOSITORY
from benchmarks.two_hosts import netns
from horovod_dpsgd.launching import mpirun, mpirun_on

LINKS = {"unlimited": None, "1gbit": "1gbit"}  # between emulated hosts: name, and limit as `tc` writes it
BITS_PER_SECOND = {"1gbit": 1e9}
EMULATED = "host1:1,host2:1"
MODELS = {  # name: options of a step that takes a second or so on one core
    "resnet18": ("--batch-size", "16", "--image-size", "112"),
    "vgg11_bn": ("--batch-size", "8", "--image-size", "64"),
    "gpt-small": ("--batch-size", "8"),
}
FEW_STEPS = ("--num-warmup-batches", "1", "--num-batches-per-iter", "2", "--num-iters", "9", "--budget", "25")


@dataclass(frozen=True)
class Job:
    """`learners` x `python benchmarks/comm/script options`, on this host, on two emulated ones or on two real ones.

    group: the table its results go to; quick: options put after the others by run.py --quick; link: of `LINKS`, between
    emulated hosts; hosts: real ones instead, as mpirun takes them.
    """

    name: str
    group: str
    script: str
    learners: int = 1
    options: tuple[str, ...] = ()
    quick: tuple[str, ...] = ()
    link: str | None = None
    hosts: str | None = None
    env: tuple[tuple[str, str], ...] = ()

    def command(self, quick: bool = False) -> list[str]:
        """What is run, without --output."""
        words = [sys.executable, str(REPOSITORY / "benchmarks/comm" / self.script), *self.options]
        words += self.quick if quick else ()
        if self.hosts:
            return [*mpirun_on(self.hosts, 2), *words]
        if self.link:
            return [*netns.words(LINKS[self.link]), *mpirun_on(EMULATED, 2), *words]
        return [*mpirun(self.learners), *words] if self.learners > 1 else words

    def shown(self, quick: bool = False) -> str:
        """The command as one types it in the repository."""
        words = ["python" if word == sys.executable else word for word in self.command(quick)]
        settings = [f"{name}={value}" for name, value in self.env]
        return " ".join([*settings, shlex.join(words).replace(f"{REPOSITORY}/", "")])

    @property
    def place(self) -> str:
        """Where it runs, in words."""
        if self.hosts:
            return f"hosts {self.hosts}"
        limit = "" if self.link == "unlimited" else f", link of {self.link}"
        return f"two emulated hosts{limit}" if self.link else "one node"


@dataclass(frozen=True)
class Measured:
    """What a job has left: what it says about the run, its rows, and what it could not measure."""

    job: Job
    about: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    skipped: list[dict[str, Any]] = field(default_factory=list)

    @property
    def command(self) -> str:
        return str(self.about.get("typed", self.job.shown()))


def load(job: Job, folder: Path) -> Measured:
    """From `folder`/NAME.jsonl; empty if there is none."""
    file = folder / f"{job.name}.jsonl"
    return parse(job, file.read_text() if file.exists() else "")


def parse(job: Job, text: str) -> Measured:
    """From its JSON lines."""
    lines = [json.loads(line) for line in text.splitlines()]
    about = {key: value for line in lines if line["kind"] in ("job", "run") for key, value in line.items()}
    rows, skipped = ([line for line in lines if line["kind"] == kind] for kind in ("row", "skipped"))
    return Measured(job, about, rows, skipped)


def all_jobs() -> list[Job]:
    return [*_exchange(), *_fused(), *_osu(), *_steps(), *_progress(), *_two_hosts(), *_peers()]


def jobs_between(hosts: str) -> list[Job]:
    """What is measured between emulated hosts, between two real ones, with whatever network they have."""
    return [
        replace(job, name=job.name.removesuffix("-unlimited"), link=None, hosts=hosts)
        for job in all_jobs()
        if job.link == "unlimited"
    ]


def _exchange() -> list[Job]:
    quick = ("--sizes", "1KB,1MB", "--turns", "3")
    return [Job(f"exchange-n{n}", "exchange", "exchange.py", n, quick=quick) for n in (2, 4, 8, 16)]


def _fused() -> list[Job]:
    options, quick = ("--turns", "15"), ("--model", "squeezenet1_1", "--turns", "3")
    return [
        Job("fused", "fused", "fused.py", options=options, quick=quick),
        Job("fused-n2", "fused", "fused.py", 2, options, quick),
    ]


def _osu(link: str | None = None) -> list[Job]:
    quick = ("-m", "1:4K", "-i", "20", "--turns", "3")
    suffix = f"-two-hosts-{link}" if link else ""
    return [
        Job(f"osu-{test}{suffix}", "osu", f"osu_get_{test}.py", 2, quick=quick, link=link) for test in ("latency", "bw")
    ]


def _steps() -> list[Job]:
    quick = ("--batch-size", "2", "--image-size", "32", "--num-batches-per-iter", "1", "--num-iters", "3")
    compared = [
        Job(
            f"step-{model}-n{n}",
            "step-overhead",
            "step_overhead.py",
            n,
            ("--compare", "--model", model, *options, *FEW_STEPS),
            quick,
        )
        for model, options in MODELS.items()
        for n in (1, 2, 4)
    ]
    loops = [
        Job(
            f"loop-{batch}",
            "loop",
            "loop_overhead.py",
            options=("--batch-size", str(batch), "--steps", "150", "--turns", "15"),
            quick=("--steps", "20", "--turns", "3"),
        )
        for batch in (2000, 400)
    ]
    slow = Job("slow-learner-n4", "slow-learner", "slow_learner.py", 4, quick=("--steps", "2", "--compute", "0.05"))
    return [*compared, *loops, slow]


def _progress() -> list[Job]:
    quick = ("--size", "1MB", "--seconds", "0.1", "--turns", "2")
    jobs = [
        Job(f"progress-{link}", "progress", "progress.py", 2, quick=quick, link=link) for link in ("unlimited", "1gbit")
    ]
    own_thread = (("MPICH_ASYNC_PROGRESS", "1"),)
    return [
        *jobs,
        Job("progress-mpich-unlimited", "progress", "progress.py", 2, quick=quick, link="unlimited", env=own_thread),
    ]


def _two_hosts() -> list[Job]:
    sizes, quick = ("--sizes", "1KB,64KB,1MB,4MB,16MB,44MB"), ("--sizes", "1KB,1MB", "--turns", "3")
    steps = ("--compare", "--model", "resnet18", "--batch-size", "16", "--image-size", "224", *FEW_STEPS)
    quick_steps = ("--batch-size", "2", "--image-size", "32", "--num-batches-per-iter", "1", "--num-iters", "3")
    exchange = [Job(f"exchange-two-hosts-{link}", "two-hosts", "exchange.py", 2, sizes, quick, link) for link in LINKS]
    training = [
        Job(f"step-two-hosts-{link}", "two-hosts", "step_overhead.py", 2, steps, quick_steps, link) for link in LINKS
    ]
    wire = Job("wire-bytes", "two-hosts", "wire_bytes.py", 2, quick=("--size", "1MB"), link="unlimited")
    return [*exchange, *training, wire, *_osu("unlimited")]


def _peers() -> list[Job]:
    quick = ("--image-size", "32", "--steps", "2", "--turns", "3")
    return [Job("decent-dp", "peers", "decent_dp_peer.py", 2, quick=quick)]
