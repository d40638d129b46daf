"""Figure 2: SSGD, SSGD* and DPSGD on MNIST at a large learning rate (Section 2.2), and the noise of Appendix B."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import dead_units
from benchmarks.experiments.experiment import Experiment, Line, Scale
from benchmarks.experiments.launch import Job
from horovod_dpsgd.report import figures, table
from horovod_dpsgd.report.runs import Run, by_settings

LEARNERS = 5
NOISE_GRID = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
DEMO_NOISE = 0.05  # the best of the grid over five seeds
PAPER = {"dpsgd": "2.1", "ssgd": "fails", "ssgd-star": "5.7, tuned"}  # test error in per cent, Section 2.2


def jobs(_scale: Scale, seeds: Sequence[int], noise_grid: Sequence[float] = NOISE_GRID) -> list[Job]:
    """All runs of the figure, seed by seed; the paper's scale is that of two cores here."""
    kinds = {
        "ssgd": ["--algo", "ssgd", "--diagnostics"],
        "dpsgd": ["--algo", "dpsgd", "--topology", "complete", "--diagnostics"],
    }
    kinds |= {f"ssgd-star-{std:g}": ["--algo", "ssgd-star", "--noise-std", str(std)] for std in noise_grid}
    return [_job(f"{name}-seed{seed}", [*kind, "--seed", str(seed)]) for seed in seeds for name, kind in kinds.items()]


def _job(name: str, arguments: list[str]) -> Job:
    common = ("--recipe", "mnist", "--checkpoint-every", "500")
    return Job(name, "benchmarks/cv/train.py", LEARNERS, (*common, *arguments))


def report(_scale: Scale, runs: Sequence[Run], folder: Path) -> str:
    """Write the figures below `folder`; return the tables as Markdown."""
    groups = by_settings(runs)
    noisy = [group for group in groups if group[0].result["algo"] == "ssgd-star"]
    best = min(noisy, key=_median_error)
    shown = [run for group in groups if group not in noisy or group is best for run in group]
    lr = runs[0].result["lr"]
    drawn = figures.save(figures.figure_2(shown, lr), folder / "figure-2")
    drawn += figures.save(figures.noise_strength(shown), folder / "figure-4-noise")
    columns = {
        "paper %": lambda group: PAPER[group[0].result["algo"]],
        "dead ReLU units %": dead_units.median_percent,
    }
    parts = [table.comparison(shown, columns)]
    if len(noisy) > 1:
        parts += ["SSGD*, the whole grid of noise:", table.comparison(run for group in noisy for run in group)]
    parts += ["Figures, beside this table: " + ", ".join(file.name for file in drawn if file.suffix == ".png")]
    return "\n\n".join(parts)


def _median_error(group: Sequence[Run]) -> float:
    """Runs without a finite loss count as 100 % wrong."""
    return float(np.median(np.nan_to_num([run.error_percent for run in group], nan=100.0)))


def _paper_line(algo: str, error: str) -> Line:
    outcome: Line = {"diverged": True} if error == "fails" else {"heldout_error_percent": error.partition(",")[0]}
    return {"network": "mlp", "algo": algo, **outcome}


EXPERIMENT = Experiment(
    "MNIST: loss, effective learning rate, weight variance (Section 2.2)",
    "20 min",
    jobs,
    report,
    "figure-2",
    demo=lambda: jobs("cpu", [0], [DEMO_NOISE]),
    paper=[_paper_line(*entry) for entry in PAPER.items()],
)
