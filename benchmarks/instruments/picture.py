"""What every kind of picture of a landscape has: points to measure, how, and the figure and table of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from benchmarks.instruments.solutions import Landscape, Run, identity
from horovod_dpsgd.diagnostics import landscape
from horovod_dpsgd.diagnostics.points import Point
from horovod_dpsgd.report.table import markdown
from horovod_dpsgd.training.checkpoint import Manifest

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Options:
    """points: along an axis; extent: of an axis, in lengths of the direction; seed: of directions and probes;
    top: eigenvalues; probes: random vectors; lanczos_steps: Hessian-vector products for each of them; sigma: of the
    smoothing, None: the learners' own; pairs: draws of it."""

    points: int = 21
    extent: float = 1.0
    seed: int = 0
    top: int = 5
    probes: int = 8
    lanczos_steps: int = 80
    sigma: float | None = None
    pairs: int = 8


class Picture(ABC):
    """One kind of picture of some runs. Raises UserError for runs it cannot be made of."""

    matters: tuple[str, ...] = ("seed",)  # the options that a value depends on, beside its point

    def __init__(self, landscape: Landscape, options: Options) -> None:
        self.landscape, self.options = landscape, options
        self.objective = landscape.objective

    @property
    def setup(self) -> Point:
        recipe = self.landscape.runs[0].recipe
        about = {"task": recipe.task, "data": self.landscape.task.data, "model": recipe.model}
        options = {name: getattr(self.options, name) for name in self.matters}
        return about | {"samples": self.objective.samples} | options

    @abstractmethod
    def points(self) -> list[Point]:
        """What is to be measured."""

    @abstractmethod
    def measure(self, point: Point) -> Point:
        """By one learner alone."""

    @abstractmethod
    def draw(self, measured: Sequence[Point]) -> Figure:
        """The figure."""

    @abstractmethod
    def table(self, measured: Sequence[Point]) -> str:
        """The numbers, as Markdown."""

    def of(self, run: Run, measured: Sequence[Point]) -> list[Point]:
        return [point for point in measured if point["run"] == run.name]

    def place(self, run: Run, manifest: Manifest | None = None) -> Point:
        """What names a checkpoint of a run, its newest one if none is given."""
        manifest = manifest or run.newest
        return {"run": run.name, "step": manifest.step, "checkpoint": identity(manifest)}

    def at(self, point: Point) -> Tensor:
        """The newest solution of the point's run, with its BatchNorm statistics in the model."""
        return self.landscape.enter(self.landscape.run(point["run"]).newest)

    @property
    def names(self) -> dict[str, tuple[str, str]]:
        """The label and the algorithm of each run, by name."""
        return {run.name: (run.label, run.recipe.algo) for run in self.landscape.runs}

    def axis(self) -> list[float]:
        return landscape.steps(-self.options.extent, self.options.extent, self.options.points)


class OfEachRun(Picture):
    """A picture in which every run's points come to a few numbers: a line of the table."""

    @staticmethod
    @abstractmethod
    def numbers(points: Sequence[Point]) -> dict[str, float]:
        """Those of one run, by their headings; NaN where there is none."""

    def table(self, measured: Sequence[Point]) -> str:
        found = {run.label: self.numbers(self.of(run, measured)) for run in self.landscape.runs}
        headings = list(next(iter(found.values())))
        return markdown(["run", *headings], [[label, *map(number, values.values())] for label, values in found.items()])


def number(value: float) -> str:
    """As tables have it."""
    return f"{value:.4g}" if np.isfinite(value) else "-"
