"""Many points to measure, each on its own: divided among the learners, and kept, so that nothing is measured twice.

A finished point is a line of JSON. Every learner appends to a file of its own, and in the end all of them are one file;
an interrupted measurement goes on with what is there, with any number of learners.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from horovod_dpsgd.errors import UserError
from horovod_dpsgd.files import json_numbers, write_whole
from horovod_dpsgd.learners import Learners

Point = dict[str, Any]  # what names a point, and what was measured there: numbers, strings and lists of numbers


@dataclass(frozen=True)
class Points:
    """What `measure_all` has left in a file, by the name of the file without its ending: all else that values depend
    on, and the points with what was measured there."""

    name: str
    setup: Point
    points: list[Point]


def load(path: Path) -> Points:
    """Read such a file. Numbers that were not finite are NaN. Raises UserError if it is none, or damaged."""
    lines = list(_lines(path))
    if not lines or "setup" not in lines[0]:
        raise UserError(f"{path} holds no points")
    return Points(path.stem, lines[0]["setup"], [line["point"] | _numbers(line["measured"]) for line in lines[1:]])


def measure_all(
    points: Sequence[Point],
    measure: Callable[[Point], Point],
    path: Path,
    setup: Point,
    learners: Learners,
    say: Callable[[str], None] = lambda line: None,
) -> list[Point]:
    """`measure(point)` for every point, added to it, in their order; the file `path` holds the same. Collective.

    setup: all else that a value depends on; it is the file's first line. Raises UserError, on all learners, if what is
    there was measured with another. Numbers that are not finite are null in the file, and NaN in what is returned.
    """
    done = learners.by_first(lambda: _what_is_there(path, setup))
    missing = [point for point in points if _key(point) not in done]
    if learners.rank == 0 and done:
        say(f"{len(points) - len(missing)} of {len(points)} points are there already")
    own = missing[learners.rank :: learners.size]
    if own:
        with _part(path, learners.rank).open("a") as file:
            for number, point in enumerate(own, 1):
                line = {"point": point, "measured": json_numbers(measure(point))}
                file.write(json.dumps(line) + "\n")
                file.flush()
                if learners.rank == 0:
                    say(f"{number} of {len(own)} points of learner 0's share")
    patient = replace(learners, stall_timeout=0.0)  # shares may differ by more than a stall would take
    patient.barrier("the last of the points")
    done = learners.by_first(lambda: _put_together(path, setup, points))
    return [point | _numbers(done[_key(point)]) for point in points]


def _what_is_there(path: Path, setup: Point) -> dict[str, Point]:
    """What was measured before, put into one file: from here on, what learners append to is new."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {path.parent}: {error.strerror}") from error
    return _put_together(path, setup, [])


def _put_together(path: Path, setup: Point, points: Sequence[Point]) -> dict[str, Point]:
    """All that has been measured, in one file, `points` in front."""
    try:
        done = _read(path, setup)
        _write(path, setup, points, done)
    except OSError as error:
        raise UserError(f"cannot read and write {path}: {error.strerror}") from error
    return done


def _read(path: Path, setup: Point) -> dict[str, Point]:
    """What was measured, by point. Raises UserError if it was with another set-up."""
    lines = list(_lines(path))
    if lines and "setup" in lines[0] and lines[0]["setup"] != json.loads(json.dumps(setup)):
        before = lines[0]["setup"]
        changed = ", ".join(f"{key} {before.get(key)!r}" for key in setup if before.get(key) != setup[key])
        raise UserError(f"{path} was measured with {changed or 'other settings'}: give another --output, or remove it")
    for part in sorted(path.parent.glob(f"{path.name}.part-*")) if path.exists() else []:
        lines += _lines(part)
    return {_key(line["point"]): line["measured"] for line in lines if "point" in line}


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a file, if there is one; not one that was cut short."""
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                try:
                    found = json.loads(line)
                except ValueError as error:
                    raise UserError(f"{path} is damaged ({error}): give another --output, or remove it") from error
                if not isinstance(found, dict):
                    raise UserError(f"{path} holds no points: give another --output, or remove it")
                yield found


def _write(path: Path, setup: Point, points: Sequence[Point], done: dict[str, Point]) -> None:
    """All in one file, in the order of the points; what was measured at others stays at the end."""
    asked = {_key(point): point for point in points}
    keys = [*asked, *(key for key in done if key not in asked)]
    lines = [{"setup": setup}, *({"point": json.loads(key), "measured": done[key]} for key in keys)]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines))
    for part in path.parent.glob(f"{path.name}.part-*"):
        part.unlink()


def _part(path: Path, rank: int) -> Path:
    return path.with_name(f"{path.name}.part-{rank:03d}")


def _key(point: Point) -> str:
    return json.dumps(point, sort_keys=True)


def _numbers(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _numbers(value) for name, value in values.items()}
    if isinstance(values, list):
        return [_numbers(value) for value in values]
    return math.nan if values is None else values
