"""Runs side by side on one HTML page: tables, curves, settings and what they ran on, in a single file.

The text is in `templates/`; what is filled in there is made here and in `figures`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from horovod_dpsgd import __version__
from horovod_dpsgd.report import figures, svg, table
from horovod_dpsgd.report.compared import Comparison, Setting, short, written
from horovod_dpsgd.report.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STALENESS_SHOWN = 4  # columns: 0, 1, 2, 3, and 4 or more


@dataclass(frozen=True)
class Curve:
    """A metric of `metrics.jsonl` that is drawn over steps: the axis' name, a title, and what it is, as HTML."""

    metric: str
    axis: str
    title: str
    what: Markup
    over: str | None = None  # a metric that is drawn with it


def _curve(metric: str, axis: str, title: str, what: str, over: str | None = None) -> Curve:
    """In `what` "w_a" and "Delta_DP" are set as in the paper."""
    text = what.replace("Delta", "Δ").replace("alpha", "α").replace("sigma", "σ")
    return Curve(metric, axis, title, Markup(re.sub(r"_([A-Za-z]+)", r"<sub>\1</sub>", text)), over)


LEARNING = (
    _curve("heldout_loss", "held-out loss", "Held-out loss", "Of the model at w_a, the mean of all learners' weights."),
    _curve("heldout_error_percent", "held-out error %", "Held-out error", "Of the model at w_a."),
    _curve("train_loss", "training loss", "Training loss", "Mean over learners and steps."),
)
DYNAMICS = (
    _curve(
        "effective_lr",
        r"$\alpha_e$",
        "Effective learning rate",
        "alpha_e: how far the step alpha g_a went along g, in units of it.",
        over="lr",
    ),
    _curve("noise", r"$\Delta_{DP}$", "Noise", "Delta_DP = |alpha g_a - alpha_e g|² (eq. 4)."),
    _curve("noise_ssgd", r"$\Delta_S$", "Noise of SSGD", "Delta_S: the same, had all gradients been taken at w_a."),
    _curve(
        "noise_2",
        r"$\Delta^{(2)}$",
        "Noise from differing weights",
        "Delta<sup>(2)</sup>: what gradients at the learners' own weights, not at w_a, add to the step; squared.",
    ),
    _curve("weight_variance", r"$\sigma_w^2$", "Weight variance", "sigma_w² = n<sup>-2</sup> Σ_j |w_j - w_a|²."),
    _curve(
        "consensus_distance",
        "consensus distance",
        "Consensus distance",
        "Root of the mean over learners of |w_j - w_a|².",
    ),
    _curve(
        "gradient_diversity",
        "gradient diversity",
        "Gradient diversity",
        "1/n where all learners' gradients are equal, 1 where they are orthogonal.",
    ),
)


@dataclass(frozen=True)
class Column:
    """Of the table of results: the heading, and each run's number.

    lost: a run without a finite number was lost, and is worse than all others; else the number was not measured.
    """

    heading: str
    of: Callable[[Run], float]
    written: Callable[[float], str]
    lost: bool = False

    def cell(self, runs: Sequence[Run]) -> dict[str, str]:
        numbers = [self.of(run) for run in runs]
        return _cell([number for number in numbers if self.lost or math.isfinite(number)], self.written)


def _digits(number: int) -> Callable[[float], str]:
    """Writes so many significant digits."""

    def write(value: float) -> str:
        if 10**number <= abs(value) < 1e7:
            return f"{value:,.0f}"
        return f"{value:#.{number}g}".removesuffix(".") if value else "0"

    return write


def _number(value: float, digits: int) -> str:
    return _digits(digits)(value) if math.isfinite(value) else "–"


