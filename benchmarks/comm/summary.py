"""The goals of this project's communication beside what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.comm import tables
from benchmarks.comm.jobs import Measured
from benchmarks.comm.methods import Gossip, Horovod, SharedFloor
from horovod_dpsgd.report import table

MODEL_BYTES = 44 * 2**20


@dataclass(frozen=True)
class Goal:
    """A ratio to stay below (or, `at_least`, above); `ratio` finds it in the rows of all jobs, by name, or None."""

    what: str
    limit: float
    ratio: Callable[[dict[str, list[dict]]], float | None]
    at_least: bool = False


def write(measured: Sequence[Measured], folder: Path) -> Path:
    rows_of = {each.job.name: each.rows for each in measured}
    lines = []
    for goal in GOALS:
        value = goal.ratio(rows_of)
        sign = ">=" if goal.at_least else "<="
        shown = "-" if value is None else f"{value:.3f}"
        lines.append([goal.what, f"{sign} {goal.limit:g}", shown, _verdict(goal, value)])
    text = table.markdown(["what", "goal", "measured", "met?"], lines)
    file = folder / "summary.md"
    file.write_text("\n\n".join(["# Goals and measurements", text, NOTE, tables.provenance(measured)]) + "\n")
    return file


def _verdict(goal: Goal, value: float | None) -> str:
    if value is None:
        return "not measured"
    if (value >= goal.limit) if goal.at_least else (value <= goal.limit):
        return "yes"
    return f"no, by {abs(value / goal.limit - 1):.0%}"


def _exchange(job: str, over: str | None = None, method: str = Gossip.name) -> Callable[[dict], float | None]:
    """The ratio of a method to the floor, or to the method `over`, at 44 MB."""

    def ratio(rows_of: dict[str, list[dict]]) -> float | None:
        found = {row["method"]: row for row in rows_of.get(job, []) if row["bytes"] == MODEL_BYTES}
        if method not in found or (over and over not in found):
            return None
        return found[method]["seconds"] / found[over]["seconds"] if over else found[method]["ratio"]

    return ratio


def _horovod(rows_of: dict[str, list[dict]]) -> float | None:
    return _exchange("exchange-n2", Gossip.name, Horovod.name)(rows_of)


def _growth(rows_of: dict[str, list[dict]]) -> float | None:
    """Of exchange over floor, from 2 to 16 learners."""
    few, many = _exchange("exchange-n2")(rows_of), _exchange("exchange-n16")(rows_of)
    return many / few if few and many else None


def _fused(optimizer: str, over: str) -> Callable[[dict], float | None]:
    """By blocks, in one process with one thread."""

    def ratio(rows_of: dict[str, list[dict]]) -> float | None:
        for row in rows_of.get("fused", []):
            if (row["optimizer"], row["way"], row["threads"]) == (optimizer, "by blocks", 1):
                return row.get(over)
        return None

    return ratio


def _step(job: str, algo: str, which: str = "ratio") -> Callable[[dict], float | None]:
    def ratio(rows_of: dict[str, list[dict]]) -> float | None:
        return next((row[which] for row in rows_of.get(job, []) if row["algo"] == algo), None)

    return ratio


def _loop(rows_of: dict[str, list[dict]]) -> float | None:
    return max((row["ratio"] for row in rows_of.get("loop-2000", [])), default=None)


def _slow(rows_of: dict[str, list[dict]]) -> float | None:
    return next((row["ratio"] for row in rows_of.get("slow-learner-n4", []) if row["algo"] == "adpsgd"), None)


def _throughput(rows_of: dict[str, list[dict]]) -> float | None:
    found = {row["algo"]: row["steps_per_second_slowed"] for row in rows_of.get("slow-learner-n4", [])}
    return found["adpsgd"] / found["ssgd"] if {"adpsgd", "ssgd"} <= found.keys() else None


GOALS = [
    Goal("exchange + mix, 44 MB, one node, 2 learners / lerp in private memory", 1.05, _exchange("exchange-n2")),
    Goal("the same / lerp in shared memory", 1.05, _exchange("exchange-n2", SharedFloor.name)),
    Goal("the same at 4 learners / lerp in private memory", 1.15, _exchange("exchange-n4")),
    Goal("the same at 4 learners / lerp in shared memory", 1.15, _exchange("exchange-n4", SharedFloor.name)),
    Goal("Horovod all-reduce / exchange, 44 MB, 2 learners", 1.0, _horovod, True),
    Goal("exchange over floor, 44 MB: 16 learners / 2 learners", 1.5, _growth),
    Goal("mix and SGD with momentum by blocks / one after the other", 0.8, _fused("SGD, momentum", "x_default")),
    Goal("the same / one after the other, fused=True", 0.8, _fused("SGD, momentum", "x_fused")),
    Goal("mix and Adam by blocks / one after the other", 0.8, _fused("Adam", "x_default")),
    Goal("the same / one after the other, fused=True", 0.8, _fused("Adam", "x_fused")),
    Goal("DPSGD step / local step, one node, 2 learners, ResNet-18", 1.03, _step("step-resnet18-n2", "dpsgd")),
    Goal("the same, VGG11-BN", 1.03, _step("step-vgg11_bn-n2", "dpsgd")),
    Goal("the same, a GPT-like model", 1.03, _step("step-gpt-small-n2", "dpsgd")),
    Goal(
        "DPSGD step / local step with nothing running, two hosts, 1 Gbit/s, ResNet-18",
        1.10,
        _step("step-two-hosts-1gbit", "dpsgd", "ratio_to_alone"),
    ),
    Goal("AD-PSGD, one learner slowed 4 times: the others' step / unslowed", 1.10, _slow),
    Goal("AD-PSGD's steps a second / SSGD's, one learner slowed 4 times", 3.0, _throughput, True),
    Goal("training loop / bare PyTorch loop, one learner, MNIST network", 1.03, _loop),
]
NOTE = "Details, spread and peers: the other files of this folder."
