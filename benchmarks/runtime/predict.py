"""Step time and scaling efficiency of each algorithm from 2 to 4,096 learners: table, CSV, plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks.comm.output import duration, size_name
from benchmarks.runtime.costs import Cost
from benchmarks.runtime.fit import Fitted
from benchmarks.runtime.steps import WAYS, Cluster, Way, averages_done, step_seconds
from horovod_dpsgd.report import table

FRACTIONS = ("step_seconds", "efficiency", "averages")


@dataclass(frozen=True)
class Question:
    """What is asked of the model: compute, seconds of a step without communication; nbytes, of the model; jitter, mean
    of the random delays in times of `compute`."""

    compute: float
    nbytes: int
    learners: tuple[int, ...]
    jitter: float = 0.0


@dataclass(frozen=True)
class Prediction:
    algorithm: str
    learners: int
    nodes: int
    jitter: float
    step_seconds: float
    efficiency: float  # samples a second of all, over n times those of one that neither talks nor waits
    averages: float  # the share of its averages that an algorithm does: AD-PSGD skips those its network has no time for


def predict(cluster: Cluster, question: Question, ways: Sequence[Way] = WAYS) -> list[Prediction]:
    """For every way and number of learners, those ways first."""
    found = []
    for way in ways:
        for n in question.learners:
            seconds = step_seconds(cluster, way, question.compute, question.nbytes, n, question.jitter)
            nodes = -(-n // cluster.per_node)
            averages = averages_done(cluster, way, seconds, question.nbytes, n)
            found.append(Prediction(way.name, n, nodes, question.jitter, seconds, question.compute / seconds, averages))
    return found


def markdown(predictions: Sequence[Prediction]) -> str:
    """A row for each number of learners, a column for each algorithm: step and efficiency."""
    names = list(dict.fromkeys(each.algorithm for each in predictions))
    by = {(each.algorithm, each.learners): each for each in predictions}
    rows = []
    for n in dict.fromkeys(each.learners for each in predictions):
        cells = [by[name, n] for name in names]
        rows.append([str(n), str(cells[0].nodes), *map(_step, cells)])
    return table.markdown(["learners", "nodes", *names], rows)


def _step(each: Prediction) -> str:
    skipped = f", {100 * each.averages:.0f}% of averages" if each.averages < 1 else ""
    return f"{duration(each.step_seconds)} ({100 * each.efficiency:.0f}%{skipped})"


def as_csv(predictions: Sequence[Prediction]) -> str:
    """With a heading; seconds and efficiency to six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(asdict(predictions[0])), lineterminator="\n")
    writer.writeheader()
    for each in predictions:
        row = asdict(each)
        writer.writerow(row | {key: f"{row[key]:.6g}" for key in FRACTIONS})
    return text.getvalue()


def numbers(fitted: Fitted) -> str:
    """The cluster's numbers as a table, where they come from, and what was assumed."""
    c = fitted.cluster
    rows = [
        ["learners a node, cores of a node", f"{c.per_node}, {c.cores}"],
        ["exchange inside a node", _cost(c.mixing.cost)],
        ["all-reduce inside a node, for each message and byte of a " + c.node_shape, _cost(c.node_all_reduce.cost)],
        ["exchange between nodes", _cost(c.link)],
        ["all-reduce between nodes, for each message and byte", _cost(c.link_all_reduce)],
        ["agreement to all-reduce", duration(c.agreement)],
        ["driving messages, of the core that computes", f"{1e9 * c.driving:.2f} s for a GB"],
        ["computation beside Horovod's thread", f"{c.background:.2f} times as long"],
        ["share of an all-reduce beside the backward pass", f"{100 * c.overlap:.0f}%"],
    ]
    sources = [f"* {what}: fitted on {where}" for what, where in fitted.sources.items()]
    lines = sources + [f"* assumed: {each}" for each in fitted.assumed]
    return table.markdown(["of the cluster", "is"], rows) + "\n\n" + "\n".join(lines)


def _cost(cost: Cost) -> str:
    if cost.per_byte == 0:
        return duration(cost.start)
    return f"{duration(cost.start)} + {1e9 * cost.per_byte:.3g} s for a GB ({8 / cost.per_byte / 1e9:.3g} Gbit/s)"


def heading(question: Question, link: str) -> str:
    random = f", random delays of {100 * question.jitter:g}% of it on average" if question.jitter else ""
    size = size_name(round(question.nbytes / 2**18) * 2**18) if question.nbytes >= 2**20 else size_name(question.nbytes)
    return f"model of {size}, {duration(question.compute)} of computation a step{random}, {link}"