def _bytes(number: float) -> str:
    """ "552 kB": of 1,000 bytes."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f} B"


def _of_result(key: str, factor: float = 1.0) -> Callable[[Run], float]:
    return lambda run: factor * run.number(key)


COLUMNS = (
    Column("held-out error %", lambda run: run.error_percent, lambda value: f"{value:.2f}", lost=True),
    Column("held-out loss", lambda run: run.heldout_loss, _digits(4), lost=True),
    Column("step, ms", lambda run: 1e3 * run.step_seconds, _digits(3)),
    Column("exposed communi\u00adcation, ms", _of_result("exposed_communication_seconds_median", 1e3), _digits(2)),
    Column("sent a step and learner", _of_result("bytes_sent_per_step"), _bytes),
    Column("samples a second", _of_result("samples_per_second"), _digits(3)),
)


def render(runs: Sequence[Run]) -> str:
    """The page, as HTML."""
    compared = Comparison(runs)
    environment = Environment(
        loader=PackageLoader("horovod_dpsgd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"written": written, "number": _number}
    style = environment.loader.get_source(environment, "page.css")[0]  # type: ignore[union-attr]
    return environment.get_template("page.html").render(
        compared=compared,
        title=_title(compared),
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        style=Markup(style),
        head=_head(compared),
        columns=COLUMNS,
        results=_results(compared),
        learning=[_drawn(compared, curve) for curve in LEARNING if _is_logged(compared, curve)],
        missing=[curve.title.lower() for curve in LEARNING if not _is_logged(compared, curve)],
        dynamics=[_drawn(compared, curve) for curve in DYNAMICS if _is_logged(compared, curve)],
        learners=_learners(compared),
        staleness=_staleness(compared),
        environment=_environment(compared),
    )


def _title(compared: Comparison) -> str:
    algorithms = dict.fromkeys(setting.runs[0].algorithm.partition(" ")[0] for setting in compared.settings)
    return f"{_listed(algorithms)} on {_listed(_different(compared.runs, 'task'))}"


def _head(compared: Comparison) -> dict[str, str]:
    """What was compared, in a few lines."""
    runs = compared.runs
    diverged = sum(run.result["diverged"] for run in runs)
    by = [f"{short(key)} ({_listed(map(written, compared.values(runs, key)))})" for key in compared.condition_keys]
    lines = {
        "algorithms": "; ".join(compared.methods),
        "runs": f"{len(runs)}, of which {diverged} diverged",
        "seeds": _listed(map(written, compared.values(runs, "seed"))),
        "task": _listed(_different(runs, "task")),
        "model": _listed(_different(runs, "model")),
        "data": "; ".join(map(str, _different(runs, "data"))),
        "learners": _listed(_different(runs, "learners")),
        "conditions": f"{len(compared.conditions)}, by {_listed(by)}" if by else "",
    }
    return {heading: text for heading, text in lines.items() if text}


def _different(runs: Iterable[Run], key: str) -> list[Any]:
    """The different values in the results, in the order in which they came."""
    return list(dict.fromkeys(run.result.get(key) for run in runs))


def _listed(things: Iterable[Any]) -> str:
    """ "SSGD, SSGD* and DPSGD" """
    texts = [str(thing) for thing in things]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _results(compared: Comparison) -> list[tuple[str, list[dict[str, Any]]]]:
    """The rows of the table of results, by condition."""
    return [
        (condition, [_row(compared, setting) for setting in settings])
        for condition, settings in compared.conditions.items()
    ]


def _row(compared: Comparison, setting: Setting) -> dict[str, Any]:
    runs, first = setting.runs, setting.runs[0]
    topology = first.result["topology"]
    name = setting.method.replace(f", {topology}", "", 1) if topology else setting.method
    return {
        "algorithm": name,
        "topology": topology or "–",
        "learners": first.result["learners"],
        "batch": f"{first.result['global_batch']:,}",
        "rate": written(first.result["lr"]),
        "diverged": f"{sum(run.result['diverged'] for run in runs)} of {len(runs)}",
        "cells": [column.cell(runs) for column in COLUMNS],
    }


def _cell(values: Sequence[float], write: Callable[[float], str]) -> dict[str, str]:
    """The median, and the range of those that are finite, where values differ."""
    found = table.median_low_high(values)
    if found is None:
        return {"median": "–", "range": ""}
    median, low, high = (write(value) if math.isfinite(value) else "lost" for value in found)
    return {"median": median, "range": f"{low} – {high}" if low != high else ""}


# ---- curves ----


def _is_logged(compared: Comparison, curve: Curve) -> bool:
    """Whether there is a line to draw: more than a point, and not all 0."""
    curves = [figures.median_curve(setting.runs, curve.metric) for setting in compared.settings]
    return any(len(steps) > 1 and values.any() for steps, values in curves)


def _drawn(compared: Comparison, curve: Curve) -> dict[str, Any]:
    figure, zero = figures.by_condition(compared, curve.metric, curve.axis, curve.over)
    what = curve.what + (Markup(" Not drawn, as it is 0 throughout: {}.").format("; ".join(zero)) if zero else "")
    return _figure(figure, curve.metric, curve.title, what, _ends(compared, curve.metric))


def _figure(figure: Figure, metric: str, title: str, what: Markup, description: str) -> dict[str, Any]:
    name = "figure-" + metric.replace("_", "-")
    wide = figure.get_figwidth() > 6
    return {"svg": svg.element(figure, name, title, description), "title": title, "what": what, "wide": wide}


def _ends(compared: Comparison, metric: str) -> str:
    """The curves in words: where each begins and ends."""
    sentences = []
    for setting in compared.settings:
        steps, values = figures.median_curve(setting.runs, metric)
        if len(steps):
            first, last = (f"{values[at]:.3g} at step {steps[at]}" for at in (0, -1))
            sentences.append(f"{setting.name}: from {first} to {last}.")
    return " ".join(sentences)


# ---- learners ----


def _learners(compared: Comparison) -> dict[str, Any] | None:
    """Each learner's own accuracy beside that of the model at w_a, where there are several."""
    rows = []
    for setting in compared.settings:
        own = [100 - run.error_percent_by_learner for run in setting.runs]
        own = [accuracies[np.isfinite(accuracies)] for accuracies in own]
        if setting.runs[0].result["learners"] == 1 or not any(len(accuracies) for accuracies in own):
            continue
        cells = [[100 - run.error_percent for run in setting.runs if math.isfinite(run.error_percent)]]
        cells += [[float(of(each)) for each in own if len(each)] for of in (np.mean, np.min, np.max)]
        distances = (run.number("consensus_distance") for run in setting.runs)
        distance = [each for each in distances if math.isfinite(each)]
        rows.append(
            (setting.name, [*(_cell(values, lambda v: f"{v:.2f}") for values in cells), _cell(distance, _digits(3))])
        )
    if not rows:
        return None
    words = ". ".join(f"{name}: {cells[0]['median']} at w_a, learners {cells[2]['median']} to {cells[3]['median']}"
                      for name, cells in rows)  # fmt: skip
    figure = figures.accuracy_by_learner(compared)
    what = Markup("Dots: the weights of each learner; bar: the model at w<sub>a</sub>, their mean.")
    return {"rows": rows, "figure": _figure(figure, "learners", "Held-out accuracy by learner", what, words)}


