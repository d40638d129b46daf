"""The loss around solutions and between them, and the curvature around them (Appendix C, E.4, E.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from benchmarks.instruments.picture import OfEachRun, Options, Picture
from benchmarks.instruments.solutions import Landscape, Run
from benchmarks.instruments.spectra import extremes
from horovod_dpsgd.diagnostics import landscape
from horovod_dpsgd.diagnostics.points import Point
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.learners import generator
from horovod_dpsgd.report.table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Contour(OfEachRun):
    """The loss around each solution, on two random filter-normalised directions: the same random numbers for all."""

    def points(self) -> list[Point]:
        axis = self.axis()
        return [self.place(run) | {"x": x, "y": y} for run in self.landscape.runs for y in axis for x in axis]

    def measure(self, point: Point) -> Point:
        return {"loss": self.objective.loss(self.weights(point))}

    def weights(self, point: Point) -> Tensor:
        w = self.at(point)
        x, y = (self.direction(w, number) for number in range(2))
        return w + point["x"] * x + point["y"] * y

    def direction(self, w: Tensor, number: int) -> Tensor:
        return landscape.filter_normalized(self.objective, w, generator("direction", self.options.seed, number))

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        return landscapes.contours({label: self.of(run, measured) for run, label in self._labels()})

    def _labels(self) -> list[tuple[Run, str]]:
        return [(run, run.label) for run in self.landscape.runs]

    @staticmethod
    def numbers(points: Sequence[Point]) -> dict[str, float]:
        losses = np.array([point["loss"] for point in points])
        far = np.array([max(abs(point["x"]), abs(point["y"])) for point in points])
        return {
            "loss at the solution": losses[far.argmin()],
            "least loss": _of_finite(np.min, losses),
            "median loss at the rim": _of_finite(np.median, losses[far >= far.max() - 1e-9]),
        }


class Curvature(Contour):
    """|lambda_min / lambda_max| of the Hessian on the same plane (Li et al. 2018, Section 6; "Hessian 2D projection").

    Of all weights; Li et al. leave out biases and normalisation layers.
    """

    matters = ("seed", "lanczos_steps")

    def measure(self, point: Point) -> Point:
        w = self.weights(point)
        return {"loss": self.objective.loss(w)} | extremes(self, w, 1)

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        return landscapes.curvature({label: self.of(run, measured) for run, label in self._labels()})

    @staticmethod
    def numbers(points: Sequence[Point]) -> dict[str, float]:
        shares = np.array([point["negative_share"] for point in points])
        kinds: dict[str, Callable[[np.ndarray], float]] = {"least": np.min, "median": np.median, "largest": np.max}
        return {f"{name} abs(min/max)": _of_finite(kind, shares) for name, kind in kinds.items()}


class Plane(Picture):
    """The loss on the plane through three solutions, or through two and along a random direction."""

    def __init__(self, landscape: Landscape, options: Options) -> None:
        super().__init__(landscape, options)
        if len(landscape.runs) not in (2, 3):
            raise UserError(f"a plane goes through two or three runs, not {len(landscape.runs)}")
        self._plane = self._through_solutions()  # now, as all learners must find that there is none

    def points(self) -> list[Point]:
        name = [self.place(run) for run in self.landscape.runs]
        return [{"through": name, "x": x, "y": y} for y in self.axis() for x in self.axis()]

    def axis(self) -> list[float]:
        return landscape.steps(-self.options.extent, 1 + self.options.extent, self.options.points)

    def _through_solutions(self) -> tuple[Tensor, Tensor, Tensor, list[tuple[float, float]], list[Tensor]]:
        """Origin, both directions, where the solutions are, and the buffers' means."""
        states = [self.landscape.state(run.newest) for run in self.landscape.runs]
        solutions = [state[0] for state in states]
        numbers = generator("direction", self.options.seed, 0)
        spare = landscape.filter_normalized(self.objective, solutions[0], numbers)
        try:
            x, y, places = landscape.plane(solutions, spare)
        except ValueError as error:
            raise UserError(f"{error}: is a run among these twice, or one that has blown up?") from error
        buffers = [sum(of_all) / len(states) for of_all in zip(*(state[1:] for state in states), strict=True)]
        return solutions[0], x, y, places, buffers

    def measure(self, point: Point) -> Point:
        """BatchNorm's statistics are the solutions' mean."""
        origin, x, y, _, buffers = self._plane
        for b, value in zip(self.objective.buffers, buffers, strict=True):
            b.copy_(value)
        return {"loss": self.objective.loss(origin + point["x"] * x + point["y"] * y)}

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        labels = [run.label for run in self.landscape.runs]
        return landscapes.contours(
            {"plane through the solutions": list(measured)}, dict(zip(labels, self._plane[3], strict=True))
        )

    def table(self, measured: Sequence[Point]) -> str:
        rows = []
        for run, (x, y) in zip(self.landscape.runs, self._plane[3], strict=True):
            rows.append([run.label, f"({x:.3f}, {y:.3f})", f"{self.objective.loss(self._weights_of(run)):.4g}"])
        return markdown(["run", "place", "loss"], rows)

    def _weights_of(self, run: Run) -> Tensor:
        return self.landscape.enter(run.newest)


class Line(Picture):
    """The loss along the line through two solutions (BatchNorm's statistics between them as well), or, of a single run,
    along one random filter-normalised direction."""

    def __init__(self, landscape: Landscape, options: Options) -> None:
        super().__init__(landscape, options)
        if len(landscape.runs) > 2:
            raise UserError(f"a line goes through one run or two, not {len(landscape.runs)}")

    def points(self) -> list[Point]:
        name = [self.place(run) for run in self.landscape.runs]
        return [{"through": name, "x": x} for x in self.axis()]

    def axis(self) -> list[float]:
        if len(self.landscape.runs) == 1:
            return super().axis()
        beyond = self.options.extent / 2  # -0.5 to 1.5, as Li et al.
        return landscape.steps(-beyond, 1 + beyond, self.options.points)

    @cached_property
    def _ends(self) -> tuple[list[Tensor], list[Tensor]]:
        states = [self.landscape.state(run.newest) for run in self.landscape.runs]
        if len(states) == 1:
            numbers = generator("direction", self.options.seed, 0)
            w = states[0][0]
            states.append([w + landscape.filter_normalized(self.objective, w, numbers), *states[0][1:]])
        return states[0], states[1]

    def measure(self, point: Point) -> Point:
        w, *buffers = landscape.between(*self._ends, point["x"])
        for b, value in zip(self.objective.buffers, buffers, strict=True):
            b.copy_(value)
        return {"loss": self.objective.loss(w)}

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        return landscapes.line(list(measured), [run.label for run in self.landscape.runs])

    def table(self, measured: Sequence[Point]) -> str:
        return markdown(["x", "loss"], [[f"{p['x']:g}", f"{p['loss']:.4g}"] for p in measured])


def _of_finite(kind: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(kind(finite)) if len(finite) else float("nan")
