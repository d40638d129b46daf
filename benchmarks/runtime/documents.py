"""The model's results as Markdown: errors, mixing at scale, waiting under jitter, and how a delay spreads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.comm.output import duration
from benchmarks.runtime import mixing, spread_of_delay, waiting
from benchmarks.runtime.fit import Lines
from benchmarks.runtime.validate import Compared
from benchmarks.runtime.waiting import Times
from horovod_dpsgd.report import table

LARGE = 2**20  # bytes, from which on a time is one of moving weights and not of starting to


def errors(compared: Sequence[Compared]) -> str:
    """A row for each group of measurements: the median and the largest error, fitted and held out."""
    rows = []
    for group in dict.fromkeys(each.group for each in compared):
        mine = [each for each in compared if each.group == group]
        large = [each for each in mine if each.nbytes >= LARGE]
        rows.append([group, str(len(mine)), *_errors(mine), _errors(large)[1], mine[0].basis])
    large = [each for each in compared if each.nbytes >= LARGE]
    rows.append(["all", str(len(compared)), *_errors(compared), _errors(large)[1], ""])
    header = ["what", "measured", "error, fitted: median (largest)", "held out", "held out, 1 MB and more", "fitted on"]
    return table.markdown(header, rows)


def _errors(compared: Sequence[Compared]) -> list[str]:
    columns = zip(*(each.errors for each in compared), strict=True)
    return [_median_and_largest([error for error in column if error is not None]) for column in columns] or ["", ""]


def _median_and_largest(values: Sequence[float]) -> str:
    if not values:
        return "-"
    largest = max(values, key=abs)
    return f"{100 * np.median(np.abs(values)):.0f}% ({100 * largest:+.0f}%)"


def steps(compared: Sequence[Compared]) -> str:
    """Every step that was measured, beside its prediction."""
    chosen = [each for each in compared if "step" in each.group or "slow" in each.group]
    rows = []
    for each in chosen:
        values = [f"{value:.3g}" if each.is_rate else duration(value) for value in (each.measured, each.fitted)]
        rows.append([each.file, each.what, str(each.learners), *values, f"{100 * each.errors[0]:+.1f}%"])
    return table.markdown(["file", "what", "learners", "measured", "predicted", "error"], rows)


def agreement(names: Sequence[str], learners: Sequence[int], per_node: int) -> str:
    """A row for each number of learners, a column for each topology: spectral gap, and the noise between learners."""
    rows = []
    for n in learners:
        cells = []
        for name in names:
            fits = name != "hierarchical" or n >= per_node
            gap = mixing.spectral_gap(name, n, per_node) if fits else np.nan
            cells.append(f"{gap:.2g}, {mixing.spread(name, n, per_node):.3g}" if fits else "-")
        rows.append([str(n), *cells])
    columns = [f"{name}, {per_node} a node" if name == "hierarchical" else name for name in names]
    return table.markdown(["learners", *columns], rows)


def measured_agreement(measured: Sequence[Lines]) -> str:
    """The consensus distances of consensus.py, over that of `complete`, beside the predicted."""
    rows = [
        [
            str(row["learners"]),
            row["topology"],
            f"{row['distance']:.4g}",
            f"{row['ratio']:.3f}",
            f"{row['predicted']:.3f}",
            f"{100 * (row['predicted'] / row['ratio'] - 1):+.1f}%",
        ]
        for each in sorted(measured, key=lambda each: each.about["learners"])
        if each.about.get("bench") == "consensus"
        for row in each.rows
    ]
    header = ["learners", "topology", "consensus distance", "over that of complete", "predicted", "error"]
    return table.markdown(header, rows) if rows else ""


def jitter(sigmas: Sequence[float], learners: Sequence[int], topologies: Sequence[str]) -> str:
    """Mean step in times of a computation without delay: formulas for SSGD and AD-PSGD, simulations for DPSGD."""
    rows = []
    for sigma in sigmas:
        for n in learners:
            simulated = [f"{waiting.mean_step(name, n, sigma, Times(1.0)):.3f}" for name in topologies]
            ends = [f"{waiting.slowest_of(n, sigma):.3f}", *simulated, f"{1 + sigma:.3f}"]
            rows.append([f"{sigma:g}", str(n), *ends, f"{waiting.matching_bound(sigma):.3f}"])
    columns = [f"DPSGD, {name} (simulated)" for name in topologies]
    header = ["jitter", "learners", "SSGD: 1 + s H_n", *columns, "AD-PSGD: 1 + s", "bound for matching, any n"]
    return table.markdown(header, rows)


def delay(n: int, late: float, steps: Sequence[int]) -> str:
    """Per cent of learners that are late by D - 1, D - 2, ... computations: simulated, and by the formula."""
    waves = min(4, int(np.ceil(late)) - 1)
    last = max(steps) + 1
    simulated = spread_of_delay.simulated("matching", n, late, last)
    by_wave = [spread_of_delay.share_late(simulated, late - g) for g in range(1, waves + 1)]
    formula = spread_of_delay.mean_field(n, waves, last)
    rows = []
    for t in steps:
        pairs = [(shares[t], wave[t]) for shares, wave in zip(by_wave, formula[1:], strict=True)]
        mean = float(np.mean(simulated[:, t]))
        rows.append([str(t), *(f"{100 * a:.1f} ({100 * b:.1f})" for a, b in pairs), f"{mean:.2f}", f"{late:g}"])
    columns = [f"% late by {late - g:g} or more" for g in range(1, waves + 1)]
    return table.markdown(["steps after", *columns, "mean delay", "SSGD's: all"], rows)
