"""The model beside every measurement there is: what was fitted on what, and how far off it is.

Two predictions stand beside a measurement. `fitted`: by numbers fitted on this very file, among others, so that what
is left is the model's form. `held out`: by numbers fitted on other files alone, as a user has them before measuring:
an exchange of n learners from those of other numbers; an exchange over a limited link from the unlimited one, plus the
time its bytes need at the link's rate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.comm.jobs import BITS_PER_SECOND
from benchmarks.runtime import fit, waiting
from benchmarks.runtime.fit import Lines, Row
from benchmarks.runtime.steps import Cluster, Way, step_seconds
from benchmarks.runtime.waiting import Times

ALL_REDUCE_METHODS = (fit.HOROVOD, fit.MPI_ALL_REDUCE)
WIRE = {"MPI Get, then average, then publish": 3.0}  # times the bytes in each direction, by wire_bytes.py; else 1
WAY_OF = {"dpsgd": Way("dpsgd", "matching"), "adpsgd": Way("adpsgd", "matching"), "ssgd": Way("ssgd", "ring")}
NOT_PREDICTED = {
    "fused": "updates in memory, without communication",
    "loop_overhead": "one learner, without communication",
    "osu_latency": "single MPI calls, which no algorithm waits for one by one",
    "osu_bandwidth": "single MPI calls, which no algorithm waits for one by one",
    "wire_bytes": "bytes, not seconds",
}
TURNS = 200  # simulated, of a slow learner among others
SLOW_STEPS, SLOW_SECONDS = 8, 0.2  # slow_learner.py's defaults


@dataclass(frozen=True)
class Compared:
    """A measurement in seconds (or, if `is_rate`, a rate), beside its predictions.

    group: rows of which errors are summed up together; basis: what the fitted prediction comes from.
    """

    file: str
    group: str
    what: str
    learners: int
    nbytes: int
    measured: float
    fitted: float
    held_out: float | None
    basis: str

    @property
    def is_rate(self) -> bool:
        return "steps/s" in self.what

    @property
    def errors(self) -> tuple[float, float | None]:
        """Relative: 0.1 where 10 % too much is predicted."""
        return self.fitted / self.measured - 1, None if self.held_out is None else self.held_out / self.measured - 1


def compare(measured: Sequence[Lines]) -> list[Compared]:
    """All that can be compared. Raises UserError, as `fit.cluster`, where there is too little to fit."""
    exchanges = [each for each in measured if each.about.get("bench") == "exchange"]
    inside = [each for each in exchanges if not each.between_nodes]
    found = [*_on_one_node(inside), *_between_two([each for each in exchanges if each.between_nodes])]
    clusters = Clusters(measured)
    for each in measured:
        bench = each.about.get("bench")
        if bench == "step_overhead":
            found += _steps(each, clusters.of(each))
        elif bench == "slow_learner":
            found += _slow(each, clusters.of(each))
        elif bench == "progress":
            found += _messages(each)
    return found


def left_out(measured: Sequence[Lines]) -> list[str]:
    """Of the files, those that nothing is predicted for, with the reason."""
    benches = [(each.name, each.about.get("bench")) for each in measured]
    return [f"{name}: {NOT_PREDICTED[bench]}" for name, bench in benches if bench in NOT_PREDICTED]


def _methods(exchanges: Sequence[Lines]) -> list[str]:
    return list(dict.fromkeys(row["method"] for each in exchanges for row in each.rows))


def _on_one_node(inside: Sequence[Lines]) -> Iterator[Compared]:
    for method in _methods(inside):
        for each in inside:
            rows = fit.rows_of([each], method)
            others = fit.rows_of([other for other in inside if other is not each], method)
            fitted = _predict(method, fit.rows_of(inside, method), rows, each.cores)
            held_out = _predict(method, others, rows, each.cores) if others else [None] * len(rows)
            for row, first, second in zip(rows, fitted, held_out, strict=True):
                yield _exchange(each, row, f"{method}, one node", first, second, "exchange-n*, all sizes and learners")


def _predict(method: str, known: Sequence[Row], rows: Sequence[Row], cores: int) -> list[float]:
    if method in ALL_REDUCE_METHODS:
        shared, shape = fit.all_reduce_on_one_node(known, cores)
        return [fit.predict_on_one_node(shared, row, cores, shape) for row in rows]
    shared = fit.on_one_node(known, cores)
    return [fit.predict_on_one_node(shared, row, cores) for row in rows]


def _between_two(away: Sequence[Lines]) -> Iterator[Compared]:
    unlimited = next((each for each in away if each.name.endswith("-unlimited")), None)
    for each in away:
        rate = BITS_PER_SECOND.get(each.name.rpartition("-")[2])
        for method in _methods([each]):
            rows = fit.rows_of([each], method)
            cost = fit.between_two(rows)
            free = fit.between_two(fit.rows_of([unlimited], method)) if unlimited and rate else None
            for row in rows:
                wire = 8 * row["bytes"] * WIRE.get(method, 1.0) / rate if rate and method != fit.FLOOR else 0.0
                held_out = free.seconds(row["bytes"]) + wire if free else None
                basis = "these rows; held out: the unlimited link, and the rate"
                yield _exchange(each, row, f"{method}, two nodes", cost.seconds(row["bytes"]), held_out, basis)


def _exchange(each: Lines, row: Row, group: str, fitted: float, held_out: float | None, basis: str) -> Compared:
    what = row["method"]
    return Compared(each.name, group, what, row["learners"], row["bytes"], row["seconds"], fitted, held_out, basis)


class Clusters:
    """The clusters that learners of several measurements ran on, fitted once for each link."""

    def __init__(self, measured: Sequence[Lines]) -> None:
        self.measured = measured
        self.names = {each.name for each in measured}
        self.by_link: dict[str | None, Cluster] = {}

    def of(self, each: Lines) -> Cluster | None:
        """None if its link was not measured."""
        link = each.name.removeprefix("step-two-hosts").strip("-") if each.between_nodes else None
        if link is not None and f"{fit.BETWEEN}-{link}".strip("-") not in self.names:
            return None
        if link not in self.by_link:
            self.by_link[link] = fit.cluster(self.measured, 1, link, need_link=link is not None).cluster
        return replace(self.by_link[link], per_node=1 if each.between_nodes else each.about["learners"])


def _steps(each: Lines, cluster: Cluster | None) -> Iterator[Compared]:
    """Steps, from the local steps that took turns with them, and from those timed with nothing else running."""
    if cluster is None:
        return
    place = "two nodes" if each.between_nodes else "one node"
    quiet = replace(cluster, background=1.0)  # its cost is in the local step beside it already
    still = replace(quiet, driving=0.0)  # what this costs is no communication that is waited for
    for row in each.rows:
        if row["learners"] < 2:
            continue
        way, nbytes, n = WAY_OF[row["algo"]], fit.model_bytes(row["model"]), row["learners"]
        if row.get("topology", way.by) != way.by or row.get("compression", "none") != "none":
            continue
        beside = step_seconds(quiet, way, row["local_beside"], nbytes, n)
        alone = step_seconds(cluster, way, row["local_alone"], nbytes, n)
        ssgd = row["algo"] == "ssgd"
        name = f"{row['algo']} step of {row['model']}"
        basis = "exchange-*, progress-*" + (", and these steps" if ssgd else "")
        exposed = step_seconds(still, way, row["local_beside"], nbytes, n) - row["local_beside"]
        group = f"{row['algo']} step, {place}, exposed communication alone"
        what = f"{name}, exposed communication alone"
        held_out = None if ssgd else exposed
        yield Compared(each.name, group, what, n, nbytes, row["exposed"], exposed, held_out, basis)
        for start, predicted in (("beside", beside), ("alone", alone)):
            yield Compared(
                each.name,
                f"{row['algo']} step, {place}, from the local step {start}",
                f"{name}, from the local step {start}",
                n,
                nbytes,
                row["seconds"],
                predicted,
                None if ssgd else predicted,
                basis,
            )


def _slow(each: Lines, cluster: Cluster | None) -> Iterator[Compared]:
    """One learner of n computes `factor` times slower. What a step takes in memory, beside the exchange, is not known:
    it is fitted on DPSGD's steps at full speed, and all else follows."""
    assert cluster is not None, "these learners are on one node"
    rows = {row["algo"]: row for row in each.rows}
    if "dpsgd" not in rows:
        return
    command = each.about.get("command", "")
    steps = int(_option(command, "steps", SLOW_STEPS))
    compute = _option(command, "compute", SLOW_SECONDS)
    n, factor, nbytes = rows["dpsgd"]["learners"], rows["dpsgd"]["factor"], fit.model_bytes(rows["dpsgd"]["model"])
    mix = cluster.mix_seconds(nbytes, n)
    reduce = cluster.all_reduce_seconds(nbytes, n, "ring")
    update = max(0.0, rows["dpsgd"]["seconds"] - compute - mix)
    slow, fast = factor * compute + update, compute + update
    predicted = {
        "dpsgd": (fast + mix, _others(n, steps, fast, slow, mix), None),
        "adpsgd": (fast + mix, fast + mix, (n - 1) / (fast + mix) + 1 / (slow + mix)),
        "ssgd": (fast + reduce, slow + reduce, n / (slow + reduce)),
    }
    for algo, row in rows.items():
        full, others, rate = predicted[algo]
        basis = "exchange-n*; memory passes of the update: DPSGD's step at full speed"
        values = [("step at full speed", row["seconds"], full)]
        values.append(("others' step, one slowed", row["seconds_slowed"], others))
        if rate is not None:
            values.append(("steps/s, one slowed", row["steps_per_second_slowed"], rate))
        for what, seconds, value in values:
            held_out = None if (algo, what) == ("dpsgd", "step at full speed") else value
            group = "one slow learner of n"
            yield Compared(each.name, group, f"{algo}: {what}", n, nbytes, seconds, value, held_out, basis)


