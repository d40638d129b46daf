"""Pictures of loss landscapes: contours, lines, spectra of Hessians, and the smoothing of Theorem 1.

Points are dictionaries as `diagnostics.points` keeps them; names: for each run its label and its algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.ticker import LogFormatterSciNotation, LogLocator

from horovod_dpsgd.diagnostics import hessian
from horovod_dpsgd.report import figures
from horovod_dpsgd.report.figures import plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = Mapping[str, Any]
Names = Mapping[str, tuple[str, str]]
LEVELS = 24
LEAST_DENSITY = 1e-7  # that is shown


def contours(panels: Mapping[str, Sequence[Point]], places: Mapping[str, tuple[float, float]] | None = None) -> Figure:
    """The loss on a plane, a panel for each title, all on one logarithmic scale; `places` are marked and named."""
    figure, grid = _panels(len(panels))
    positive = np.concatenate([[p["loss"] for p in points if p["loss"] > 0] for points in panels.values()])
    if not len(positive):
        return figure
    levels = np.geomspace(positive.min(), max(positive.max(), 1.01 * positive.min()), LEVELS)
    for axes, (title, points) in zip(grid, panels.items(), strict=True):
        x, y, loss = surface(points, "loss")
        filled = axes.contourf(x, y, loss, levels, cmap="viridis", norm="log", extend="both")
        axes.contour(x, y, loss, levels[::2], colors="white", linewidths=0.4)
        axes.set(title=title, xlabel="x", ylabel="y")
        axes.locator_params(nbins=5)
        if places is None:
            axes.plot(0, 0, "+", color="white", markersize=9)
        for label, (across, up) in (places or {}).items():
            axes.plot(across, up, "o", color="white", markeredgecolor="black", markersize=6)
            axes.annotate(label, (across, up), (4, 6), textcoords="offset points", color="white", fontsize="x-small")
    bar = figure.colorbar(filled, ax=grid, label="loss", ticks=LogLocator(subs=(1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(4, 1)))
    return figure


def curvature(panels: Mapping[str, Sequence[Point]]) -> Figure:
    """|lambda_min / lambda_max| on a plane, all on one scale from 0 to the largest, or to 1."""
    figure, grid = _panels(len(panels))
    shares = [p["negative_share"] for points in panels.values() for p in points if np.isfinite(p["negative_share"])]
    top = min(1.0, max(shares, default=1.0))
    for axes, (title, points) in zip(grid, panels.items(), strict=True):
        x, y, share = surface(points, "negative_share")
        drawn = axes.pcolormesh(x, y, share, cmap="viridis", vmin=0, vmax=top, shading="nearest")
        axes.set(title=title, xlabel="x", ylabel="y")
        axes.locator_params(nbins=5)
        axes.plot(0, 0, "+", color="white", markersize=9)
    figure.colorbar(drawn, ax=grid, label=r"$|\lambda_{min} / \lambda_{max}|$", extend="max" if top == 1 else "neither")
    return figure


def line(points: Sequence[Point], labels: Sequence[str]) -> Figure:
    """The loss along a line: at 0 the first solution, and at 1 the second, if there is one."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    axes.plot([p["x"] for p in points], [p["loss"] for p in points], color="black", marker=".", linewidth=1.2)
    for place, label in enumerate(labels):
        axes.axvline(place, color="gray", linewidth=0.8, linestyle=":")
        axes.annotate(
            label, (place, 1), (3, -4), xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=90, va="top", fontsize="x-small",
        )  # fmt: skip
    axes.set(xlabel="x", ylabel="loss")
    if any(p["loss"] > 0 for p in points):  # not of a run that has blown up
        axes.set_yscale("log")
    return figure


