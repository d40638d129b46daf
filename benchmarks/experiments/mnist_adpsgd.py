"""AD-PSGD beside DPSGD on the paper's MNIST task (Section 2.2), with all learners alike and with one slowed 4x.

The paper has DPSGD alone here; the question is whether going on without waiting costs anything in what is learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments.experiment import Experiment, Line, Scale
from benchmarks.experiments.launch import Job, Loaded
from horovod_dpsgd.report import table
from horovod_dpsgd.report.runs import Run

LEARNERS = 5
KINDS = {
    "DPSGD, complete": ["--algo", "dpsgd", "--topology", "complete"],
    "AD-PSGD, partners from complete": ["--algo", "adpsgd", "--topology", "complete"],
    "DPSGD, matching": ["--algo", "dpsgd", "--topology", "matching"],
    "AD-PSGD, matching": ["--algo", "adpsgd", "--topology", "matching"],
    "AD-PSGD, matching, learner 0 slowed 4x": ["--algo", "adpsgd", "--topology", "matching", "--slow-learner", "0:4"],
}


def jobs(_scale: Scale, seeds: Sequence[int]) -> list[Job]:
    """All runs, seed by seed; the paper's scale is that of two cores here."""
    return [_job(kind, seed) for seed in seeds for kind in KINDS]


def _job(kind: str, seed: int) -> Job:
    common = ("--recipe", "mnist", "--seed", str(seed))
    return Job(f"{_folder(kind)}-seed{seed}", "benchmarks/cv/train.py", LEARNERS, (*common, *KINDS[kind]))


def report(_scale: Scale, loaded: Loaded, folder: Path) -> str:
    """The table: a row for each kind."""
    rows = []
    for kind in KINDS:
        group = [run for run in loaded.runs if run.folder.name.startswith(f"{_folder(kind)}-seed")]
        results = [run.result for run in group]
        rows.append(
            [
                kind,
                str(len(group)),
                str(sum(result["diverged"] for result in results)),
                table.median_and_range([run.error_percent for run in group]),
                table.median_and_range([result["consensus_distance"] for result in results]),
                _staleness(results),
                table.median_and_range([result["steps_by_learner"][0] / result["steps"] for result in results]),
            ]
        )
    header = ["algorithm", "runs", "diverged", "held-out error %", "consensus distance"]
    return table.markdown([*header, "staleness 0 / 1 / 2 / more, % of steps", "steps of learner 0 / mean of all"], rows)


def _staleness(results: Sequence[dict]) -> str:
    """Of all runs together; DPSGD's is 1 by construction, or 0 for who sits out."""
    counts = [0, 0, 0, 0]
    for result in results:
        for changes, count in (result["staleness"] or {}).items():
            counts[min(3, int(changes))] += count
    return " / ".join(f"{100 * count / sum(counts):.0f}" for count in counts) if any(counts) else "-"


def _folder(kind: str) -> str:
    return kind.lower().replace(",", "").replace(" ", "-")


def about(_scale: Scale, run: Run) -> Line:
    """The kind is the method's name."""
    name = run.folder.name.rpartition("-seed")[0]
    return {"network": run.result["model"], "method": next(kind for kind in KINDS if _folder(kind) == name)}


EXPERIMENT = Experiment(
    "MNIST: AD-PSGD beside DPSGD, also with a slow learner", "20 min", jobs, report, "mnist-adpsgd", about=about
)
