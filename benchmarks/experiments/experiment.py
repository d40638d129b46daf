"""What `reproduce.py` knows of a table or figure."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.experiments.launch import Job
from horovod_dpsgd.diagnostics.points import Points
from horovod_dpsgd.report.runs import Run

Scale = Literal["cpu", "paper"]


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    cost: of the CPU scale, on two cores. jobs: all runs, for a scale and seeds; a run that several experiments name
    alike is one run. report: writes figures to a folder, gives the tables as Markdown. runs: the folder below --runs
    for run folders, and below results/; experiments with runs in common share it. results: the folder below results/,
    if it is another. demo: the jobs of a first look.
    """

    what: str
    cost: str
    jobs: Callable[[Scale, Sequence[int]], list[Job]]
    report: Callable[[Scale, Sequence[Run | Points], Path], str]
    runs: str
    needs_data: bool = False  # --data-dir, where the recipe's data set cannot be fetched
    demo: Callable[[], list[Job]] | None = None
    results: str = ""


@dataclass(frozen=True)
class Elsewhere:
    """What another command of this repository measures and reports.

    command: from the arguments of `reproduce.py`. results: the folder below results/, and the report in it.
    """

    what: str
    cost: str
    command: Callable[[argparse.Namespace], list[str]]
    results: str
    report: str
