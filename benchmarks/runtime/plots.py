"""The model's figures: step time and efficiency over learners, what was predicted and measured, and mixing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import NullLocator

from benchmarks.runtime import mixing
from benchmarks.runtime.predict import Prediction
from benchmarks.runtime.steps import WAYS
from benchmarks.runtime.validate import Compared
from horovod_dpsgd.report import figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which can be told apart by the colour-blind; markers and line styles differ too.
LOOKS: list[dict[str, Any]] = [
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#CC79A7", "linestyle": "--", "marker": "D"},
    {"color": "#009E73", "linestyle": "-", "marker": "o"},
    {"color": "#56B4E9", "linestyle": "-", "marker": "v"},
    {"color": "#0072B2", "linestyle": "-", "marker": "^"},
    {"color": "#E69F00", "linestyle": "-.", "marker": "x"},
]
KINDS = {  # a word in the name of a group, the first that is found, and how the figure calls it
    "lerp": "memory alone",
    "gossip": "gossip exchange",
    "exposed": "exposed communication of a step",
    "step": "step",
    "Iallreduce": "all-reduces",
    "Horovod": "all-reduces",
    "MPI": "other exchanges of two",
    "slow": "one slow learner",
}
STYLES = {way.name: look for way, look in zip(WAYS, LOOKS, strict=True)}


def scaling(predictions: Sequence[Prediction], title: str) -> Figure:
    """Step time on the left, scaling efficiency on the right; a pair of panels for each jitter."""
    jitters = list(dict.fromkeys(each.jitter for each in predictions))
    figure, axes = _panels(2, len(jitters), title)
    for row, jitter in zip(axes, jitters, strict=True):
        for name, look in STYLES.items():
            mine = [each for each in predictions if each.algorithm == name and each.jitter == jitter]
            n = [each.learners for each in mine]
            label = name + (" (skips averages)" if any(each.averages < 1 for each in mine) else "")
            row[0].plot(n, [each.step_seconds for each in mine], label=label, markersize=4, **look)
            row[1].plot(n, [100 * each.efficiency for each in mine], markersize=4, **look)
        delays = f", random delays of {100 * jitter:g}%" if jitter else ""
        row[0].set(ylabel="seconds a step", yscale="log", title=f"step{delays}")
        row[1].set(ylabel="% of n times one alone", ylim=(0, 105), title=f"scaling efficiency{delays}")
        for panel in row:
            _learners(panel, sorted({each.learners for each in predictions}))
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def agreement(compared: Sequence[Compared]) -> Figure:
    """Predicted over measured, for all times: fitted on the left, held out on the right."""
    figure, axes = _panels(2, 1, "the model against every measurement of benchmarks/comm")
    times = [each for each in compared if not each.is_rate]
    held_out = [each for each in times if each.held_out is not None]
    kinds = list(dict.fromkeys(_kind(each.group) for each in times))
    for panel, chosen, value, words in (
        (axes[0][0], times, "fitted", "fitted on these files"),
        (axes[0][1], held_out, "held_out", "predicted from other files"),
    ):
        for index, kind in enumerate(kinds):
            points = [(each.measured, getattr(each, value)) for each in chosen if _kind(each.group) == kind]
            if points:
                look = {"color": f"C{index}", "marker": "osv^Dxp*"[index % 8], "markersize": 4, "linestyle": ""}
                panel.plot(*zip(*points, strict=True), label=kind, **look)
        ends = [min(each.measured for each in times), max(each.measured for each in times)]
        panel.plot(ends, ends, color="gray", linewidth=0.8)
        panel.fill_between(ends, np.array(ends) / 2, np.array(ends) * 2, color="gray", alpha=0.15)
        panel.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, s", title=words)
        panel.grid(alpha=0.3)
    lines, names = axes[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize="small")
    return figure


def _kind(group: str) -> str:
    """Groups of measurements that share a colour."""
    return next((kind for word, kind in KINDS.items() if word in group), group)


def mixing_at_scale(names: Sequence[str], learners: Sequence[int], per_node: int) -> Figure:
    """Spectral gap, and the spread of noise, over learners."""
    figure, axes = _panels(2, 1, "how fast learners agree")
    left, right = axes[0]
    for name, look in zip(names, LOOKS, strict=False):
        n = [each for each in learners if each >= per_node or name != "hierarchical"]
        label = f"{name}, {per_node} a node" if name == "hierarchical" else name
        left.plot(n, [mixing.spectral_gap(name, each, per_node) for each in n], label=label, markersize=4, **look)
        right.plot(n, [mixing.spread(name, each, per_node) for each in n], markersize=4, **look)
    left.set(yscale="log", ylabel="spectral gap, 1 - sqrt(contraction)")
    right.set(yscale="log", ylabel="variance between learners / variance of an update's noise")
    for panel in (left, right):
        _learners(panel, learners)
    lines, labels = left.get_legend_handles_labels()
    figure.legend(lines, labels, loc="outside lower center", ncols=6, fontsize="small")
    return figure


def _panels(columns: int, rows: int, title: str) -> tuple[Figure, np.ndarray]:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(rows, columns, figsize=(11, 4.6 * rows + 0.6), squeeze=False, layout="constrained")
    figure.suptitle(title)
    return figure, axes


def _learners(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set(xscale="log", xlabel="learners")
    axes.set_xticks(ticks, [str(n) for n in ticks], rotation=45, fontsize="small")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)


save = figures.save
