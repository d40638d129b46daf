"""What an algorithm's communication adds to a training step, on made-up data.

    mpirun -np 2 python benchmarks/comm/step_overhead.py --model resnet18 --algo dpsgd
    mpirun -np 2 python benchmarks/comm/step_overhead.py --model resnet18 --compare
    mpirun -np 2 python benchmarks/comm/step_overhead.py --compare --algos dpsgd --topology ring --compression bfloat16
    python -m benchmarks.two_hosts --rate 1gbit \\
        mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/step_overhead.py --model resnet18 --compare

Without --compare, flags and lines are those of Horovod's pytorch_synthetic_benchmark, with --algo beside them.

With --compare local steps (one's own model, no communication) and steps of an algorithm take turns, so that a machine
that slows down slows both. Local steps are also timed alone, before the algorithm was started: its background threads
(Horovod's always; the progress engine between nodes) cost a local step too, and that is reported apart. Horovod comes
last, as it cannot be stopped without trace.

--topology concerns dpsgd and adpsgd, --compression dpsgd.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil

from benchmarks.comm import arguments, measure, models
from benchmarks.comm.models import Workload
from benchmarks.comm.output import Output, duration
from benchmarks.comm.steps import AlgorithmSteps, LocalSteps
from horovod_dpsgd import learners
from horovod_dpsgd.command_line import count, count_or_none
from horovod_dpsgd.learners import Learners

COMPARED = ("dpsgd", "adpsgd", "ssgd")  # Horovod's last
HEADER = ("algorithm", "step", "x local beside it", "quartiles", "x local alone", "local beside / alone", "exposed")
COPIES = 7  # of the weights, that --compare holds at once: weights, gradients, momentum of two models, and a slot


def main() -> None:
    given = _arguments()
    us = learners.start()
    threads = measure.use_cores(us)
    output = Output(given, "step_overhead", us)
    workload = models.make(given.model, given.batch_size, given.image_size, seed=us.rank)
    output.say(f"Model: {given.model}\nBatch size: {given.batch_size}\nNumber of CPUs: {us.size}")
    output.say(f"Threads per learner: {threads}")
    if given.compare:
        _compare(given, workload, us, output)
    else:
        _synthetic_benchmark(given, workload, us, output)
    output.close()


def _synthetic_benchmark(given: argparse.Namespace, workload: Workload, us: Learners, output: Output) -> None:
    step = LocalSteps(workload) if given.algo == "local" else _steps_by(given.algo, given, workload, us)
    output.say("Running warmup...")
    for _ in range(given.num_warmup_batches):
        step()
    output.say("Running benchmark...")
    speeds = []
    for number in range(given.num_iters):
        start = time.perf_counter()
        for _ in range(given.num_batches_per_iter):
            step()
        speeds.append(workload.samples * given.num_batches_per_iter / (time.perf_counter() - start))
        output.say(f"Iter #{number}: {speeds[-1]:.1f} {workload.unit}/sec per CPU")
    mean, spread = float(np.mean(speeds)), 1.96 * float(np.std(speeds))
    unit = f"{workload.unit.capitalize()}/sec"
    output.say(f"{unit} per CPU: {mean:.1f} +-{spread:.1f}")
    output.say(f"Total {workload.unit}/sec on {us.size} CPU(s): {us.size * mean:.1f} +-{us.size * spread:.1f}")
    by = {"algo": given.algo, **_exchange_of(given.algo, given)}
    output.row(model=given.model, **by, learners=us.size, batch=workload.samples, speeds=speeds)
    step.close()


def _compare(given: argparse.Namespace, workload: Workload, us: Learners, output: Output) -> None:
    stopwatch = measure.Stopwatch(us, given.num_iters, given.budget)
    if (missing := _memory_missing(given.model, us)) is not None:
        output.skip(f"{given.model}, {us.size} learners", missing)
        return
    rows = []
    for algo in given.algos:
        if algo == "ssgd" and not importlib.util.find_spec("horovod"):
            output.skip("ssgd", "Horovod is not installed")
            continue
        values = _against_local(algo, given, workload, stopwatch)
        by = _exchange_of(algo, given)
        output.row(algo=algo, **by, model=given.model, batch=workload.samples, image_size=given.image_size, **values)
        rows.append([arguments.exchange_name(algo, **by) if by else algo, *_cells(values)])
    output.table(HEADER, rows)


def _against_local(
    algo: str, given: argparse.Namespace, workload: Workload, stopwatch: measure.Stopwatch
) -> dict[str, object]:
    us = stopwatch.learners
    calls, warm_up = given.num_batches_per_iter, given.num_warmup_batches
    local = LocalSteps(workload)
    alone = [stopwatch.compare({"local": local}, calls, warm_up)["local"]]
    steps = _steps_by(algo, given, workload, us)
    times = stopwatch.compare({"local": local, algo: steps}, calls, warm_up)
    exposed = us.mean_of(steps.exposed_seconds)
    steps.close()
    if algo != "ssgd":  # Horovod's thread stays
        alone.append(stopwatch.compare({"local": local}, calls, warm_up=1)["local"])
    alone_seconds = float(np.median(np.concatenate([each.slowest for each in alone])))
    return {
        "learners": us.size,
        "nodes": us.nodes,
        **times[algo].row(times["local"]),
        "local_alone": alone_seconds,
        "local_beside": times["local"].median,
        "ratio_to_alone": times[algo].median / alone_seconds,
        "background_cost": times["local"].median / alone_seconds,
        "exposed": exposed,
    }


def _steps_by(algo: str, given: argparse.Namespace, workload: Workload, us: Learners) -> AlgorithmSteps:
    return AlgorithmSteps(algo, workload, us, given.topology, algo == "dpsgd" and given.compression != "none")


def _exchange_of(algo: str, given: argparse.Namespace) -> dict[str, str]:
    """The options of the exchange, as far as an algorithm has one."""
    if algo not in ("dpsgd", "adpsgd"):
        return {}
    return {"topology": given.topology, "compression": given.compression if algo == "dpsgd" else "none"}


def _cells(values: dict) -> list[str]:
    low, high = values["ratio_quartiles"]
    return [
        duration(values["seconds"]),
        f"{values['ratio']:.3f}",
        f"{low:.3f} - {high:.3f}",
        f"{values['ratio_to_alone']:.3f}",
        f"{values['background_cost']:.3f}",
        duration(values["exposed"]),
    ]


def _memory_missing(model: str, us: Learners) -> str | None:
    """Why a comparison would not fit, or None. Activations are not counted, but a margin is left for them."""
    here = us.size if measure.on_one_machine(us) else us.local_size
    needed = COPIES * models.parameter_bytes(model) * here
    memory = us.gather(psutil.virtual_memory().available)
    if needed <= 0.7 * min(memory):
        return None
    return f"{here} learners need {needed / 2**30:.0f} GiB for the copies of the weights alone"


def _arguments() -> argparse.Namespace:
    parser = arguments.parser(__doc__, turns=None)
    parser.add_argument(
        "--model",
        type=arguments.model,
        default="resnet50",
        help="one of torchvision's, or gpt-small (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=count, default=32, help="of each learner (default: %(default)s)")
    parser.add_argument("--image-size", type=count, default=224, help="pixels a side (default: %(default)s)")
    parser.add_argument("--num-warmup-batches", type=count_or_none, default=10, help="not timed (default: %(default)s)")
    parser.add_argument("--num-batches-per-iter", type=count, default=10, help="default: %(default)s")
    parser.add_argument("--num-iters", type=count, default=10, help="with --compare: turns (default: %(default)s)")
    parser.add_argument("--algo", choices=["local", *sorted(COMPARED)], default="ssgd", help="default: %(default)s")
    parser.add_argument("--compare", action="store_true", help="algorithms over local steps, in turns")
    parser.add_argument(
        "--algos",
        type=arguments.names(COMPARED),
        default=",".join(COMPARED),
        help="of --compare (default: %(default)s)",
    )
    arguments.add_exchange(parser, "dpsgd and adpsgd")
    given = parser.parse_args()
    arguments.check_exchange(parser, given)
    algos = given.algos if given.compare else [given.algo]
    if given.compression != "none" and "dpsgd" not in algos:
        parser.error(f"--compression {given.compression} is of dpsgd, which is not among {', '.join(algos)}")
    if algos == ["ssgd"] and not importlib.util.find_spec("horovod"):
        parser.error("ssgd needs Horovod, which is not installed")
    return given


if __name__ == "__main__":
    main()
