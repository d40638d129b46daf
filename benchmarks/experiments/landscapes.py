"""The loss landscape where SSGD and DPSGD end (Appendices C and E.4), its Hessian, and how eq. 5, the effective rate
and the smoothing of Theorem 1 develop along training.

Of the paper's MNIST network at Figure 2's recipe, with SSGD* beside them; and of a network for CIFAR-10 at a rate at
which both algorithms train. Which networks the paper shows is in appendices that could not be read.

Runs need their checkpoints until they are measured. What is kept are the points, of which reports are made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.experiments import cv, figure_2, periods
from benchmarks.experiments.cells import DPSGD, SSGD
from benchmarks.experiments.experiment import Experiment, Scale
from benchmarks.experiments.launch import Job, Loaded
from benchmarks.experiments.measurement import Measurement, of_landscape
from benchmarks.instruments.picture import OfEachRun
from benchmarks.instruments.spectra import Density, Eigenvalues, probes
from benchmarks.instruments.surfaces import Contour, Curvature
from horovod_dpsgd.diagnostics.points import Point
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import figures, landscapes, table
from horovod_dpsgd.report.runs import Run, by_settings

LEARNERS: dict[Scale, int] = {"cpu": 2, "paper": 16}  # that divide the points
RESULTS = "landscape"


@dataclass(frozen=True)
class Scene:
    """A network, whose runs of one seed are set beside each other.

    runs: their folder; ended: the runs whose ends are looked at; along: those that are followed. periods: steps with
    which periods of their training end. options: of `landscape.py`, beside each kind's own.
    """

    name: str
    runs: str
    ended: Callable[[Scale, int], tuple[Job, ...]]
    along: Callable[[Scale, int], tuple[Job, ...]]
    periods: Mapping[Scale, Sequence[int]]
    needs_data: bool
    options: Mapping[str, tuple[str, ...]]

    def measurement(self, what: str, scale: Scale, seed: int, runs: tuple[Job, ...]) -> Measurement:
        return of_landscape(self.name.lower(), what, seed, runs, LEARNERS[scale], *self.options[what])


def _mnist(*kinds: str) -> Callable[[Scale, int], tuple[Job, ...]]:
    return lambda _scale, seed: tuple(figure_2.job(kind, seed) for kind in kinds)


CIFAR10_RATE = 8  # base rates: both algorithms train, at CPU scale by Table 3
# Checkpoints along training, and instruments, which are costly where every learner's deviation goes through H.
WATCH: dict[Scale, tuple[str, ...]] = {
    "cpu": ("--checkpoint-every", "18", "--diagnostics-every", "18", "--diagnostics-samples", "1000"),
    "paper": ("--checkpoint-every", "240", "--diagnostics-every", "60", "--diagnostics-samples", "4096"),
}
EQUATION_5 = ("--set", "diagnostics_hessian=true")


def _cifar10(scale: Scale, seed: int) -> tuple[Job, ...]:
    net = cv.PLAIN if scale == "cpu" else cv.EFFICIENTNET
    batch = cv.BATCHES[scale][-1]
    ssgd, dpsgd = (cv.cell(scale, net, batch, CIFAR10_RATE, method).job(seed) for method in (SSGD, DPSGD))
    watch = (*WATCH[scale], "--keep", "0", "--diagnostics")
    return (
        replace(ssgd, arguments=(*ssgd.arguments, *watch)),
        replace(dpsgd, arguments=(*dpsgd.arguments, *watch, *EQUATION_5)),
    )


MNIST_OPTIONS: dict[str, tuple[str, ...]] = {
    "contour": ("--points", "41"),
    "curvature": ("--points", "11", "--lanczos-steps", "40"),
    "eigenvalues": ("--top", "10", "--probes", "16"),
    "density": (),
    "smoothing": (),
}
# A Hessian-vector product takes forty times as long here. On a GPU 64 images at once, a learner's, would be too few.
AT_ONCE = ("--batch-size", "500")
CIFAR10_OPTIONS: dict[str, tuple[str, ...]] = {
    "contour": ("--points", "21", *AT_ONCE),
    "curvature": ("--points", "9", "--lanczos-steps", "40", "--samples", "500", *AT_ONCE),
    "eigenvalues": ("--top", "10", "--probes", "16", *AT_ONCE),
    "density": ("--samples", "1000", *AT_ONCE),
    "smoothing": ("--samples", "500", *AT_ONCE),
}


MNIST = Scene(
    "MNIST",
    "figure-2",
    _mnist("ssgd", figure_2.ssgd_star(figure_2.BEST_NOISE), "dpsgd"),
    _mnist("ssgd", "dpsgd-hessian"),
    {"cpu": figure_2.PERIODS, "paper": figure_2.PERIODS},
    needs_data=False,
    options=MNIST_OPTIONS,
)
CIFAR10 = Scene(
    "CIFAR-10",
    "landscape-cifar10",
    _cifar10,
    _cifar10,
    {"cpu": (27, 144), "paper": (60, 960)},  # the end of the warm-up, and the first cut of the rate
    needs_data=True,
    options=CIFAR10_OPTIONS,
)


def _jobs(scene: Scene, pictures: Sequence[str], along: bool) -> Callable[[Scale, Sequence[int]], list[Job]]:
    """Seed by seed: the runs, and then the pictures of them."""

    def jobs(scale: Scale, seeds: Sequence[int]) -> list[Job]:
        found: list[Job] = []
        for seed in seeds:
            runs = (scene.along if along else scene.ended)(scale, seed)
            found += [*runs, *(scene.measurement(what, scale, seed, runs) for what in pictures)]
        return found

    return jobs


class Seen:
    """Runs of which all of these kinds of pictures are there, and their points. Raises UserError if there is none."""

    def __init__(self, loaded: Loaded, *whats: str) -> None:
        self._measured = loaded.measured
        self.runs = [run for run in loaded.runs if all(self.of(run, what) for what in whats)]
        if not self.runs:
            raise UserError(f"no run has been measured yet: {', '.join(whats)}")

    def groups(self) -> Iterator[tuple[str, list[Run]]]:
        """The runs of each algorithm, with its name."""
        return ((group[0].label, group) for group in by_settings(self.runs))

    @property
    def first_of_each(self) -> list[Run]:
        return [group[0] for _, group in self.groups()]

    def of(self, run: Run, what: str) -> list[Point]:
        """The points of a run. If it was trained anew since they were first measured, the newest are in front."""
        found: dict[str, Point] = {}
        for measured in self._measured:
            for point in measured.points if measured.name == what else []:
                if point["run"] == run.folder.name:
                    found.setdefault(repr([point.get(key) for key in NAMING]), point)
        return list(found.values())

    def samples(self, *whats: str) -> str:
        """How many training samples each of these was measured on, in words."""
        numbers = {each.name: each.setup["samples"] for each in self._measured if each.name in whats}
        if len(set(numbers.values())) == 1:
            return f"Measured on {next(iter(numbers.values())):,} training samples, not augmented."
        return "Training samples, not augmented: " + ", ".join(f"{what} {n:,}" for what, n in numbers.items()) + "."

    def labels(self, runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
        return {run.folder.name: (run.label, run.result["algo"]) for run in runs}

    def table(self, *kinds: tuple[str, type[OfEachRun], Sequence[str]]) -> str:
        """A line for each algorithm: numbers of each kind of picture, median and range over seeds."""
        rows = []
        for label, group in self.groups():
            row = [label, str(len(group)), table.median_and_range([run.error_percent for run in group])]
            for what, picture, headings in kinds:
                numbers = [picture.numbers(self.of(run, what)) for run in group]
                row += [_in_three_digits([each[heading] for each in numbers]) for heading in headings]
            rows.append(row)
        headings = [heading for *_, some in kinds for heading in some]
        return table.markdown(["algorithm", "runs", "held-out error %", *headings], rows)


_in_three_digits = partial(table.median_and_range, digits=3, kind="g")
NAMING = ("step", "x", "y", "of", "probe")  # what tells a run's points apart


def _landscape(name: str, _scale: Scale, loaded: Loaded, folder: Path) -> str:
    seen = Seen(loaded, "contour")
    panels = {run.label: seen.of(run, "contour") for run in seen.first_of_each}
    figures.save(landscapes.contours(panels), folder / name)
    headings = ("loss at the solution", "median loss at the rim")
    return "\n\n".join(
        [
            "The loss around the solution w_a of each run, on a plane of two random directions, filter by filter as "
            "long as the weights (Li et al. 2018): at 1 on an axis a filter has moved by its own length. Median and "
            f"range over seeds; the figure is of the first. {seen.samples('contour')}",
            seen.table(("contour", Contour, headings)),
            f"![contours of the loss]({name}.png)",
            PAPER_LANDSCAPE,
        ]
    )


def _hessian(name: str, _scale: Scale, loaded: Loaded, folder: Path) -> str:
    seen = Seen(loaded, "eigenvalues", "density", "curvature")
    top = {run.folder.name: seen.of(run, "eigenvalues")[0]["top"] for run in seen.runs}
    figures.save(landscapes.eigenvalues(top, seen.labels(seen.runs)), folder / f"{name}-eigenvalues")
    pooled = {label: probes([p for run in group for p in seen.of(run, "density")]) for label, group in seen.groups()}
    styles = {label: (label, group[0].result["algo"]) for label, group in seen.groups()}
    figures.save(landscapes.densities(pooled, styles), folder / f"{name}-density")
    panels = {run.label: seen.of(run, "curvature") for run in seen.first_of_each}
    figures.save(landscapes.curvature(panels), folder / f"{name}-map")
    return "\n\n".join(
        [
            "The Hessian of the training loss at the solution w_a of each run: ends of its spectrum (Lanczos), trace "
            "(Hutchinson), shares of its eigenvalues (stochastic Lanczos quadrature). Median and range over seeds. "
            f"{seen.samples('eigenvalues', 'density', 'curvature')}",
            seen.table(
                ("eigenvalues", Eigenvalues, ("largest eigenvalue", "smallest", "abs(min/max)", "trace")),
                ("density", Density, ("% above 0.01 of largest",)),
            ),
            f"![the largest eigenvalues]({name}-eigenvalues.png)",
            f"![density of the eigenvalues]({name}-density.png)",
            "The ratio |lambda_min / lambda_max| on the plane of the contours around each solution, over all of its "
            "points; the figure is of the first seed:",
            seen.table(("curvature", Curvature, ("least abs(min/max)", "median abs(min/max)", "largest abs(min/max)"))),
            f"![|lambda_min / lambda_max| around the solutions]({name}-map.png)",
            PAPER_HESSIAN,
        ]
    )


def _progression(name: str, scale: Scale, loaded: Loaded, folder: Path, *, ends: Mapping[Scale, Sequence[int]]) -> str:
    everyone = Seen(loaded)  # with what they have logged themselves
    seen = Seen(loaded, "smoothing")
    figures.save(figures.progression(everyone.runs, everyone.runs[0].result["lr"]), folder / name)
    points = {run.folder.name: seen.of(run, "smoothing") for run in seen.runs}
    figures.save(landscapes.smoothing(points, seen.labels(seen.runs)), folder / f"{name}-smoothing")
    return "\n\n".join(
        [
            "Effective learning rate, and DPSGD's noise with both sides of eq. 5, at the steps where the run measured "
            "them. Of each run the median over the steps of a period, and of those the median and range.",
            _dynamics_table(everyone, ends[scale]),
            f"![effective rate and noise along training]({name}.png)",
            "Theorem 1 at checkpoints: sigma, the standard deviation of one weight between learners; the smoothness of "
            "the loss L and of the smoothed loss that DPSGD descends, at w_a in the worst direction found; and the "
            "bound 2G/sigma with the largest gradient met for G. A rate is safe up to the inverse of the smoothness. "
            f"Median and range over seeds. {seen.samples('smoothing')}",
            _smoothing_table(seen),
            f"![smoothness along training]({name}-smoothing.png)",
            PAPER_PROGRESSION,
        ]
    )


RATE = {"alpha_e / peak alpha": periods.of_peak_rate("effective_lr")}
NOISE = {
    **periods.NOISE_RATIOS,
    "right side of eq. 5 / Delta(2)": periods.ratio("noise_2_hessian", "noise_2"),
}


def _dynamics_table(seen: Seen, ends: Sequence[int]) -> str:
    rows = []
    for label, group in seen.groups():
        quantities = RATE | (NOISE if group[0].result["algo"] == "dpsgd" else {})
        rows += [[label, *row] for row in periods.rows(group, ends, quantities)]
    return table.markdown(["algorithm", "quantity", *periods.headings(ends)], rows)


def _smoothing_table(seen: Seen) -> str:
    keys = ("sigma", "loss", "smoothness", "smoothed_smoothness", "bound")
    rows = []
    for label, group in seen.groups():
        by_step: dict[int, list[Point]] = {}
        for run in group:
            for point in seen.of(run, "smoothing"):
                by_step.setdefault(point["step"], []).append(point)
        for step, points in sorted(by_step.items()):
            numbers = ([point.get(key, np.nan) for point in points] for key in keys)
            rows.append([label, str(step), *map(_in_three_digits, numbers)])
    header = ["algorithm", "step", "sigma", "L", "smoothness of L", "of L smoothed", "2G/sigma"]
    return table.markdown(header, rows)


PAPER_LANDSCAPE = (
    "The paper's (Section 2.2): DPSGD's noise helps to find flat minima with better generalization; its contours are "
    "in appendices that could not be read."
)
PAPER_HESSIAN = "The paper's are in appendices that could not be read."
PAPER_PROGRESSION = (
    "The paper's (Sections 2.1 and 2.2): alpha_e is reduced early, when gradients are large, and recovers to alpha; "
    "the smoothing is strong at first and becomes weaker as training progresses."
)

Report = Callable[[str, Scale, Loaded, Path], str]  # of the name that its files begin with


def _experiments(scene: Scene, suffix: str, costs: Sequence[str]) -> dict[str, Experiment]:
    progression = partial(_progression, ends=scene.periods)
    kinds: dict[str, tuple[str, tuple[str, ...], bool, Report]] = {
        "landscape": ("contours of the loss around solutions", ("contour",), False, _landscape),
        "hessian": ("eigenvalues, trace, density, map", ("eigenvalues", "density", "curvature"), False, _hessian),
        "progression": ("eq. 5, effective rate, smoothing by step", ("smoothing",), True, progression),
    }
    found = {}
    for (kind, (words, pictures, along, report)), cost in zip(kinds.items(), costs, strict=True):
        name = f"{kind}{suffix}"
        found[name] = Experiment(
            f"{scene.name}: {words}",
            cost,
            _jobs(scene, pictures, along),
            partial(report, name),
            scene.runs,
            needs_data=scene.needs_data,
            results=RESULTS,
        )
    return found


EXPERIMENTS = {
    **_experiments(MNIST, "", ("20 min", "30 min", "30 min")),
    **_experiments(CIFAR10, "-cifar10", ("1 h", "3 h", "1 h")),
}
