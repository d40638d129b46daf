"""Curves over training steps: the median over seeds as a line, each seed as a thin one."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex, to_rgb

from horovod_dpsgd.report.compared import Comparison
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
    "adpsgd": {"color": "#000000", "linestyle": ":"},
    "ssgd-lamb": {"color": "#CC79A7", "linestyle": "--"},
    "dpsgd-lamb": {"color": "#E69F00", "linestyle": "-"},
    "dpsgd-mixed-moments": {"color": "#56B4E9", "linestyle": "-"},
}
LINES = ("-", "--", "-.", ":")

Styles = Mapping[str, dict[str, Any]]


def styles(methods: Mapping[str, Run]) -> Styles:
    """A style for each name of an algorithm, given with one of its runs: that of `STYLES`, and where several share one
    (as SSGD* with more and more noise), shades of it, from dark to light."""
    by_style: dict[str, list[str]] = {}
    for name, run in methods.items():
        by_style.setdefault(_style_of(run), []).append(name)
    return {
        name: _shade(STYLES.get(style, {"color": "black", "linestyle": "-"}), at, len(names))
        for style, names in by_style.items()
        for at, name in enumerate(names)
    }


def _style_of(run: Run) -> str:
    algo = str(run.result["algo"])
    return f"{algo}-lamb" if run.config.get("optimizer") == "lamb" and f"{algo}-lamb" in STYLES else algo


def _shade(style: dict[str, Any], at: int, number: int) -> dict[str, Any]:
    """The shade in place `at` of so many of a style: around the style's own color, and with another kind of line."""
    if number == 1:
        return style
    lightness = 1.1 * at / (number - 1) - 0.55  # below 0: so much of the way to black; above: to white
    towards, share = (1.0 if lightness > 0 else 0.0), abs(lightness)
    red, green, blue = (part * (1 - share) + towards * share for part in to_rgb(style["color"]))
    return {
        "color": to_hex((red, green, blue)),
        "linestyle": LINES[(LINES.index(style["linestyle"]) + at) % len(LINES)],
    }


COLUMNS = 4


def draw(axes: Axes, runs: Iterable[Run], metric: str, label: bool = True) -> None:
    """The curves of `metric`: one median line for each setting, over thin lines for its runs.

    The first step is left out: all learners have the same weights there, and on a logarithmic axis nothing else could
    be seen.
    """
    for group in by_settings(runs):
        text = group[0].label + (f", median of {len(group)}" if len(group) > 1 else "")
        _draw_setting(axes, group, metric, text if label else None, STYLES.get(_style_of(group[0]), {}))


def _draw_setting(axes: Axes, group: Sequence[Run], metric: str, label: str | None, style: Mapping[str, Any]) -> None:
    curves = [_curve(run, metric) for run in group]
    if len(group) > 1:
        for steps, values in curves:
            axes.plot(steps, values, linewidth=0.5, alpha=0.35, **style)
    steps, median = _median(curves)
    axes.plot(steps, median, linewidth=1.8, label=label, **style)