def _staleness(compared: Comparison) -> list[tuple[str, list[str]]]:
    """AD-PSGD: per cent of all steps by how often their weights were averaged in the meantime."""
    rows = []
    for setting in compared.settings:
        counts = [0] * (STALENESS_SHOWN + 1)
        for run in setting.runs:
            for changes, count in (run.result.get("staleness") or {}).items():
                counts[min(STALENESS_SHOWN, int(changes))] += count
        if any(counts):
            rows.append((setting.name, [f"{100 * count / sum(counts):.1f}" for count in counts]))
    return rows


# ---- what they ran on ----


def _environment(compared: Comparison) -> dict[str, list[str]]:
    """Versions, hosts, code: for each what all runs had, or what how many of them had."""
    runs = compared.runs
    versions = list(dict.fromkeys(name for run in runs for name in run.result.get("versions") or {}))
    rows = {"machine": _counted(runs, lambda run: run.result.get("machine"))}
    rows["hosts (learners on each)"] = _counted(runs, _hosts)
    rows["device"] = _counted(runs, lambda run: run.config["device"])
    rows["code (git)"] = _counted(runs, lambda run: run.result.get("git"))
    for name in versions:
        rows[name.replace("mpi_library", "MPI library")] = _counted(runs, partial(_version, name))
    return {heading: values for heading, values in rows.items() if values}


def _version(name: str, run: Run) -> str | None:
    return (run.result.get("versions") or {}).get(name)


def _hosts(run: Run) -> str | None:
    counts = Counter(run.result.get("hosts") or [])
    return ", ".join(f"{host} ({number})" for host, number in counts.items()) or None


def _counted(runs: Sequence[Run], of: Callable[[Run], str | None]) -> list[str]:
    """The different values; with the number of runs, if there are several. None if no run has one."""
    counts = Counter(of(run) for run in runs)
    if len(counts) == 1:
        return [value for value in counts if value is not None]
    return [f"{value or 'not recorded'} ({number} of {len(runs)} runs)" for value, number in counts.items()]