def eigenvalues(top: Mapping[str, Sequence[float]], names: Names) -> Figure:
    """The largest eigenvalues of each run, by rank."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    for run, values in top.items():
        label, algo = names[run]
        axes.plot(range(1, len(values) + 1), values, marker="o", label=label, **_style(algo))
    axes.set(xlabel="rank", ylabel="eigenvalue of the Hessian", yscale="log")
    axes.set_xticks(range(1, max(map(len, top.values()), default=0) + 1))
    _legend(axes, "small")
    return figure


def densities(probes: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], names: Names) -> Figure:
    """The density of the Hessians' eigenvalues, on one axis, each eigenvalue widened to 1 % of the largest of all."""
    figure, axes = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
    nodes = [values for some in probes.values() for values, _ in some]
    if not nodes:
        return figure
    low, high = min(v.min() for v in nodes), max(v.max() for v in nodes)
    at = np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), 1500)
    peak = LEAST_DENSITY
    for run, some in probes.items():
        if some:
            label, algo = names[run]
            density = hessian.density(some, at, 0.01 * max(abs(low), abs(high)))
            peak = max(peak, density.max())
            axes.plot(at, density, label=label, **_style(algo))
    axes.set(xlabel="eigenvalue of the Hessian", ylabel="density", yscale="log", ylim=(LEAST_DENSITY, 5 * peak))
    _legend(axes, "small")
    return figure


def smoothing(runs: Mapping[str, Sequence[Point]], names: Names) -> Figure:
    """Theorem 1 along training: (a) how smooth the loss and the smoothed loss are, and the bound; (b) the spread of the
    learners that does it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    kinds = {
        "smoothness": ("loss", {"linestyle": "--", "marker": "o", "fillstyle": "none"}),
        "smoothed_smoothness": ("smoothed loss", {"linestyle": "-", "marker": "o"}),
        "bound": (r"$2G/\sigma$", {"linestyle": ":", "marker": "^"}),
    }
    for run, points in runs.items():
        label, algo = names[run]
        color = _style(algo).get("color")
        for kind, (words, style) in kinds.items():
            _along(left, points, kind, color=color, label=f"{words}, {label}", **style)
        _along(right, points, "sigma", color=color, marker="o", label=label)
    for lr in sorted({p["lr"] for points in runs.values() for p in points}):
        left.axhline(1 / lr, color="gray", linewidth=0.8, linestyle="-.", label=rf"$1/\alpha$ = {1 / lr:g}")
    left.set(xlabel="step", ylabel="smoothness $l_s$", yscale="log", title="(a) smoothness")
    right.set(xlabel="step", ylabel=r"$\sigma$ of one weight", title="(b) spread of the learners")
    if any(p["sigma"] > 0 for points in runs.values() for p in points):
        right.set_yscale("log")
    _legend(left, "x-small")
    _legend(right, "small")
    return figure


def surface(points: Sequence[Point], name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The axes x [m] and y [k] of a grid, and a quantity on it [k, m]; NaN where it is missing or not finite."""
    x, y = (np.unique([p[axis] for p in points]) for axis in ("x", "y"))
    values = np.full((len(y), len(x)), np.nan)
    for p in points:
        values[np.searchsorted(y, p["y"]), np.searchsorted(x, p["x"])] = p[name]
    return x, y, np.ma.masked_invalid(values)


def _along(axes: Axes, points: Sequence[Point], kind: str, **style: Any) -> None:
    there = [(p["step"], p[kind]) for p in points if p.get(kind)]
    if there:
        axes.plot(*zip(*there, strict=True), **style)


def _legend(axes: Axes, size: str) -> None:
    """Each label once: runs of one algorithm may share it."""
    handles = {label: handle for handle, label in reversed(list(zip(*axes.get_legend_handles_labels(), strict=True)))}
    axes.legend(list(reversed(handles.values())), list(reversed(handles)), fontsize=size)


def _panels(number: int) -> tuple[Figure, Sequence[Axes]]:
    figure, grid = plt.subplots(1, number, figsize=(1 + 4.6 * number, 4.4), layout="constrained", squeeze=False)
    return figure, grid[0]


def _style(algo: str) -> dict[str, Any]:
    return figures.STYLES.get(algo, {})
