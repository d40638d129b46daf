"""What `reproduce.py` knows of a table or figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.experiments.launch import Job, Loaded
from horovod_dpsgd.report import table
from horovod_dpsgd.report.runs import Run

Scale = Literal["cpu", "paper"]
Line = Mapping[str, object]  # of a CSV: columns and what is in them


def by_method(_scale: Scale, run: Run) -> Line:
    """What a run is called in a CSV, where nothing but its algorithm distinguishes it."""
    return {"network": run.result["model"], "method": run.label}


@dataclass(frozen=True)
class Experiment:
    """A table or figure of the paper.

    cost: of five seeds of the CPU scale, on two cores. jobs: all runs, for a scale and seeds; a run that several
    experiments name alike is one run. report: writes figures to a folder, gives the tables as Markdown. runs: the
    folder below --runs for run folders, and below results/; experiments with runs in common share it. results: the
    folder below results/, if it is another. demo: the jobs of a first look. about: what the tables call a run, for the
    CSV. paper: what the paper reports, as lines of it.
    """

    what: str
    cost: str
    jobs: Callable[[Scale, Sequence[int]], list[Job]]
    report: Callable[[Scale, Loaded, Path], str]
    runs: str
    needs_data: bool = False  # --data-dir, where the recipe's data set cannot be fetched
    demo: Callable[[], list[Job]] | None = None
    results: str = ""
    about: Callable[[Scale, Run], Line] = by_method
    paper: Sequence[Line] = ()

    def csv(self, scale: Scale, runs: Sequence[Run]) -> str:
        """The numbers that the report is made of: a line for each run, and for each of the paper's that are known."""
        ours: list[Line] = [{"source": run.folder.name, **self.about(scale, run), **table.of_run(run)} for run in runs]
        return table.csv_text([*ours, *({"source": "paper", **line} for line in self.paper)])
