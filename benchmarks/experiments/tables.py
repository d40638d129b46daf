"""What the runs of cells have come to: tables, and figures that show where each algorithm stops converging."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.experiments.cells import Cell, Method, Net
from benchmarks.experiments.experiment import Line
from horovod_dpsgd.report import figures, table
from horovod_dpsgd.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


@dataclass(frozen=True)
class Measure:
    """What a run has come to, as tables and figures show it."""

    name: str
    of: Callable[[Run], float]  # a number for every run, also for one without a finite loss
    heading: str  # of a table
    more_is_better: bool
    learnt: Callable[[Run], float]  # how far the run has come from guessing
    digits: int = 2

    def cell(self, runs: Sequence[Run]) -> str:
        """ "61.20 (60.02 - 63.11)", and how many runs of them collapsed; "-" without a run."""
        if not runs:
            return "-"
        collapsed = sum(run.result["diverged"] for run in runs)
        text = table.median_and_range([self.of(run) for run in runs], self.digits)
        return text + (f", {collapsed} of {len(runs)} collapsed" if collapsed else "")

    def of_paper(self, number: float) -> Line:
        """A number of the paper's, under the name that it has in a CSV."""
        return {"heldout_error_percent": round(100 - number, 3)} if self.more_is_better else {"heldout_loss": number}

    def best(self, cells: dict[Cell, list[Run]]) -> Cell | None:
        """The cell of the best median, of those that have runs."""
        sign = -1 if self.more_is_better else 1
        medians = {cell: float(np.median([self.of(run) for run in runs])) for cell, runs in cells.items() if runs}
        return min(medians, key=lambda cell: sign * medians[cell]) if medians else None


def _accuracy(run: Run) -> float:
    return 100 - run.error_percent if math.isfinite(run.error_percent) else _guessing(run)


def _guessing(run: Run) -> float:
    """The accuracy of guessing one of the classes, %."""
    return 100 / math.exp(run.result["chance_loss"])


def _loss(run: Run) -> float:
    return run.heldout_loss if math.isfinite(run.heldout_loss) else math.inf


# At w_a. A run whose loss is not finite has the accuracy of guessing one of the classes, and no median of losses that
# more than half of the runs do not have.
ACCURACY = Measure(
    "held-out accuracy %",
    _accuracy,
    "Held-out accuracy at w_a, %, median (range):",
    more_is_better=True,
    learnt=lambda run: _accuracy(run) - _guessing(run),
)
LOSS = Measure(
    "held-out loss",
    _loss,
    "Held-out loss at w_a, median (range):",
    more_is_better=False,
    learnt=lambda run: run.result["chance_loss"] - _loss(run),
)


def results_table(outcomes: Outcomes, measure: Measure) -> str:
    """A line for each network and row; a column for each method."""
    lines = []
    for net, row in dict.fromkeys((cell.net, cell.row) for cell in outcomes.cells):
        here = {cell.method: runs for cell, runs in outcomes.of(net).items() if cell.row == row}
        lr = next((f"{run.result['lr']:g}" for runs in here.values() for run in runs), "-")
        line = [net.label, *(entry for _, entry in row), lr]
        lines.append(line + [measure.cell(here.get(method, [])) for method in outcomes.methods])
    headings = [heading for heading, _ in outcomes.cells[0].row]
    return table.markdown(["network", *headings, "alpha", *(method.label for method in outcomes.methods)], lines)


LIMITS = (
    "The last {rung} at which, and {easier}, no run collapsed, nor came less than half as far from guessing as the "
    "network's best run:"
)


def limits_table(outcomes: Outcomes, measure: Measure, harder_upwards: bool = True) -> str:
    """A line for each network: each method's last rung at which no run failed, nor on any easier one.

    A run failed if it collapsed, or learnt less than half as much as the best run of that network by any method.
    harder_upwards: as rates are; warm-ups are harder the shorter they are.
    """
    lines = []
    for net in outcomes.nets:
        best = max((measure.learnt(run) for runs in outcomes.of(net).values() for run in runs), default=0.0)
        failed = partial(_failed, measure=measure, least=best / 2)
        limits = [_limit(outcomes.of(net, method), harder_upwards, failed) for method in outcomes.methods]
        lines.append([net.label, *limits])
    return table.markdown(["network", *(method.label for method in outcomes.methods)], lines)


def _failed(run: Run, measure: Measure, least: float) -> bool:
    return run.result["diverged"] or measure.learnt(run) < least


