"""Grids of runs over networks, batch sizes, learning rates and algorithms: their jobs, tables and figures.

A rate is given as the paper gives it, as a multiple of the base rate: 32x.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.experiments.launch import Job
from horovod_dpsgd.report import figures, table
from horovod_dpsgd.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Method:
    """An algorithm and its optimizer, with what it needs beside the recipe."""

    label: str
    arguments: tuple[str, ...]
    style: str  # of `figures.STYLES`

    @property
    def file_name(self) -> str:
        return self.label.lower().replace("*", "-star").replace(" ", "-").replace("(", "").replace(")", "")


SSGD = Method("SSGD", ("--algo", "ssgd"), "ssgd")
DPSGD = Method("DPSGD", ("--algo", "dpsgd"), "dpsgd")


def ssgd_star(std: float) -> Method:
    return Method(f"SSGD* ({std:g})", ("--algo", "ssgd-star", "--noise-std", f"{std:g}"), "ssgd-star")


@dataclass(frozen=True)
class Net:
    """A network and the recipe that it is trained by."""

    label: str
    script: str
    recipe: str
    options: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return self.label.lower().replace(",", "").replace(" ", "-")


@dataclass(frozen=True)
class Cell:
    """The runs of a table's cell: all that they have in common but the seed.

    rate: a multiple of the recipe's base rate, the peak of the schedule. more: other arguments, as how often to
    evaluate.
    """

    net: Net
    batch: int
    rate: float
    method: Method
    learners: int
    more: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.net.file_name}-bs{self.batch}-{self.rate:g}x-{self.method.file_name}"

    def job(self, seed: int) -> Job:
        numbers = ("--batch-size", str(self.batch), "--lr-scale", f"{self.rate:g}x", "--seed", str(seed))
        words = ("--recipe", self.net.recipe, *self.net.options, *self.method.arguments, *numbers, *self.more)
        return Job(f"{self.name}-seed{seed}", self.net.script, self.learners, words)


def jobs(cells: Iterable[Cell], seeds: Sequence[int]) -> list[Job]:
    """Seed by seed, so that a queue that is cut short has every cell as often as it can."""
    cells = list(dict.fromkeys(cells))
    return [cell.job(seed) for seed in seeds for cell in cells]


class Outcomes:
    """Runs by the cells that they belong to."""

    def __init__(self, cells: Iterable[Cell], runs: Iterable[Run]) -> None:
        self.cells = list(dict.fromkeys(cells))
        by_name: dict[str, list[Run]] = {}
        for run in runs:
            by_name.setdefault(run.folder.name.rpartition("-seed")[0], []).append(run)
        self.runs = {cell: by_name.get(cell.name, []) for cell in self.cells}

    @property
    def nets(self) -> list[Net]:
        return list(dict.fromkeys(cell.net for cell in self.cells))

    @property
    def methods(self) -> list[Method]:
        return list(dict.fromkeys(cell.method for cell in self.cells))

    def of(self, net: Net | None = None, method: Method | None = None) -> dict[Cell, list[Run]]:
        """Those of a network and of a method, or of all, by their cells."""
        return {
            cell: runs
            for cell, runs in self.runs.items()
            if (net is None or cell.net == net) and (method is None or cell.method == method)
        }


def accuracy(run: Run) -> float:
    """Held-out accuracy at w_a, per cent; of a run whose loss is not finite, that of guessing one of the classes."""
    if math.isfinite(run.error_percent):
        return 100 - run.error_percent
    return 100 / math.exp(run.result["chance_loss"])


def accuracy_cell(runs: Sequence[Run]) -> str:
    """ "61.20 (60.02 - 63.11)", and how many runs of them collapsed; "-" without a run."""
    if not runs:
        return "-"
    collapsed = sum(run.result["diverged"] for run in runs)
    text = table.median_and_range([accuracy(run) for run in runs])
    return text + (f", {collapsed} of {len(runs)} collapsed" if collapsed else "")


def accuracy_table(outcomes: Outcomes) -> str:
    """A row for each network, batch and rate; a column for each method."""
    rows = []
    for net, batch, rate in dict.fromkeys((cell.net, cell.batch, cell.rate) for cell in outcomes.cells):
        here = {
            cell.method: runs for cell, runs in outcomes.of(net).items() if (cell.batch, cell.rate) == (batch, rate)
        }
        lr = next((f"{run.result['lr']:g}" for runs in here.values() for run in runs), "-")
        row = [net.label, str(batch), f"{rate:g}x", lr]
        rows.append(row + [accuracy_cell(here.get(method, [])) for method in outcomes.methods])
    header = ["network", "batch", "rate", "alpha", *(method.label for method in outcomes.methods)]
    return table.markdown(header, rows)


def largest_stable(outcomes: Outcomes) -> str:
    """A row for each network: each method's largest rate at which no run collapsed, nor at any smaller rate."""
    rows = []
    for net in outcomes.nets:
        cells = [_largest(outcomes.of(net, method)) for method in outcomes.methods]
        rows.append([net.label, *cells])
    return table.markdown(["network", *(method.label for method in outcomes.methods)], rows)


def _largest(cells: dict[Cell, list[Run]]) -> str:
    stable, limit = None, None
    for rate in sorted({cell.rate for cell in cells}):
        runs = [run for cell, group in cells.items() if cell.rate == rate for run in group]
        if not runs or any(run.result["diverged"] for run in runs):
            limit = rate if runs else None
            break
        stable = rate
    if stable is None:
        return "none of those tried" if limit else "-"
    return f"{stable:g}x" + (f" (not {limit:g}x)" if limit else ", the largest tried")


def accuracy_by_rate(outcomes: Outcomes) -> Figure:
    """Where each method stops converging: accuracy over rate, a panel for each network, a point for each run."""
    figure, panels = figures.panels(len(outcomes.nets))
    for axes, net in zip(panels, outcomes.nets, strict=True):
        for method in outcomes.methods:
            _draw(axes, outcomes.of(net, method), method)
        axes.set_xscale("log", base=2)
        rates = sorted({cell.rate for cell in outcomes.of(net)})
        axes.set_xticks(rates, [f"{rate:g}x" for rate in rates], minor=False)
        axes.set(xlabel="peak learning rate, in base rates", ylabel="held-out accuracy %", title=net.label)
        axes.set_ylim(0)
    panels[0].legend(fontsize="small")
    return figure


def _draw(axes: Axes, cells: dict[Cell, list[Run]], method: Method) -> None:
    points = {cell.rate: [accuracy(run) for run in runs] for cell, runs in cells.items() if runs}
    if not points:
        return
    rates = sorted(points)
    style = figures.STYLES[method.style]
    axes.plot(rates, [np.median(points[rate]) for rate in rates], label=method.label, linewidth=1.8, **style)
    for rate in rates:
        axes.plot([rate] * len(points[rate]), points[rate], ".", color=style["color"], markersize=5)