def median_curve(group: Sequence[Run], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and the median over runs, as `draw` draws it."""
    return _median([_curve(run, metric) for run in group])


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


def by_condition(compared: Comparison, metric: str, name: str, over: str | None = None) -> tuple[Figure, list[str]]:
    """The curves of a metric, `name` for the axis: a panel for each condition, in each a line for each algorithm.

    over: a metric that is the same for all, as the rate, and drawn gray. Algorithms that have nothing but zeros are not
    drawn, so that others may have a logarithmic axis; their names are returned beside the figure.
    """
    looks = styles(compared.methods)
    logged = [each for each in compared.settings if len(median_curve(each.runs, metric)[0])]
    drawn = [each for each in logged if median_curve(each.runs, metric)[1].any()]
    conditions = list(dict.fromkeys(setting.condition for setting in drawn))
    share = "task" in compared.common
    figure, grid = _grid(len(conditions), one=(5.0, 3.4), each=(3.1, 2.3), around=(0.6, 0.7), share=share)
    for axes, condition in zip(grid, conditions, strict=True):
        here = [setting for setting in drawn if setting.condition == condition]
        for setting in here:
            _draw_setting(axes, setting.runs, metric, _plain(setting.method), looks[setting.method])
        if over:
            axes.plot(*_curve(here[0].runs[0], over), color="gray", linewidth=0.8, linestyle=":", label=_ALPHA)
        axes.set_title("\n".join(textwrap.wrap(_plain(condition), 36)), fontsize="medium")
    if _spans_decades(np.concatenate([line.get_ydata() for axes in grid for line in axes.get_lines()])):
        for axes in grid:
            axes.set_yscale("log")
    figure.supxlabel("step", fontsize="medium")
    figure.supylabel(name, fontsize="medium")
    _legend_above(figure, grid)
    return figure, list(dict.fromkeys(setting.method for setting in logged if setting not in drawn))


_ALPHA = r"rate $\alpha$"


def _spans_decades(values: np.ndarray) -> bool:
    finite = values[np.isfinite(values)]
    return bool(len(finite) and finite.min() > 0 and finite.max() > 10 * finite.min())


def _legend_above(figure: Figure, grid: Iterable[Axes]) -> None:
    """One legend for all axes: a name is a style in every one of them."""
    lines = {label: line for axes in grid for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    width = figure.get_figwidth()
    columns = max(1, min(len(lines), int(width / (0.6 + 0.085 * max(map(len, lines), default=1)))))
    figure.legend(lines.values(), lines.keys(), loc="outside upper center", ncols=columns, frameon=False)


def _plain(text: str) -> str:
    """Text that is no formula to matplotlib, whatever is in it."""
    return text.replace("$", r"\$")


def accuracy_by_learner(compared: Comparison) -> Figure:
    """Held-out accuracy of each learner's own weights, as dots, and of the model at w_a, as a bar: a line a setting."""
    looks = styles(compared.methods)
    figure, axes = plt.subplots(figsize=(8, 0.9 + 0.3 * len(compared.settings)), layout="constrained")
    for place, setting in enumerate(compared.settings):
        color = looks[setting.method]["color"]
        for run in setting.runs:
            own = 100 - run.error_percent_by_learner
            axes.plot(own, np.full(len(own), place), "o", color=color, alpha=0.7, markersize=5, markeredgewidth=0)
            axes.plot(100 - run.error_percent, place, "|", color="black", markersize=14)
    axes.set_yticks(range(len(compared.settings)), [_plain(setting.name) for setting in compared.settings])
    axes.set_ylim(len(compared.settings) - 0.5, -0.5)
    axes.grid(axis="y", linewidth=0.4)
    axes.set_xlabel("held-out accuracy %")
    return figure


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """So many axes side by side, in rows of at most `COLUMNS`."""
    return _grid(number, one=(6.5, 4.5), each=(5.5, 4.5))


Inches = tuple[float, float]  # width and height


def _grid(
    number: int, one: Inches, each: Inches, around: Inches = (0.0, 0.0), share: bool = False
) -> tuple[Figure, list[Axes]]:
    """So many axes, in rows of at most `COLUMNS`, on one y axis if they share it.

    one: the figure's size where there is a single one; each: what every other takes; around: what all of them do.
    """
    columns = min(number, COLUMNS)
    rows = math.ceil(number / columns)
    size = one if number == 1 else (around[0] + each[0] * columns, around[1] + each[1] * rows)
    figure, grid = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, sharey=share)
    for unused in grid.flat[number:]:
        unused.set_visible(False)
    return figure, list(grid.flat[:number])


def save(figure: Figure, path: Path) -> list[Path]:
    """Write the figure as PNG and SVG beside each other; return both paths."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in files:
        figure.savefig(file, dpi=150)
    plt.close(figure)
    return files