def _limit(cells: dict[Cell, list[Run]], harder_upwards: bool, failed: Callable[[Run], bool]) -> str:
    stable = None
    for cell in sorted(cells, key=lambda cell: cell.x, reverse=not harder_upwards):
        rung, runs = cell.row[-1][1], cells[cell]
        if not runs:
            return "-" if stable is None else stable
        if any(map(failed, runs)):
            return f"none (not {rung})" if stable is None else f"{stable} (not {rung})"
        stable = rung
    return "-" if stable is None else f"{stable}, the last tried"


def figure(outcomes: Outcomes, measure: Measure, xlabel: str) -> Figure:
    """Where each method stops converging: a panel for each network, a point for each run, a line through medians."""
    drawing, panels = figures.panels(len(outcomes.nets))
    for axes, net in zip(panels, outcomes.nets, strict=True):
        for method in outcomes.methods:
            _draw(axes, outcomes.of(net, method), method, measure)
        rungs = {cell.x: cell.row[-1][1] for cell in sorted(outcomes.of(net), key=lambda cell: cell.x)}
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(rungs), list(rungs.values()), minor=False)
        axes.set(xlabel=xlabel, ylabel=measure.name, title=net.label)
        if measure.more_is_better:
            axes.set_ylim(0, 1.05 * axes.get_ylim()[1])
    panels[0].legend(fontsize="small")
    return drawing


def _draw(axes: Axes, cells: dict[Cell, list[Run]], method: Method, measure: Measure) -> None:
    points = {cell.x: [measure.of(run) for run in runs] for cell, runs in cells.items() if runs}
    if not points:
        return
    rungs = sorted(points)
    style = figures.STYLES[method.style]
    axes.plot(rungs, [np.median(points[x]) for x in rungs], label=method.label, linewidth=1.8, **style)
    for x in rungs:
        axes.plot([x] * len(points[x]), points[x], ".", color=style["color"], markersize=5)


def limits_and_figure(
    outcomes: Outcomes,
    folder: Path,
    name: str,
    *,
    measure: Measure,
    caption: str,
    xlabel: str,
    limits: str,
    harder_upwards: bool = True,
) -> list[str]:
    """The table of results, that of limits headed by `limits`, and the figure over `xlabel`, with its caption."""
    figures.save(figure(outcomes, measure, xlabel), folder / name)
    return [
        measure.heading,
        results_table(outcomes, measure),
        limits,
        limits_table(outcomes, measure, harder_upwards),
        f"![{caption}]({name}.png)",
    ]


def over_rates(measure: Measure, caption: str) -> Callable[[Outcomes, Path, str], list[str]]:
    """Tables and figure of a ladder of rates."""
    limits = LIMITS.format(rung="rate", easier="below which")
    xlabel = "peak learning rate, in base rates"
    return partial(limits_and_figure, measure=measure, caption=caption, xlabel=xlabel, limits=limits)


def curves_with_best_noise(
    outcomes: Outcomes, measure: Measure, draw: Callable[[list[Run], str], Figure], folder: Path, name: str
) -> list[str]:
    """For each network a table of all methods, and a figure of their curves, of SSGD*'s only the best."""
    parts = []
    for number, net in enumerate(outcomes.nets):
        cells = outcomes.of(net)
        noisy = {cell: runs for cell, runs in cells.items() if cell.method.style == "ssgd-star"}
        best = measure.best(noisy)
        shown = [run for cell, runs in cells.items() if cell not in noisy or cell == best for run in runs]
        file = name if number == 0 else f"{name}-{number + 1}"
        figures.save(draw(shown, net.label), folder / file)
        place = ", ".join(" ".join(entry) for entry in next(iter(cells)).row)
        lines = [[cell.method.label, str(len(runs)), measure.cell(runs)] for cell, runs in cells.items()]
        parts += [f"{net.label}, {place}:", table.markdown(["method", "runs", measure.name], lines)]
        parts += [f"![{measure.name}]({file}.png)"]
    return parts


def curves(
    outcomes: Outcomes,
    folder: Path,
    name: str,
    *,
    measure: Measure,
    draw: Callable[[dict[str, list[Run]]], Figure],
    caption: str,
) -> list[str]:
    """The table of results, and the curves of all methods, a panel for each of its lines."""
    of: dict[str, list[Run]] = {}
    for cell, runs in outcomes.runs.items():
        rung = ", ".join(" ".join(entry) for entry in cell.row)
        of.setdefault(f"{cell.net.label}, {rung}", []).extend(runs)
    figures.save(draw({title: runs for title, runs in of.items() if runs}), folder / name)
    return [measure.heading, results_table(outcomes, measure), f"![{caption}]({name}.png)"]