def _option(command: str, name: str, default: float) -> float:
    found = re.search(rf"--{name} (\S+)", command)
    return float(found[1]) if found else default


def _others(n: int, steps: int, fast: float, slow: float, mix: float) -> float:
    """The others' median step of DPSGD, of turns in which all begin together and the last learner is slow."""
    computing = np.full(n, fast)
    computing[-1] = slow
    rng = np.random.default_rng(0)
    medians = []
    for _ in range(TURNS):
        waits = waiting.WAITS["matching"](n, 1, rng)
        *_, ends = waiting.ends_of_steps(waits, Times(1.0, 0.0, mix), iter([computing] * steps))
        medians.append(np.median(ends[:-1]) / steps)
    return float(np.median(medians))


def _messages(each: Lines) -> Iterator[Compared]:
    """A message while its sender computes: what the link's rate says, where it has one."""
    rate = BITS_PER_SECOND.get(each.name.rpartition("-")[2])
    for row in each.rows:
        if rate and row["progress"] != fit.NOTHING:
            seconds = 8 * row["bytes"] / rate
            what, group = f"a message, driven by {row['progress']}", "a message at the link's rate"
            measured = row["read_seconds"]
            yield Compared(each.name, group, what, 2, row["bytes"], measured, seconds, seconds, "the rate alone")
