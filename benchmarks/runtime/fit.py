"""The numbers of a cluster from the JSON lines of `benchmarks/comm`: least squares of the logarithms of ratios.

A time is a start-up cost and a cost per byte, neither below 0; ratios, because a microsecond matters for 1 KB and not
for 44 MB. What is not measured there is named, and where something can be assumed for it, that is said too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runtime.costs import ALL_REDUCES, Cost
from benchmarks.runtime.steps import Cluster, Shared
from horovod_dpsgd.errors import UserError

Row = dict[str, Any]
FLOOR, GOSSIP, HOROVOD = "floor: torch.lerp in private memory", "gossip exchange", "Horovod all-reduce"
MPI_ALL_REDUCE = "MPI Iallreduce, then divide"
ROUNDS = 12  # of fitting, each a step towards the best
EXPONENTS = np.arange(0.5, 3.01, 0.125)  # of crowding, to choose from
BETWEEN = "exchange-two-hosts"  # what the names of measurements between nodes begin with
IN_ALL_REDUCE = 2.0  # messages, of two learners
NO_LINK = Cost(0.0, 0.0)
ENGINE, NOTHING = "progress engine", "nothing"  # what drives messages, in the rows of progress.py


@dataclass(frozen=True)
class Lines:
    """The lines of one file: its name without .jsonl, what it says of the run, and its rows."""

    name: str
    about: dict[str, Any]
    rows: list[Row]

    @property
    def cores(self) -> int:
        """Of the machine, as the lines describe it in words."""
        found = re.search(r"(\d+) cores", self.about.get("machine", ""))
        return int(found[1]) if found else 1

    @property
    def between_nodes(self) -> bool:
        return bool(self.about.get("nodes", 1) > 1)


@dataclass(frozen=True)
class Fitted:
    """A cluster, which lines its numbers come from, and what had to be assumed."""

    cluster: Cluster
    sources: dict[str, str] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)


def read(folder: Path) -> list[Lines]:
    """All measurements in `folder`, by name. Raises UserError if there is none, or if a line is no JSON."""
    measured = []
    for file in sorted(folder.glob("*.jsonl")):
        try:
            lines = [json.loads(line) for line in file.read_text().splitlines()]
        except ValueError as error:
            raise UserError(f"{file} is damaged: {error}") from error
        if not all(isinstance(line, dict) for line in lines):
            raise UserError(f"{file} holds no measurements")
        about = {key: value for line in lines if line.get("kind") in ("job", "run") for key, value in line.items()}
        rows = [line for line in lines if line.get("kind") == "row"]
        if rows:
            measured.append(Lines(file.stem, about, rows))
    if not measured:
        raise UserError(f"{folder} holds no measurements: python benchmarks/comm/run.py makes them in runs/comm")
    return measured


def least_squares(first: np.ndarray, second: np.ndarray, times: np.ndarray) -> tuple[float, float]:
    """a, b >= 0 for which a x first + b x second deviate least from `times`, by squares of their ratios' logarithms.

    Half as much is then as wrong as twice as much. By ordinary least squares, again and again: a deviation divided by
    the geometric mean of prediction and measurement is the logarithm of their ratio, as long as that is small.
    """
    columns = np.stack([first, second], axis=1)
    predicted, found = times, np.zeros(2)
    for _ in range(ROUNDS):
        found = _not_negative(columns / np.sqrt(predicted * times)[:, None], np.sqrt(times / predicted))
        predicted = np.sqrt(predicted * np.maximum(columns @ found, times * 1e-6))  # half of the way
    return float(found[0]), float(found[1])


def _not_negative(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The least squares of x a = y with both numbers of `a` 0 or more."""
    both = np.linalg.lstsq(x, y, rcond=None)[0]
    if (both >= 0).all():
        return np.asarray(both)
    alone = np.diag([max(0.0, float(each @ y / (each @ each))) if each.any() else 0.0 for each in x.T])
    return np.asarray(min(alone, key=lambda a: float(np.sum((x @ a - y) ** 2))))


def deviation(predicted: np.ndarray, times: np.ndarray) -> float:
    """The sum of the squares of the logarithms of their ratios."""
    return float(np.sum(np.log(np.maximum(predicted, 1e-12) / times) ** 2))


