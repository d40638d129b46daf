"""What is measured where training runs have ended, and kept as the points it consists of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiments.launch import Job, Place
from horovod_dpsgd.diagnostics import points
from horovod_dpsgd.diagnostics.points import Points


@dataclass(frozen=True)
class Measurement(Job):
    """`learners` x `python script FOLDER_OF_RUN... arguments --output folder`, which leaves points there.

    points: the file of points, of which alone reports are made. ended: the file that is there once all of them are. of:
    the runs, with their checkpoints.
    """

    points: str = ""
    ended: str = ""
    of: tuple[Job, ...] = ()

    @property
    def files(self) -> tuple[str, ...]:
        return (self.points,)

    @property
    def inputs(self) -> tuple[Job, ...]:
        return self.of

    def words(self, place: Place) -> list[str]:
        """Without what is meant for training runs; where data are, and on what device, is in their configuration."""
        folders = [str(place.folder / run.name) for run in self.of]
        return [*folders, *self.arguments, "--output", str(place.folder / self.name)]

    def going_on(self, place: Place) -> list[str]:
        return self.words(place)

    def found(self, place: Place) -> Path | None:
        """Points that are kept are whole, others once all are there; those older than a run are of one before it."""
        trained = max((_time(place.folder / run.name / run.files[-1]) for run in self.of), default=0)
        whole = [place.keep / self.name / self.points] if place.keep else []
        whole.append(place.folder / self.name / self.ended)
        return next((file.parent for file in whole if file.exists() and _time(file) >= trained), None)

    def load(self, folder: Path, place: Place) -> Points:
        return points.load(folder / self.files[-1])


def _time(file: Path) -> int:
    """When it was written, in nanoseconds; 0 if it is not there."""
    return file.stat().st_mtime_ns if file.exists() else 0


def of_landscape(scene: str, what: str, seed: int, runs: tuple[Job, ...], learners: int, *options: str) -> Measurement:
    """A kind of picture of `benchmarks/landscape.py`; scene: what it is of, in its name."""
    name = f"{scene}-{what}-seed{seed}"
    arguments = ("--what", what, *options)
    return Measurement(name, "benchmarks/landscape.py", learners, arguments, f"{what}.jsonl", f"{what}.svg", runs)
