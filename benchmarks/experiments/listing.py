"""What `reproduce.py list` shows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.experiments.experiment import Experiment

KINDS = ("figure", "table")  # come first, in the paper's order


def in_order(experiments: Mapping[str, Experiment]) -> dict[str, Experiment]:
    """Figures by their numbers, tables by theirs, and the rest as it is."""
    return dict(sorted(experiments.items(), key=lambda item: _place(item[0])))


def text(experiments: Mapping[str, Experiment], results: Path) -> str:
    """A line each: what it is, what it costs at either scale, and where its result is, if there is one."""
    lines = [("name", "5 seeds", "runs", "result", "what")]
    for name, experiment in experiments.items():
        found = ", ".join(_results(name, experiment, results)) or "-"
        lines.append((name, experiment.cost, _runs(experiment), found, experiment.what))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*rows, "", EXPLAINED])


EXPLAINED = (
    "5 seeds: on two cores, about how long training takes, by the runs kept in results/ (a guess where none are);\n"
    "starting the learners, mostly 16, comes on top. runs: of one seed, here / with --scale paper, some shared.\n"
    "result: the folder below results/ that holds NAME.md."
)


def _place(name: str) -> tuple[int, int, str]:
    kind, _, number = name.partition("-")
    digits = re.match(r"\d+", number)
    if kind not in KINDS or digits is None:
        return len(KINDS), 0, ""
    return KINDS.index(kind), int(digits[0]), number


def _runs(experiment: Experiment) -> str:
    return " / ".join(str(len(experiment.jobs(scale, [0]))).rjust(2) for scale in ("cpu", "paper"))


def _results(name: str, experiment: Experiment, results: Path) -> list[str]:
    """The folders of reports of either scale that are there."""
    folder = experiment.results or experiment.runs
    return [each for each in (folder, f"{folder}-paper") if (results / each / f"{name}.md").exists()]
