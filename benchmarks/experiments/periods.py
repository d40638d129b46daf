"""What instruments measured along training, in a table: the medians of a few periods."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from horovod_dpsgd.report import table
from horovod_dpsgd.report.runs import Run

Quantity = Callable[[Run], tuple[np.ndarray, np.ndarray]]  # steps and values
DIGITS = 3


def metric(name: str) -> Quantity:
    """As it was logged."""
    return lambda run: run.curve(name)


def ratio(of: str, *to: str) -> Quantity:
    """A metric over another, or over the sum of others, at the steps at which all were measured."""

    def quantity(run: Run) -> tuple[np.ndarray, np.ndarray]:
        curves = [dict(zip(*run.curve(name), strict=True)) for name in (of, *to)]
        steps = sorted(set.intersection(*map(set, curves)))
        values, *others = (np.array([curve[step] for step in steps]) for curve in curves)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.array(steps), values / np.sum(others, axis=0)

    return quantity


def of_peak_rate(name: str) -> Quantity:
    """A metric over the run's largest learning rate."""

    def quantity(run: Run) -> tuple[np.ndarray, np.ndarray]:
        steps, values = run.curve(name)
        return steps, values / run.result["lr"]

    return quantity


NOISE_RATIOS = {
    "Delta(2) / Delta_S": ratio("noise_2", "noise_ssgd"),
    "Delta_DP / (Delta_S + Delta(2))": ratio("noise", "noise_ssgd", "noise_2"),
}


def headings(ends: Sequence[int]) -> list[str]:
    """Of the periods that end with these steps, and of the last."""
    return [*(f"steps {low + 1} - {high}" for low, high in itertools.pairwise([0, *ends])), "later"]


def rows(runs: Sequence[Run], ends: Sequence[int], quantities: Mapping[str, Quantity]) -> list[list[str]]:
    """A line for each quantity, with a cell for each period: of every run the median over the steps at which it was
    measured, and of those the median and range. Steps at which it was not finite are left out, and runs without any."""
    edges = [0, *ends, np.inf]
    found = []
    for name, quantity in quantities.items():
        curves = [quantity(run) for run in runs]
        cells = []
        for low, high in itertools.pairwise(edges):
            within = [values[(low < steps) & (steps <= high) & np.isfinite(values)] for steps, values in curves]
            medians = [float(np.median(values)) for values in within if len(values)]
            cells.append(table.median_and_range(medians, DIGITS, "g"))
        found.append([name, *cells])
    return found
