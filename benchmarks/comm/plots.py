"""Time and ratio to the floor over the size of the buffer, for every number of learners."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.comm import methods
from benchmarks.comm.jobs import Measured
from benchmarks.comm.output import size_name
from horovod_dpsgd.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which can be told apart by the colour-blind; markers and line styles differ too.
STYLES: dict[str, dict[str, Any]] = {
    methods.Floor.name: {"color": "black", "linestyle": "--", "marker": ""},
    methods.SharedFloor.name: {"color": "gray", "linestyle": ":", "marker": ""},
    methods.Gossip.name: {"color": "#009E73", "marker": "o", "linewidth": 2.2},
    methods.NaiveGet.name: {"color": "#E69F00", "marker": "s"},
    methods.SendReceive.name: {"color": "#56B4E9", "marker": "^"},
    methods.AllReduce.name: {"color": "#0072B2", "marker": "v"},
    methods.Horovod.name: {"color": "#D55E00", "marker": "D"},
}


def write(measured: Sequence[Measured], folder: Path) -> list[Path]:
    """Write PNG and SVG files for what there is; return them."""
    files = []
    for name, group in (("exchange", "exchange"), ("two-hosts", "two-hosts")):
        chosen = [each for each in measured if each.job.group == group and each.job.script == "exchange.py"]
        chosen = [each for each in chosen if each.rows]
        if chosen:
            files += figures.save(_over_size(chosen, "seconds", "seconds an exchange"), folder / f"{name}-time")
            files += figures.save(_over_size(chosen, "ratio", "time / floor"), folder / f"{name}-ratio")
    return files


def _over_size(measured: Sequence[Measured], value: str, label: str) -> Figure:
    """A panel for each job."""
    from matplotlib import pyplot as plt

    width = 1 + 4 * len(measured)
    figure, axes = plt.subplots(
        1, len(measured), figsize=(width, 4.8), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, each in zip(axes[0], measured, strict=True):
        panel.set(xscale="log", yscale="log", xlabel="size of the buffer", title=_title(each))
        _draw(panel, each.rows, value)
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel(label)
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=min(4, width // 3), fontsize="small")
    return figure


def _draw(axes: Axes, rows: Sequence[dict[str, Any]], value: str) -> None:
    for method, style in STYLES.items():
        values = {row["bytes"]: row for row in reversed(rows) if row["method"] == method}  # the first of two floors
        sizes = sorted(values)
        axes.plot(sizes, [values[size][value] for size in sizes], label=method, **{"markersize": 4} | style)
    ticks = sorted({row["bytes"] for row in rows})[::2]
    axes.set_xticks(ticks, [size_name(size) for size in ticks], rotation=45, fontsize="small")
    axes.minorticks_off()


def _title(measured: Measured) -> str:
    job = measured.job
    where = f"\n{job.place}" if job.link or job.hosts else ""
    return f"{measured.about['learners']} learners{where}"
