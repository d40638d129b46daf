"""One learner computes several times slower than the others: how much do the others feel it?

    mpirun -np 4 --oversubscribe python benchmarks/comm/slow_learner.py
    mpirun -np 4 --oversubscribe python benchmarks/comm/slow_learner.py --factor 8 --algos adpsgd,ssgd

Computation is emulated by sleeping, as if an accelerator did it: then learners can outnumber cores and a slow one still
takes nothing from the others and leaves nothing to them. Communication and update are real, of ResNet-18's 44 MB. Every
algorithm takes turns between all learners at full speed and the last one slowed down. The step is that of the others;
the throughput counts the steps that all learners together take in a second.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.comm import arguments, measure, models
from benchmarks.comm.models import Workload
from benchmarks.comm.output import Output, duration
from benchmarks.comm.steps import AlgorithmSteps
from horovod_dpsgd import learners
from horovod_dpsgd.command_line import amount, count

COMPARED = ("dpsgd", "adpsgd", "ssgd")  # Horovod's last: its thread stays
HEADER = ("algorithm", "others' step", "one slowed down", "ratio", "steps/s of all", "one slowed down")


def main() -> None:
    parser = arguments.parser(__doc__, turns=5)
    parser.add_argument(
        "--model", type=arguments.model, default="resnet18", help="whose weights (default: %(default)s)"
    )
    parser.add_argument(
        "--compute", type=amount, default=0.2, help="seconds a step at full speed (default: %(default)s)"
    )
    parser.add_argument("--steps", type=count, default=8, help="of a turn (default: %(default)s)")
    parser.add_argument("--factor", type=amount, default=4.0, help="default: %(default)s")
    parser.add_argument(
        "--algos", type=arguments.names(COMPARED), default=",".join(COMPARED), help="default: %(default)s"
    )
    given = parser.parse_args()
    us = learners.start()
    if us.size < 2:
        arguments.refuse(us, "this is about one learner and the others: start 2 or more")
    measure.use_cores(us)
    output = Output(given, "slow_learner", us)
    workload = models.make(f"weights-only:{given.model}", batch_size=1, image_size=1, seed=us.rank)
    stopwatch = measure.Stopwatch(us, given.turns, given.budget)
    rows = []
    for algo in given.algos:
        if algo == "ssgd" and not importlib.util.find_spec("horovod"):
            output.skip(algo, "Horovod is not installed")
            continue
        values = _measure(algo, workload, given, stopwatch)
        output.row(algo=algo, learners=us.size, factor=given.factor, model=given.model, **values)
        rows.append([algo, *_cells(values)])
    output.table(HEADER, rows)
    output.close()


def _measure(algo: str, workload: Workload, given: argparse.Namespace, stopwatch: measure.Stopwatch) -> dict:
    us = stopwatch.learners
    by_algorithm = AlgorithmSteps(algo, workload, us)
    factor = given.factor if us.rank == us.size - 1 else 1.0
    seconds = {"full speed": given.compute, "slowed": factor * given.compute}
    turns = {name: partial(_turn, by_algorithm, each, given.steps) for name, each in seconds.items()}
    times = {name: found.each / given.steps for name, found in stopwatch.compare(turns, warm_up=1).items()}
    by_algorithm.close()
    others = {name: np.median(each[:-1], axis=0) for name, each in times.items()}  # [turns]
    throughput = {name: float(np.median((1 / each).sum(axis=0))) for name, each in times.items()}
    return {
        "seconds": float(np.median(others["full speed"])),
        "seconds_slowed": float(np.median(others["slowed"])),
        "ratio": float(np.median(others["slowed"] / others["full speed"])),
        "steps_per_second": throughput["full speed"],
        "steps_per_second_slowed": throughput["slowed"],
        "turns": len(others["slowed"]),
    }


def _turn(by_algorithm: AlgorithmSteps, seconds: float, steps: int) -> None:
    by_algorithm.elsewhere = seconds
    for _ in range(steps):
        by_algorithm()


def _cells(values: dict) -> list[str]:
    return [
        duration(values["seconds"]),
        duration(values["seconds_slowed"]),
        f"{values['ratio']:.2f}",
        f"{values['steps_per_second']:.1f}",
        f"{values['steps_per_second_slowed']:.1f}",
    ]


if __name__ == "__main__":
    main()