def on_one_node(rows: Sequence[Row], cores: int, shape: str | None = None) -> Shared:
    """The cost of what all learners of a node do at once, from rows with `learners`, `bytes` and `seconds`.

    shape: of an all-reduce, whose messages and bytes grow with n as it says; None: an exchange of two.
    """
    n = np.array([row["learners"] for row in rows], dtype=float)
    counts = np.array([ALL_REDUCES[shape](row["learners"]) if shape else (1.0, 1.0) for row in rows])
    nbytes, times = (np.array([row[key] for row in rows], dtype=float) for key in ("bytes", "seconds"))
    each = np.maximum(1.0, n / cores)
    found = []
    for exponent in EXPONENTS if len(set(each)) > 1 else [1.0]:
        first, second = each**exponent * counts[:, 0], each * counts[:, 1] * nbytes
        start, per_byte = least_squares(first, second, times)
        shared = Shared(Cost(start, per_byte), float(exponent))
        found.append((deviation(start * first + per_byte * second, times), shared))
    return min(found, key=lambda each: each[0])[1]


def all_reduce_on_one_node(rows: Sequence[Row], cores: int) -> tuple[Shared, str]:
    """The cost and the shape, of those known, that describe an all-reduce inside a node best."""
    found = []
    for shape in ALL_REDUCES:
        shared = on_one_node(rows, cores, shape)
        predicted = np.array([predict_on_one_node(shared, row, cores, shape) for row in rows])
        found.append((deviation(predicted, np.array([row["seconds"] for row in rows])), shape, shared))
    _, shape, shared = min(found, key=lambda each: each[0])
    return shared, shape


def predict_on_one_node(shared: Shared, row: Row, cores: int, shape: str | None = None) -> float:
    messages, times = ALL_REDUCES[shape](row["learners"]) if shape else (1.0, 1.0)
    return shared.crowded(row["learners"], cores).seconds(row["bytes"], messages, times)


def between_two(rows: Sequence[Row], messages: float = 1.0) -> Cost:
    """The link of two learners on two nodes; messages: so many one after the other (2 in an all-reduce of two)."""
    nbytes, times = (np.array([row[key] for row in rows], dtype=float) for key in ("bytes", "seconds"))
    start, per_byte = least_squares(np.full(len(rows), messages), nbytes, times)
    return Cost(start, per_byte)


def rows_of(measured: Sequence[Lines], method: str) -> list[Row]:
    """Rows of exchange.py by one method; of two floors in a file, which Horovod's run adds, both."""
    return [row for each in measured for row in each.rows if row.get("method") == method]


def cluster(measured: Sequence[Lines], per_node: int, link: str | None = None, need_link: bool = True) -> Fitted:
    """Fit a cluster with `per_node` learners a node.

    link: the name of the measurement between two nodes (exchange-two-hosts-LINK); None: one of them, on real hosts if
    there is one. need_link: False takes `NO_LINK` where none was measured. Raises UserError if no exchange was
    measured, or not the one that is asked for.
    """
    exchanges = [each for each in measured if each.about.get("bench") == "exchange"]
    inside = [each for each in exchanges if not each.between_nodes]
    if not rows_of(inside, GOSSIP):
        raise UserError("no exchange on one node was measured: run.py --only 'exchange-n*' does")
    cores = inside[0].cores
    sources, assumed = {"an exchange on a node": _names(inside)}, []
    if not rows_of(exchanges, HOROVOD):
        assumed.append("Horovod was not measured: its all-reduce is taken to be MPI's")
    shared, shape = all_reduce_on_one_node(rows_of(inside, HOROVOD) or rows_of(inside, MPI_ALL_REDUCE), cores)
    found = Cluster(per_node, cores, on_one_node(rows_of(inside, GOSSIP), cores), shared, shape, NO_LINK, NO_LINK)
    away = _between(exchanges, link)
    if away is not None:
        found = with_measured_link(found, away)
        sources["a link"] = away.name
    elif need_link:
        raise UserError("no exchange between nodes was measured: give --link RATE, such as 10gbit, or measure it")
    name = away.name.removeprefix(BETWEEN) if away else ""
    return _with_driving(_with_background(Fitted(found, sources, assumed), measured), measured, name)


