"""Curves over training steps: the median over seeds as a line, each seed as a thin one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np

from horovod_dpsgd.report.runs import Run, by_settings

mpl.use("Agg")  # files only: no display is needed
from matplotlib import pyplot as plt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The paper draws DPSGD green, SSGD red and SSGD* blue; these are their neighbours in Okabe and Ito's palette, which can
# be told apart by the colour-blind. Line styles differ too.
STYLES: dict[str, dict[str, Any]] = {
    "dpsgd": {"color": "#009E73", "linestyle": "-"},
    "ssgd": {"color": "#D55E00", "linestyle": "--"},
    "ssgd-star": {"color": "#0072B2", "linestyle": "-."},
    "ssgd-lamb": {"color": "#CC79A7", "linestyle": "--"},
    "dpsgd-lamb": {"color": "#E69F00", "linestyle": "-"},
}


COLUMNS = 4


def draw(axes: Axes, runs: Iterable[Run], metric: str, label: bool = True) -> None:
    """The curves of `metric`: one median line for each setting, over thin lines for its runs.

    The first step is left out: all learners have the same weights there, and on a logarithmic axis nothing else could
    be seen.
    """
    for group in by_settings(runs):
        style = STYLES.get(group[0].result["algo"], {})
        curves = [_curve(run, metric) for run in group]
        if len(group) > 1:
            for steps, values in curves:
                axes.plot(steps, values, linewidth=0.5, alpha=0.35, **style)
        steps, median = _median(curves)
        text = group[0].label + (f", median of {len(group)}" if len(group) > 1 else "")
        axes.plot(steps, median, linewidth=1.8, label=text if label else None, **style)


def _curve(run: Run, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values after the first step."""
    steps, values = run.curve(metric)
    return steps[steps > 1], values[steps > 1]


