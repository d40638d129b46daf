"""Stacked runs as a table: what was varied down, algorithms across, the last held-out loss in each cell.

    python -m benchmarks.stacked.summary map.jsonl > map.md
    python -m benchmarks.stacked.summary map.jsonl --over lr --figure map.png --level chance=8.51 > map.md

Cells are medians over seeds, of which a run that ended in NaN or infinity ("lost") has the worst loss of all, and in
brackets the range of the others. The figure has a panel for each setting of what else was varied, a dot for each run
and a line through the medians; lost runs are crosses at the upper edge, levels of loss thin lines across.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from horovod_dpsgd.command_line import OneLineParser, amount
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import figures, table
from horovod_dpsgd.report.runs import INDIFFERENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Varied = tuple[tuple[str, str], ...]
Cells = dict[Varied, dict[str, list[float]]]  # losses by what was varied, seeds aside, and algorithm


def main() -> None:
    p = OneLineParser("python -m benchmarks.stacked.summary", description=__doc__)
    p.add_argument("map", type=Path, metavar="MAP.jsonl", help="what benchmarks.stacked has written")
    p.add_argument("--over", default="lr", metavar="KEY", help="the varied number on the figure's axis (default: lr)")
    p.add_argument("--figure", type=Path, metavar="FILE", help="drawn as FILE.png and FILE.svg")
    p.add_argument(
        "--level", type=level, action="append", default=[], metavar="NAME=LOSS", help="to be drawn in; may be repeated"
    )
    given = p.parse_args()
    try:
        found = cells([json.loads(line) for line in given.map.read_text().splitlines()])
    except (OSError, ValueError, UserError) as error:
        p.error(f"{given.map}: {error}")
    if given.figure:
        if not found or not all(_sortable(dict(varied).get(given.over, ""))[0] < math.inf for varied in found):
            p.error(f"--over {given.over}: not every run of {given.map} has a number for it")
        figures.save(figure(found, given.over, given.level), given.figure)
    print(markdown(found))


def cells(lines: Sequence[dict[str, Any]]) -> Cells:
    """From lines of a map, as `benchmarks.stacked` writes them. A loss that is not finite is infinite.

    Raises UserError if the runs of a cell differ in more than the seed, or do not differ in it.
    """
    found: Cells = defaultdict(lambda: defaultdict(list))
    settings: dict[tuple[Varied, str], dict[str, dict[str, Any]]] = defaultdict(dict)  # by seed
    for line in lines:
        varied = {key: value for key, value in line["varied"].items() if key not in ("algo", "seed")}
        algo = line["varied"].get("algo") or line["recipe"]["algo"]
        _check_alike(line, settings[tuple(varied.items()), algo])
        loss = list(line["heldout_losses"].values())[-1]
        found[tuple(varied.items())][algo].append(loss if math.isfinite(loss) else math.inf)
    return dict(sorted(found.items(), key=lambda item: [_sortable(value) for _, value in item[0]]))


def _check_alike(line: dict[str, Any], before: dict[str, dict[str, Any]]) -> None:
    """before: what the cell's other runs were made with, by their seeds; this one's is added."""
    seed = line["varied"]["seed"]
    mine = {"learners": line["learners"]} | {k: v for k, v in line["recipe"].items() if k not in INDIFFERENT}
    for other in before.values():
        if different := [key for key in mine.keys() & other.keys() if mine[key] != other[key]]:
            raise UserError(
                f"runs with {line['varied']} differ in {', '.join(sorted(different))}, which was not varied"
            )
    if seed in before:
        raise UserError(f"there are two runs with {line['varied']}")
    before[seed] = mine


def markdown(cells: Cells) -> str:
    keys = list(dict.fromkeys(key for varied in cells for key, _ in varied))
    rows = [
        [*(dict(varied).get(key, "") for key in keys), *(_cell(row.get(algo, [])) for algo in _algorithms(cells))]
        for varied, row in cells.items()
    ]
    return table.markdown([*keys, *_algorithms(cells)], rows)


def _algorithms(cells: Cells) -> list[str]:
    return list(dict.fromkeys(algo for row in cells.values() for algo in row))


def _cell(losses: Sequence[float]) -> str:
    if not losses:
        return "-"
    lost = sum(not math.isfinite(loss) for loss in losses)
    text = "lost" if lost == len(losses) else table.median_and_range(losses, 3)
    return text + (f", {lost} of {len(losses)} lost" if lost and len(losses) > 1 else "")


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


# ---- figure ----

TOO_FAR_APART = 3  # losses of one panel, to tell small ones apart on a linear axis


def level(text: str) -> tuple[str, float]:
    """ "chance=8.51" """
    name, _, loss = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=LOSS")
    return name, amount(loss)


def figure(cells: Cells, over: str, levels: Sequence[tuple[str, float]] = ()) -> Figure:
    by_panel: dict[str, Cells] = defaultdict(dict)
    for varied, row in cells.items():
        by_panel[", ".join(f"{key} {value}" for key, value in varied if key != over)][varied] = row
    drawing, panels = figures.panels(len(by_panel))
    for axes, (title, of_panel) in zip(panels, by_panel.items(), strict=True):
        _draw(axes, of_panel, over)
        for name, loss in levels:
            axes.axhline(loss, color="0.5", linewidth=0.8, zorder=0)
            axes.annotate(name, (1, loss), xycoords=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=7)
        axes.set(xlabel=over, ylabel="held-out loss", title=title)
        axes.legend(fontsize="small")
    return drawing


def _draw(axes: Axes, cells: Cells, over: str) -> None:
    at = [float(dict(varied)[over]) for varied in cells]
    for algo in _algorithms(cells):
        losses: dict[float, list[float]] = defaultdict(list)
        for x, row in zip(at, cells.values(), strict=True):
            if algo in row:
                losses[x] += row[algo]
        style = figures.STYLES.get(algo.partition(" ")[0], {"color": "black"})
        axes.plot(list(losses), [np.median(each) for each in losses.values()], label=algo, linewidth=1.8, **style)
        dots = np.array([(x, loss) for x, each in losses.items() for loss in each])
        axes.plot(*dots.T, ".", color=style["color"], markersize=5)
        lost = dots[np.isinf(dots[:, 1])]
        if len(lost):  # marks without a place would take part in the layout
            at_edge = axes.get_xaxis_transform()
            axes.plot(lost[:, 0], np.ones(len(lost)), "x", color=style["color"], transform=at_edge, clip_on=False)
    if min(at) > 0:
        axes.set_xscale("log", base=2)
    of_all = [loss for row in cells.values() for losses in row.values() for loss in losses if math.isfinite(loss)]
    if of_all and max(of_all) > TOO_FAR_APART * min(of_all) > 0:
        axes.set_yscale("log")
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which("{x:g}")
    axes.set_xticks(at, [f"{x:g}" for x in at], minor=False, rotation=45)


if __name__ == "__main__":
    main()
