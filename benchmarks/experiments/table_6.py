"""Table 6 (Appendix D): how large the networks are, and how long a step and an epoch takes, on the machine at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks import model_costs
from benchmarks.experiments.experiment import Experiment, Scale
from benchmarks.experiments.launch import Job, Loaded
from benchmarks.experiments.measurement import Measurement

DEVICES: dict[Scale, str] = {"cpu": "cpu", "paper": "cuda"}


def jobs(scale: Scale, _seeds: Sequence[int]) -> list[Job]:
    """One measurement of all networks, which goes on with those that are missing."""
    arguments = ("--scale", scale, "--device", DEVICES[scale])
    return [Measurement("costs", "benchmarks/model_costs.py", 1, arguments, model_costs.POINTS, model_costs.REPORT)]


def report(_scale: Scale, loaded: Loaded, _folder: Path) -> str:
    (measured,) = loaded.measured
    return f"{model_costs.report(measured)}\n\nThe paper's numbers are in an appendix that could not be read."


EXPERIMENT = Experiment("all networks: sizes, step and epoch times", "10 min", jobs, report, "table-6")
