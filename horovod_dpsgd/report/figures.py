"""Curves over training steps: the median over seeds as a line, each seed as a thin one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
    "dpsgd-mixed-moments": {"color": "#56B4E9", "linestyle": "-"},
}


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


def noise_strength(runs: Sequence[Run]) -> Figure:
    """The noise strengths of the paper's Appendix B along the DPSGD runs."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    dpsgd = [run for run in runs if run.result["algo"] == "dpsgd"]
    kinds = {
        "noise": (r"$\Delta_{DP}$", "#009E73", "-"),
        "noise_ssgd": (r"$\Delta_S$", "#D55E00", "--"),
        "noise_2": (r"$\Delta^{(2)}$", "#0072B2", "-."),
    }
    for metric, (label, color, linestyle) in kinds.items():
        axes.plot(*_median([_curve(run, metric) for run in dpsgd]), color=color, linestyle=linestyle, label=label)
    axes.set(xlabel="step", ylabel="noise strength", yscale="log", title=f"noise in DPSGD (median of {len(dpsgd)})")
    axes.legend()
    return figure


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
    """Figure 1a of the paper: held-out accuracy at w_a over epochs."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    draw(axes, [run for run in runs if len(run.curve("heldout_error_percent")[0])], "heldout_error_percent")
    axes.yaxis.set_major_formatter(lambda error, _position: f"{100 - error:g}")
    axes.invert_yaxis()
    axes.set(xlabel="step", ylabel="held-out accuracy %", title=title)
    axes.legend()
    return figure


def heldout_loss(runs: Sequence[Run], title: str) -> Figure:
    """Figures 1b, 1c and 3 of the paper: held-out loss at w_a over steps."""
    figure, axes = plt.subplots(figsize=(6.5, 4.5), layout="constrained")
    draw(axes, [run for run in runs if len(run.curve("heldout_loss")[0])], "heldout_loss")
    axes.set(xlabel="step", ylabel="held-out loss", title=title)
    axes.legend()
    return figure


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """So many axes side by side."""
    figure, axes = plt.subplots(1, number, figsize=(5.5 * number, 4.5), layout="constrained", squeeze=False)
    return figure, list(axes[0])


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as PNG and SVG beside each other; return both paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files
