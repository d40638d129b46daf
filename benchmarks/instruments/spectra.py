"""The Hessian at solutions: the ends of its spectrum, its trace, and the distribution of its eigenvalues."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from benchmarks.instruments.picture import Picture
from benchmarks.instruments.solutions import Run
from horovod_dpsgd.diagnostics import hessian
from horovod_dpsgd.diagnostics.intervals import mean_and_error
from horovod_dpsgd.diagnostics.points import Point
from horovod_dpsgd.learners import generator
from horovod_dpsgd.report.table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NEAR_0 = 0.01  # of the largest eigenvalue


class Eigenvalues(Picture):
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

    def table(self, measured: Sequence[Point]) -> str:
        rows = []
        for run in self.landscape.runs:
            end, *probes = self.of(run, measured)
            trace, error = mean_and_error([point["trace"] for point in probes])
            top = ", ".join(f"{value:.4g}" for value in end["top"])
            ends = f"{end['smallest']:.3g}", f"{end['negative_share']:.2g}"
            rows.append([run.label, f"{end['loss']:.4g}", top, *ends, f"{trace:.4g} ± {error:.2g}"])
        return markdown(["run", "loss", "largest eigenvalues", "smallest", "|min/max|", "trace ± s.e."], rows)


class Density(Picture):
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

        return landscapes.densities({run.name: self._probes(run, measured) for run in self.landscape.runs}, self.names)

    def _probes(self, run: Run, measured: Sequence[Point]) -> list[tuple[np.ndarray, np.ndarray]]:
        return [(np.array(p["values"]), np.array(p["weights"])) for p in self.of(run, measured) if p["values"]]

    def table(self, measured: Sequence[Point]) -> str:
        rows = []
        for run in self.landscape.runs:
            probes = self._probes(run, measured)
            if not probes:
                rows.append([run.label, *"----"])
                continue
            largest = max(values.max() for values, _ in probes)
            near = NEAR_0 * largest
            borders = (-np.inf, -near), (-near, near), (near, np.inf)
            rows.append([run.label, f"{largest:.4g}", *(f"{100 * _mass(probes, *each):.3g} %" for each in borders)])
        return markdown(["run", "largest", "below -1 % of it", "within 1 %", "above"], rows)


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
