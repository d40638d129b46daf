"""How the spread of the learners smooths the loss, checkpoint by checkpoint (Section 2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.instruments.picture import Options, Picture
from benchmarks.instruments.solutions import Landscape
from horovod_dpsgd.diagnostics import smoothing
from horovod_dpsgd.diagnostics.points import Point
from horovod_dpsgd.report.table import markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Smoothing(Picture):
    """Theorem 1 along the training path: at each checkpoint the spread of the learners, the smoothness of the loss and
    of the smoothed loss, and 2G/sigma."""

    matters = ("seed", "sigma", "pairs")
    RADIUS = 1e-3  # of the distances over which smoothness is measured, in lengths of w_a

    def __init__(self, landscape: Landscape, options: Options) -> None:
        super().__init__(landscape, options)
        self.checkpoints = {run.name: run.checkpoints() for run in landscape.runs}

    def points(self) -> list[Point]:
        return [self.place(run, each) for run in self.landscape.runs for each in self.checkpoints[run.name]]

    def measure(self, point: Point) -> Point:
        found = self.checkpoints[point["run"]]
        number = next(i for i, manifest in enumerate(found) if manifest.step == point["step"])
        manifest, seed, pairs = found[number], self.options.seed, self.options.pairs
        spread = self.landscape.spread(manifest)
        before = self.landscape.enter(found[number - 1]) if number else None
        w = self.landscape.enter(manifest)
        radius = self.RADIUS * float(w.norm())
        loss, gradient = self.objective.loss_and_gradient(w)
        measured: Point = {
            "lr": self.landscape.run(point["run"]).recipe.lr,
            "spread": spread,
            "loss": loss,
            "gradient_norm": float(gradient.norm()),
            "smoothness": smoothing.local_smoothness(self.objective, w, radius, seed=seed).value,
            "path_smoothness": None if before is None else smoothing.path_smoothness(self.objective, before, w),
        }
        sigma = spread if self.options.sigma is None else self.options.sigma
        if not sigma > 0:  # all learners are at w_a, and descend L itself
            return measured | {"sigma": sigma}
        smooth = smoothing.smoothed(self.objective, w, sigma, pairs, seed)
        lipschitz = max(smooth.steepest, measured["gradient_norm"])
        rough = smoothing.local_smoothness(self.objective, w, radius, sigma, pairs, seed=seed)
        return measured | {
            "sigma": sigma,
            "smoothed_loss": smooth.loss,
            "smoothed_loss_error": smooth.loss_error,
            "smoothed_gradient_norm": float(smooth.gradient.norm()),
            "smoothed_gradient_error": smooth.gradient_error,
            "smoothed_smoothness": rough.value,
            "smoothed_smoothness_error": rough.error,
            "lipschitz": lipschitz,
            "bound": smoothing.bound(lipschitz, sigma),
        }

    def draw(self, measured: Sequence[Point]) -> Figure:
        from horovod_dpsgd.report import landscapes

        return landscapes.smoothing({run.name: self.of(run, measured) for run in self.landscape.runs}, self.names)

    def table(self, measured: Sequence[Point]) -> str:
        header = ["run", "step", "sigma", "L", "L smoothed", "smoothness of L", "of L smoothed", "2G/sigma", "1/lr"]
        rows = []
        for run in self.landscape.runs:
            for p in self.of(run, measured):
                cells = [p["sigma"], p["loss"], p.get("smoothed_loss"), p["smoothness"], p.get("smoothed_smoothness")]
                cells += [p.get("bound"), 1 / p["lr"]]
                rows.append([run.label, str(p["step"]), *("-" if c is None else f"{c:.3g}" for c in cells)])
        return markdown(header, rows)