def _median(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The median over runs, where at least half of them have a finite value: the rest have diverged."""
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    values = np.full((len(curves), len(steps)), np.nan)
    for row, (own_steps, own_values) in zip(values, curves, strict=True):
        row[np.searchsorted(steps, own_steps)] = own_values
    enough = 2 * np.isfinite(values).sum(axis=0) >= len(curves)
    return steps[enough], np.nanmedian(values[:, enough], axis=0)


def figure_2(runs: Sequence[Run], lr: float) -> Figure:
    """Figure 2 of the paper: (a) training loss; (b) effective learning rate and weight variance."""
    panels = "LR\nLV"  # the loss beside the rate over the variance
    figure, axes = plt.subplot_mosaic(panels, figsize=(11, 4.5), layout="constrained")
    left, upper, lower = axes["L"], axes["R"], axes["V"]
    draw(left, runs, "train_loss")
    left.set(xlabel="step", ylabel="training loss", yscale="log", title="(a) training loss")
    left.legend()
    measured = [run for run in runs if run.result["algo"] in ("dpsgd", "ssgd")]
    draw(upper, measured, "effective_lr")
    upper.axhline(lr, color="gray", linewidth=0.8, linestyle=":", label=r"$\alpha$")
    upper.set(ylabel=r"$\alpha_e$", title="(b) effective learning rate and weight variance")
    upper.set_ylim(0, 2 * lr)
    upper.legend(fontsize="small")
    draw(lower, [run for run in measured if run.result["algo"] == "dpsgd"], "weight_variance", label=False)
    lower.set(xlabel="step", ylabel=r"$\sigma_w^2 = \mathrm{Tr}\,C$", yscale="log")
    return figure


# Metrics, as `diagnostics.dynamics` has them: the table's name, and how the figure draws them.
NOISE: dict[str, tuple[str, dict[str, Any]]] = {
    "noise": ("Delta_DP", {"color": "#009E73", "linestyle": "-", "label": r"$\Delta_{DP}$"}),
    "noise_ssgd": ("Delta_S", {"color": "#D55E00", "linestyle": "--", "label": r"$\Delta_S$"}),
    "noise_2": ("Delta(2)", {"color": "#0072B2", "linestyle": "-.", "label": r"$\Delta^{(2)}$"}),
    "noise_2_first_order": (
        "Delta(2), first order in w_j - w_a",
        {"color": "#E69F00", "linestyle": ":", "label": r"$\Delta^{(2)}$, first order in $w_j - w_a$"},
    ),
    "noise_2_hessian": (
        "right side of eq. 5",
        {"color": "#CC79A7", "linestyle": "--", "label": r"$\alpha^2 \sum H H C$, eq. 5"},
    ),
}


def noise_strength(runs: Sequence[Run]) -> Figure:
    """The noise strengths of the paper's Appendix B along the DPSGD runs."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    _draw_noise(axes, runs)
    return figure


def progression(runs: Sequence[Run], lr: float) -> Figure:
    """Along training: (a) the effective learning rate; (b) the noise in DPSGD, and what eq. 5 makes of it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    draw(left, [run for run in runs if run.result["algo"] in ("dpsgd", "ssgd")], "effective_lr")
    left.axhline(lr, color="gray", linewidth=0.8, linestyle=":", label=r"peak $\alpha$")
    left.set(xlabel="step", ylabel=r"$\alpha_e$", title="(a) effective learning rate")
    left.set_ylim(max(-lr, min(0.0, left.get_ylim()[0])), 2 * lr)  # it may be negative for a while
    left.legend(fontsize="small")
    _draw_noise(right, runs)
    right.set_title(f"(b) {right.get_title()}")
    return figure


def _draw_noise(axes: Axes, runs: Sequence[Run]) -> None:
    """Those noise strengths that were measured: medians over DPSGD's runs."""
    dpsgd = [run for run in runs if run.result["algo"] == "dpsgd"]
    for metric, (_, style) in NOISE.items():
        curves = [_curve(run, metric) for run in dpsgd]
        if any(len(steps) for steps, _ in curves):
            axes.plot(*_median(curves), **style)
    title = "noise in DPSGD" + (f", median of {len(dpsgd)}" if len(dpsgd) > 1 else "")
    axes.set(xlabel="step", ylabel="noise strength", yscale="log", title=title)
    axes.legend(fontsize="small")


def learning_curves(runs: Sequence[Run]) -> Figure:
    """Training loss, and held-out error where it was measured on the way."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, metric, name in (
        (left, "train_loss", "training loss"),
        (right, "heldout_error_percent", "held-out error %"),
    ):
        draw(axes, [run for run in runs if len(run.curve(metric)[0])], metric)
        axes.set(xlabel="step", ylabel=name, yscale="log")
    left.legend()
    return figure


def heldout_accuracy(runs: Sequence[Run], title: str) -> Figure:
    """Figure 1a of the paper: held-out accuracy at w_a over steps."""
    return heldout_accuracies({title: runs})


def heldout_accuracies(of: Mapping[str, Sequence[Run]]) -> Figure:
    """The same, a panel for each title: Figure 9."""
    figure, grid = panels(len(of))
    for axes, (title, runs) in zip(grid, of.items(), strict=True):
        _draw_heldout(axes, runs, "heldout_error_percent")
        axes.yaxis.set_major_formatter(lambda error, _position: f"{100 - error:g}")
        axes.invert_yaxis()
        axes.set(xlabel="step", ylabel="held-out accuracy %", title=title)
    return figure


def heldout_loss(runs: Sequence[Run], title: str) -> Figure:
    """Figures 1b, 1c and 3 of the paper: held-out loss at w_a over steps."""
    return heldout_losses({title: runs})


def heldout_losses(of: Mapping[str, Sequence[Run]]) -> Figure:
    """The same, a panel for each title: Figure 10."""
    figure, grid = panels(len(of))
    for axes, (title, runs) in zip(grid, of.items(), strict=True):
        _draw_heldout(axes, runs, "heldout_loss")
        axes.set(xlabel="step", ylabel="held-out loss", title=title)
    return figure


def _draw_heldout(axes: Axes, runs: Sequence[Run], metric: str) -> None:
    draw(axes, [run for run in runs if len(run.curve(metric)[0])], metric)
    if axes.lines:
        axes.legend(fontsize="small")


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """So many axes side by side, in rows of at most `COLUMNS`."""
    columns = min(number, COLUMNS)
    rows = -(-number // columns)
    size = (6.5, 4.5) if number == 1 else (5.5 * columns, 4.5 * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for axes in grid.flat[number:]:
        axes.set_visible(False)
    return figure, list(grid.flat[:number])


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as PNG and SVG beside each other; return both paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files
