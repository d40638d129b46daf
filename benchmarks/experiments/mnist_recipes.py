"""What the paper leaves open about its MNIST experiment (Section 2.2), varied one thing at a time: activation,
initialization, input scaling, learning rate, length. Figure 2's own recipe is the first row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments import dead_units
from benchmarks.experiments.experiment import Experiment, Line, Scale
from benchmarks.experiments.launch import Job, Loaded
from horovod_dpsgd.report import table
from horovod_dpsgd.report.runs import Run

LEARNERS = 5
VARIANTS: dict[str, list[str]] = {
    "as figure-2": [],
    "tanh": ["--set", "model_options.activation=tanh"],
    "initial weights x 2.4 (near Glorot's and He's)": ["--set", "model_options.init_scale=2.4"],
    "standardized pixels": ["--set", "model_options.standardize=true"],
    "standardized pixels, rate 0.1": ["--set", "model_options.standardize=true", "--lr", "0.1"],
    "3,000 steps": ["--max-steps", "3000"],
}
ALGORITHMS = {"ssgd": ["--algo", "ssgd"], "dpsgd": ["--algo", "dpsgd", "--topology", "complete"]}


def jobs(_scale: Scale, seeds: Sequence[int]) -> list[Job]:
    """All runs, seed by seed; the paper's scale is that of two cores here."""
    return [_job(variant, algorithm, seed) for seed in seeds for variant in VARIANTS for algorithm in ALGORITHMS]


def _job(variant: str, algorithm: str, seed: int) -> Job:
    common = ("--recipe", "mnist", "--seed", str(seed), "--checkpoint-every", "1500")
    name = f"{_file_name(variant)}-{algorithm}-seed{seed}"
    arguments = (*common, *ALGORITHMS[algorithm], *VARIANTS[variant])
    return Job(name, "benchmarks/cv/train.py", LEARNERS, arguments)


def report(_scale: Scale, loaded: Loaded, folder: Path) -> str:
    """The table: a row for each variant and algorithm."""
    rows = []
    for variant in VARIANTS:
        for algorithm in ALGORITHMS:
            group = [
                run for run in loaded.runs if run.folder.name.startswith(f"{_file_name(variant)}-{algorithm}-seed")
            ]
            errors = [run.error_percent for run in group]
            worst = [float(np.max(run.curve("train_loss_max")[1][-30:])) for run in group]
            rows.append(
                [
                    variant,
                    algorithm.upper(),
                    str(len(group)),
                    str(sum(run.result["diverged"] for run in group)),
                    table.median_and_range(errors),
                    table.median_and_range(worst),
                    dead_units.median_percent(group) if "tanh" not in variant else "-",
                ]
            )
    header = [
        "recipe",
        "algorithm",
        "runs",
        "diverged",
        "held-out error %",
        "worst loss of the last 300 steps",
        "dead ReLU units %",
    ]
    return table.markdown(header, rows)


def _file_name(variant: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in variant.replace("'", "")).strip("-")


def about(_scale: Scale, run: Run) -> Line:
    """Variant and algorithm."""
    name = run.folder.name.rpartition("-seed")[0].rpartition("-")[0]
    variant = next(variant for variant in VARIANTS if _file_name(variant) == name)
    return {"network": run.result["model"], "recipe": variant, "method": run.label}


EXPERIMENT = Experiment(
    "MNIST: what Section 2.2 leaves open, varied one by one", "30 min", jobs, report, "mnist-recipes", about=about
)
