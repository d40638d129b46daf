"""Run folders, read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from horovod_dpsgd.errors import UserError
from horovod_dpsgd.training.recipe import WATCHING
from horovod_dpsgd.training.run_log import METRICS, RESULT

# Keys of a recipe in which two runs may differ, and still be the same but for the seed.
INDIFFERENT = {"seed", "data_dir", "device", "stall_timeout"} | WATCHING


@dataclass(frozen=True)
class Run:
    """A run that has ended: its `result.json` and the lines of its `metrics.jsonl`."""

    folder: Path
    result: dict[str, Any]
    metrics: list[dict[str, Any]]

    @property
    def error_percent(self) -> float:
        """Held-out error of the model at w_a, per cent; NaN if its loss is not finite."""
        return _number(self.result["heldout"]["error_percent"]) if np.isfinite(self.heldout_loss) else float("nan")

    @property
    def heldout_loss(self) -> float:
        return _number(self.result["heldout"]["loss"])

    @property
    def step_seconds(self) -> float:
        """The median time of a step, without evaluation and instruments."""
        return _number(self.result["step_seconds_median"])

    @property
    def settings(self) -> tuple[Any, ...]:
        """Equal for runs that differ in nothing but the seed."""
        config = {key: value for key, value in self.result["config"].items() if key not in INDIFFERENT}
        return (self.result["algo"], self.result["learners"], self.result["data"], json.dumps(config, sort_keys=True))

    @property
    def label(self) -> str:
        """The algorithm as it stands in tables: "SSGD* (0.05)", "DPSGD, complete"."""
        name = self.result["algo"].upper().replace("-STAR", "*")
        if self.result["topology"]:
            return f"{name}, {self.result['topology']}"
        noise = self.result["config"]["noise_std"]
        return f"{name} (std {noise:g})" if noise else name

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, where it was logged; what was not finite is NaN."""
        points = [(line["step"], _number(line[name])) for line in self.metrics if name in line]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps), np.array(values, dtype=float)


def load(folder: Path) -> Run:
    """Read a run folder. Raises UserError if it holds no run that ended."""
    try:
        result = json.loads((folder / RESULT).read_text())
        lines = (folder / METRICS).read_text().splitlines()
    except OSError as error:
        raise UserError(f"{folder} holds no run that ended: {Path(error.filename).name} is missing") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{folder}/{RESULT} is damaged: {error}") from error
    return Run(folder, result, [json.loads(line) for line in lines])


def by_settings(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ only in the seed together, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    return list(groups.values())


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
