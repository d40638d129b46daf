"""Training against the clock (Section 4.4, Appendix F): samples a second, and seconds to a training loss.

At CPU scale on MNIST, by a network large enough (7 MB) that a slow link is felt: on one host, with a learner slowed
down, with random delays, and on two emulated hosts with a link of several rates. At the paper's scale by its network
for CIFAR-10, on the machine or cluster that --launcher names, whose links are what they are.

Times are those of steps, without start-up and evaluation, and mean something on a machine with nothing else to do.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.experiments import cells, cv
from benchmarks.experiments.cells import DPSGD, SSGD
from benchmarks.experiments.experiment import Experiment, Line, Scale
from benchmarks.experiments.launch import Job, Loaded, Place
from benchmarks.two_hosts import netns
from horovod_dpsgd.launching import mpirun_on
from horovod_dpsgd.report import figures, table
from horovod_dpsgd.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAIN = "benchmarks/cv/train.py"
NETWORK = "model_options.hidden=[1000, 1000]"  # 1.8 million weights
COMMON: dict[Scale, tuple[str, ...]] = {
    "cpu": (
        *("--recipe", "mnist", "--batch-size", "1600", "--max-steps", "150", "--set", NETWORK, "--log-every", "5"),
        *("--lr", "0.5"),  # of SGD: a method's own, which comes later, counts
    ),
    "paper": ("--recipe", "cifar10", "--batch-size", "8192", "--max-steps", "1500", "--log-every", "5"),
}
LOSS: dict[Scale, float] = {"cpu": 0.4, "paper": 1.5}  # nats
LEARNERS: dict[Scale, tuple[int, ...]] = {"cpu": (2, 4, 8, 16), "paper": (16,)}
DISTURBED_LEARNERS: dict[Scale, int] = {"cpu": 4, "paper": 16}
LEARNERS_ON_TWO_HOSTS = (2, 4)
LINKS: dict[str, str | None] = {"unlimited": None, "1gbit": "1gbit", "200mbit": "200mbit"}  # as tc writes their rates


@dataclass(frozen=True)
class Method(cells.Method):
    """marker: tells those of one style apart."""

    marker: str


METHODS = {
    "ssgd": Method("SSGD", SSGD.arguments, "ssgd", "s"),
    "ssgd-lamb": Method("SSGD, LAMB", (*cv.SSGD_LAMB.arguments, "--lr", "0.01"), "ssgd-lamb", "D"),
    "dpsgd-matching": Method("DPSGD, matching", (*DPSGD.arguments, "--topology", "matching"), "dpsgd", "o"),
    "dpsgd-ring": Method("DPSGD, ring", (*DPSGD.arguments, "--topology", "ring"), "dpsgd", "v"),
    "dpsgd-hierarchical": Method("DPSGD, hierarchical", (*DPSGD.arguments, "--topology", "hierarchical"), "dpsgd", "^"),
    "adpsgd-matching": Method("AD-PSGD, matching", ("--algo", "adpsgd", "--topology", "matching"), "adpsgd", "x"),
}
DISTURBED: dict[str, tuple[str, ...]] = {
    "slow": ("--slow-learner", "1:4"),
    "jitter": ("--jitter", "0.5"),
}


@dataclass(frozen=True)
class Setting:
    """Where runs are compared: so many learners on one host or, with `link` of `LINKS`, on two emulated ones, half of
    them on each. disturbed: of `DISTURBED`, or empty."""

    learners: int
    link: str | None = None
    disturbed: str = ""

    @property
    def place(self) -> str:
        """In words."""
        if self.link is None:
            return "one host"
        return f"two emulated hosts, link {'of ' if LINKS[self.link] else ''}{self.link}"

    @property
    def ladder(self) -> str:
        """What it is a rung of, in words."""
        if self.link is None and not self.disturbed:
            return "one host"
        return f"{'two emulated hosts' if self.link else 'one host'}, {self.learners} learners"

    def name(self, method: str) -> str:
        """Of a run, before its seed."""
        host = f"two-hosts-{self.link}" if self.link else "one-host"
        return "-".join(filter(None, [host, f"n{self.learners}", method, self.disturbed]))

    def job(self, scale: Scale, method: str, seed: int) -> Job:
        words = (*COMMON[scale], *METHODS[method].arguments, *DISTURBED.get(self.disturbed, ()))
        name, arguments = f"{self.name(method)}-seed{seed}", (*words, "--seed", str(seed))
        if self.link is None:
            return Job(name, TRAIN, self.learners, arguments)
        return OnTwoHosts(name, TRAIN, self.learners, arguments, LINKS[self.link])


@dataclass(frozen=True)
class OnTwoHosts(Job):
    """A run by learners of whom half are on each of two emulated hosts. rate: of the link, as `tc` writes it."""

    rate: str | None = None

    def start(self, place: Place) -> list[str]:
        half = self.learners // 2
        hosts = mpirun_on(f"host1:{half},host2:{half}", self.learners)
        return [*netns.words(self.rate), *hosts, sys.executable]

    def impossible(self) -> str | None:
        return netns.why_not()


def settings(scale: Scale) -> list[Setting]:
    found = [Setting(n) for n in LEARNERS[scale]]
    found += [Setting(DISTURBED_LEARNERS[scale], disturbed=name) for name in DISTURBED]
    if scale == "cpu":
        found += [Setting(n, link) for n in LEARNERS_ON_TWO_HOSTS for link in LINKS]
    return found


def jobs(scale: Scale, seeds: Sequence[int]) -> list[Job]:
    """Seed by seed; the algorithms that are compared one right after the other."""
    return [setting.job(scale, method, seed) for seed in seeds for setting in settings(scale) for method in METHODS]


def seconds_a_step(run: Run) -> float:
    """Of all learners together; NaN if no step was timed."""
    return float(run.result["global_batch"] / run.number("samples_per_second"))


def seconds_to(run: Run, loss: float) -> float:
    """Until the mean training loss of an interval was first at `loss`; NaN if it never was."""
    steps, losses = run.curve("train_loss")
    there = steps[losses <= loss]
    return float(there[0] * seconds_a_step(run)) if len(there) else float("nan")


class Times:
    """Runs by setting, method and seed."""

    def __init__(self, scale: Scale, runs: Sequence[Run]) -> None:
        self.loss = LOSS[scale]
        by_name: dict[str, dict[str, Run]] = {}
        for run in runs:
            name, _, seed = run.folder.name.rpartition("-seed")
            by_name.setdefault(name, {})[seed] = run
        self.of = {
            (setting, method): by_name[name]
            for setting in settings(scale)
            for method in METHODS
            if (name := setting.name(method)) in by_name
        }

    @property
    def settings(self) -> list[Setting]:
        return list(dict.fromkeys(setting for setting, _ in self.of))

    def beside_ssgd(self, setting: Setting, method: str) -> list[float]:
        """How many times as fast as SSGD with the same seed, where both have run."""
        base = self.of.get((setting, "ssgd"), {})
        runs = self.of.get((setting, method), {})
        return [seconds_a_step(base[seed]) / seconds_a_step(runs[seed]) for seed in runs if seed in base]


def _table(times: Times, cores: int) -> str:
    header = ["place", "learners", "disturbed", "algorithm", "runs", "samples/s", "x SSGD"]
    header += [f"s to a loss of {times.loss:g}", "exposed, ms a step", "held-out error %"]
    rows = []
    for (setting, method), by_seed in times.of.items():
        runs = list(by_seed.values())
        crowded = " (more than cores)" if setting.learners > cores else ""
        exposed = [1e3 * run.number("exposed_communication_seconds_median") for run in runs]
        rows.append(
            [
                setting.place,
                f"{setting.learners}{crowded}",
                setting.disturbed or "-",
                METHODS[method].label,
                str(len(runs)),
                table.median_and_range([run.number("samples_per_second") for run in runs], 0),
                table.median_and_range(times.beside_ssgd(setting, method)),
                table.median_and_range([seconds_to(run, times.loss) for run in runs], 1),
                table.median_and_range(exposed, 1),
                table.median_and_range([run.error_percent for run in runs]),
            ]
        )
    return table.markdown(header, rows)


def _figure(times: Times) -> Figure:
    """Speed beside SSGD's: over learners of one host, and over links between two."""
    ladders: dict[str, list[Setting]] = {}
    for setting in sorted(times.settings, key=lambda each: bool(each.disturbed)):  # those come last
        ladders.setdefault(setting.ladder, []).append(setting)
    figure, grid = figures.panels(len(ladders))
    for axes, (title, ladder) in zip(grid, ladders.items(), strict=True):
        places = {setting: place for place, setting in enumerate(ladder)}
        for method, look in METHODS.items():
            ratios = {setting: times.beside_ssgd(setting, method) for setting in ladder}
            there = [setting for setting, found in ratios.items() if found]
            style = figures.STYLES[look.style] | {"marker": look.marker, "markersize": 5}
            style |= {"linestyle": "none"} if ladder[0].disturbed else {}  # these are in no order
            medians = [float(np.median(ratios[setting])) for setting in there]
            axes.plot([places[setting] for setting in there], medians, label=look.label, **style)
        names = [each.disturbed or each.link or f"{each.learners} learners" for each in ladder]
        axes.set_xticks(range(len(names)), names)
        axes.set(title=title, ylabel="samples a second, x SSGD")
        axes.set_ylim(bottom=0)
    grid[0].legend(fontsize="small")
    return figure


def report(scale: Scale, loaded: Loaded, folder: Path) -> str:
    times = Times(scale, loaded.runs)
    figures.save(_figure(times), folder / "runtime")
    missing = len(settings(scale)) * len(METHODS) - len(times.of)
    return "\n\n".join(
        [
            f"{EXPLAINED} Median and range over seeds.",
            _table(times, os.cpu_count() or 1),
            *([f"Not run: {missing} of {missing + len(times.of)} lines of the table."] if missing else []),
            "![speed beside SSGD's](runtime.png)",
            "The paper's numbers are in an appendix that could not be read.",
        ]
    )


EXPLAINED = (
    "Samples a second of all learners, without start-up and evaluation; x SSGD: so many times as fast as SSGD of as "
    "many learners in the same place with the same seed; exposed: communication that a step waited for. slow: learner "
    "1 computes four times as long; jitter: the computation of every learner is delayed at random, by 50% on average."
)


def _about(_scale: Scale, run: Run) -> Line:
    return {"run": run.folder.name.rpartition("-seed")[0]}


EXPERIMENT = Experiment("time of SSGD, DPSGD, AD-PSGD, LAMB; stragglers", "6 h", jobs, report, "runtime", about=_about)
