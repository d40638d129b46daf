"""Run folders, read back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from horovod_dpsgd.errors import UserError
from horovod_dpsgd.training.recipe import WATCHING, Recipe, shaping
from horovod_dpsgd.training.run_log import METRICS, RESULT

# Keys of a recipe in which two runs may differ, and still be the same but for the seed.
INDIFFERENT = {"seed", "data_dir", "device", "stall_timeout"} | WATCHING

NEEDED = ("algo", "topology", "learners", "global_batch", "lr", "data", "heldout", "diverged", "config")


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
    def error_percent_by_learner(self) -> np.ndarray:
        """Held-out error of each learner's own weights, per cent; empty if it was not measured."""
        errors = (self.result.get("heldout_by_learner") or {}).get("error_percent") or []
        return np.array([_number(error) for error in errors])

    @property
    def step_seconds(self) -> float:
        """The median time of a step, without evaluation and instruments."""
        return self.number("step_seconds_median")

    def number(self, key: str) -> float:
        """A number of the result; NaN where it is null, or was not written by the code of that time."""
        return _number(self.result.get(key))

    @property
    def ended(self) -> str:
        """ "completed", or "diverged at step 120" """
        step = self.result.get("diverged_at_step")
        if not self.result["diverged"]:
            return "completed"
        return "diverged" if step is None else f"diverged at step {step}"

    @property
    def config(self) -> dict[str, Any]:
        """The recipe it was trained by; keys that the code of that time did not know have their defaults."""
        defaults = {key: field.default for key, field in Recipe.model_fields.items() if not field.is_required()}
        return defaults | self.result["config"]

    @property
    def settings(self) -> tuple[Any, ...]:
        """Equal for runs that differ in nothing but the seed."""
        config = shaping(self.config, INDIFFERENT)
        config["topology"] = self.result["topology"]  # a recipe names one even where the algorithm has none
        return (self.result["algo"], self.result["learners"], self.result["data"], json.dumps(config, sort_keys=True))

    @property
    def algorithm(self) -> str:
        """ "SSGD", "SSGD* (std 0.05)", "AD-PSGD" """
        name = str(self.result["algo"]).upper().replace("-STAR", "*").replace("ADPSGD", "AD-PSGD")
        noise = self.config["noise_std"]
        return f"{name} (std {noise:g})" if noise else name

    @property
    def label(self) -> str:
        """The algorithm as it stands in tables, with its topology: "DPSGD, complete"."""
        topology = self.result["topology"]
        return f"{self.algorithm}, {topology}" if topology else self.algorithm

    def curve(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Steps and values of a metric, where it was logged; what was not finite is NaN."""
        points = [(line["step"], _number(line[name])) for line in self.metrics if name in line]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return np.array(steps), np.array(values, dtype=float)


def load(folder: Path) -> Run:
    """Read a run folder. Raises UserError if it holds no run that ended."""
    try:
        texts = {name: (folder / name).read_text() for name in (RESULT, METRICS)}
    except OSError as error:
        raise UserError(f"{folder} holds no run that ended: {Path(error.filename).name} is missing") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{folder} holds a damaged file: {error}") from error
    (result,) = _parsed(folder / RESULT, [texts[RESULT]])
    if missing := [key for key in NEEDED if key not in result]:
        raise UserError(f"{folder / RESULT} is not of a training run: it lacks {', '.join(missing)}")
    return Run(folder, result, _parsed(folder / METRICS, texts[METRICS].splitlines()))


def _parsed(path: Path, texts: Iterable[str]) -> list[dict[str, Any]]:
    """The JSON object in each of `texts`, which are of the file `path`. Raises UserError where there is none."""
    try:
        objects = [json.loads(text) for text in texts]
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not all(isinstance(each, dict) for each in objects):
        raise UserError(f"{path} is damaged: a JSON object is expected")
    return objects


def by_settings(runs: Iterable[Run]) -> list[list[Run]]:
    """Runs that differ only in the seed together, in the order of their first."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.settings, []).append(run)
    return list(groups.values())


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