def with_measured_link(found: Cluster, away: Lines) -> Cluster:
    """With the costs of a link. What of Horovod's start-up is no message's is its threads' agreement to reduce."""
    horovod, mpi = (rows_of([away], method) for method in (HOROVOD, MPI_ALL_REDUCE))
    reducing = between_two(horovod or mpi, IN_ALL_REDUCE)
    message = min(reducing.start, between_two(mpi, IN_ALL_REDUCE).start) if mpi else reducing.start
    return replace(
        found,
        link=between_two(rows_of([away], GOSSIP)),
        link_all_reduce=Cost(message, reducing.per_byte),
        agreement=IN_ALL_REDUCE * (reducing.start - message),
    )


def _between(exchanges: Sequence[Lines], link: str | None) -> Lines | None:
    away = {each.name.removeprefix(BETWEEN).strip("-"): each for each in exchanges if each.between_nodes}
    if link is None:
        return next((away[name] for name in ("", "1gbit", *away) if name in away), None)
    if link not in away:
        known = ", ".join(map(repr, away)) or "none"
        raise UserError(f"no exchange over a link {link!r} was measured; there is {known}")
    return away[link]


def _with_background(fitted: Fitted, measured: Sequence[Lines]) -> Fitted:
    """With what Horovod's thread costs computation, and how far its all-reduce hides behind it."""
    steps = [row for each in measured if each.about.get("bench") == "step_overhead" for row in each.rows]
    ours = [row for row in steps if row["algo"] == "ssgd" and row["learners"] > 1 and "background_cost" in row]
    inside = [row for row in ours if row["nodes"] == 1]
    if not inside:
        assumed = "no SSGD steps were measured: Horovod's thread costs nothing, and all-reduces hide as far as they can"
        return replace(fitted, assumed=[*fitted.assumed, assumed])
    shares = [1 - row["exposed"] / inside_node(fitted.cluster, row) for row in inside]
    found = replace(
        fitted.cluster,
        background=max(1.0, float(np.median([row["background_cost"] for row in ours]))),
        overlap=float(np.clip(np.median(shares), 0, 1)),
    )
    return Fitted(found, fitted.sources | {"Horovod's thread": f"{len(ours)} rows of step-*"}, fitted.assumed)


def inside_node(found: Cluster, row: Row) -> float:
    """Seconds of the all-reduce in a step that was measured on one node."""
    whole = replace(found, per_node=row["learners"])
    return whole.all_reduce_seconds(model_bytes(row["model"]), row["learners"], "ring")


def _with_driving(fitted: Fitted, measured: Sequence[Lines], link: str) -> Fitted:
    """With what messages between nodes take from the core that computes."""
    driven = [each for each in measured if each.about.get("bench") == "progress" and each.name.endswith(link)]
    driving = [seconds for each in driven if (seconds := driving_of(each.rows)) is not None]
    if not driving:
        assumed = "what driving messages costs was not measured over this link: nothing"
        return replace(fitted, assumed=[*fitted.assumed, assumed])
    found = replace(fitted.cluster, driving=driving[0])
    return Fitted(found, fitted.sources | {"driving messages": _names(driven)}, fitted.assumed)


def driving_of(rows: Sequence[Row]) -> float | None:
    """Seconds of computation lost for a byte, where the learner's only core also drives its messages."""
    by = {row["progress"]: row for row in rows}
    if ENGINE not in by or NOTHING not in by:
        return None
    speed = by[ENGINE]["speed_serving"] / by[NOTHING]["speed"]
    return float(max(0.0, 1 - speed) * by[ENGINE]["read_seconds"] / by[ENGINE]["bytes"])


def _names(lines: Sequence[Lines]) -> str:
    return ", ".join(each.name for each in lines)


def model_bytes(name: str) -> int:
    """Of the weights of a model that benchmarks/comm knows."""
    from benchmarks.comm.models import parameter_bytes  # needs torchvision

    return parameter_bytes(name)
