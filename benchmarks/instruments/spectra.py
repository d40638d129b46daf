"""The Hessian at solutions: the ends of its spectrum, its trace, and the distribution of its eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from benchmarks.instruments.picture import OfEachRun, Picture, number
from horovod_dpsgd.diagnostics import hessian
from horovod_dpsgd.diagnostics.intervals import mean_and_error
from horovod_dpsgd.diagnostics.points import Point
from horovod_dpsgd.learners import generator
from horovod_dpsgd.report.table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR_0 = 0.01  # of the largest eigenvalue


class Eigenvalues(OfEachRun):
    """The ends of the Hessian's spectrum at each solution, and its trace."""

    matters = ("seed", "lanczos_steps", "top")

    def points(self) -> list[Point]:
        numbers = range(self.options.probes)
        ends = [self.place(run) | {"of": "ends"} for run in self.landscape.runs]
        return ends + [self.place(run) | {"of": "trace", "probe": i} for run in self.landscape.runs for i in numbers]

    def measure(self, point: Point) -> Point:
        w = self.at(point)
        if point["of"] == "ends":
            return {"loss": self.objective.loss(w)} | extremes(self, w, self.options.top)
        signs = self.objective.signs(generator("trace probe", self.options.seed, point["probe"]))
        return {"trace": hessian.trace_probe(partial(self.objective.hessian_vector, w), signs)}

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        ends = {point["run"]: point for point in measured if point["of"] == "ends"}
        return landscapes.eigenvalues({name: ends[name]["top"] for name in self.names}, self.names)

    @staticmethod
    def numbers(points: Sequence[Point]) -> dict[str, float]:
        end, *probes = points
        trace, error = mean_and_error([point["trace"] for point in probes])
        return {
            "loss": end["loss"],
            "largest eigenvalue": end["top"][0],
            "smallest": end["smallest"],
            "abs(min/max)": end["negative_share"],
            "trace": trace,
            "its standard error": error,
        }

    def table(self, measured: Sequence[Point]) -> str:
        """And all of the largest."""
        top = {run.label: self.of(run, measured)[0]["top"] for run in self.landscape.runs}
        rows = [[label, ", ".join(map(number, values))] for label, values in top.items()]
        return super().table(measured) + "\n\n" + markdown(["run", "largest eigenvalues"], rows)


class Density(OfEachRun):
    """The distribution of the Hessian's eigenvalues at each solution."""

    matters = ("seed", "lanczos_steps")

    def points(self) -> list[Point]:
        return [self.place(run) | {"probe": i} for run in self.landscape.runs for i in range(self.options.probes)]

    def measure(self, point: Point) -> Point:
        w = self.at(point)
        start = self.objective.gaussian(generator("density probe", self.options.seed, point["probe"]))
        try:
            apply = partial(self.objective.hessian_vector, w)
            ritz = hessian.density_probe(apply, start.to(self.objective.parameters.dtype), self.options.lanczos_steps)
        except FloatingPointError:
            return {"values": [], "weights": []}
        return {"values": ritz.values.tolist(), "weights": ritz.weights.tolist()}

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        of_runs = {run.name: probes(self.of(run, measured)) for run in self.landscape.runs}
        return landscapes.densities(of_runs, self.names)

    @staticmethod
    def numbers(points: Sequence[Point]) -> dict[str, float]:
        """Shares of the eigenvalues, in per cent."""
        found = probes(points)
        largest = max((float(values.max()) for values, _ in found), default=float("nan"))
        near = NEAR_0 * largest
        borders = (-np.inf, -near), (-near, near), (near, np.inf)
        below, within, above = (100 * _mass(found, *each) if found else float("nan") for each in borders)
        return {
            "largest": largest,
            "% below -0.01 of largest": below,
            "% between": within,
            "% above 0.01 of largest": above,
        }


def probes(points: Sequence[Point]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nodes and weights of each quadrature, of those points where the loss is finite."""
    return [(np.array(p["values"]), np.array(p["weights"])) for p in points if p["values"]]


def _mass(probes: Sequence[tuple[np.ndarray, np.ndarray]], low: float, high: float) -> float:
    """The share of the eigenvalues between two numbers."""
    return float(np.mean([weights[(values > low) & (values <= high)].sum() for values, weights in probes]))


def extremes(picture: Picture, w: Tensor, top: int) -> dict[str, Any]:
    """The ends of the spectrum at w; NaN where the loss is not finite."""
    objective, options = picture.objective, picture.options
    start = objective.gaussian(generator("eigenvalues", options.seed)).to(objective.parameters.dtype)
    try:
        apply = partial(objective.hessian_vector, w)
        found = hessian.extreme_eigenvalues(apply, start, top, steps=options.lanczos_steps)
    except FloatingPointError:
        nan = float("nan")
        return {"top": [nan] * top, "smallest": nan, "negative_share": nan, "error": nan, "products": 0}
    return {
        "top": found.top,
        "smallest": found.smallest,
        "negative_share": found.negative_share,
        "error": found.error,
        "products": found.products,
    }
