"""The peer decent-dp (PyPI; gloo) beside DPSGD and a local step, in one run.

    pip install decent-dp
    mpirun -np 2 python benchmarks/comm/decent_dp_peer.py

decent-dp updates the weights and starts its pair averages inside backward hooks, bucket by bucket, so its exchange
cannot be timed apart. It is seen here in two ways: with a model that computes next to nothing and has ResNet-18's 44 MB
of weights (what a step takes beyond a local one is exchange and averaging), and in steps of ResNet-18 itself. Learners
are started by mpirun for both; gloo's connections are made over the loopback device.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch.distributed as dist

from benchmarks.comm import arguments, measure, models
from benchmarks.comm.models import Workload
from benchmarks.comm.output import Output, duration
from benchmarks.comm.steps import AlgorithmSteps, LocalSteps, make_optimizer
from horovod_dpsgd import learners
from horovod_dpsgd.command_line import count
from horovod_dpsgd.learners import Learners

PEER = "decent-dp"
HEADER = ("model", "step by", "time", "x local", "quartiles")


class DecentSteps:
    """Steps of decent-dp's wrapper; its update and its communication are in its backward hooks."""

    def __init__(self, workload: Workload) -> None:
        from decent_dp.ddp import DecentralizedDataParallel

        self.workload = workload
        self.model = DecentralizedDataParallel(
            workload.make_model(),
            lambda named: make_optimizer([p for _, p in named]),
            topology="one-peer-exp",
        )

    def __call__(self) -> None:
        self.workload.loss(self.model).backward()

    def finish(self) -> None:
        """Wait for what the last step started, which would be in the way of the next contender."""
        for under_way in filter(None, self.model._comm_ops):
            under_way.wait()


Steps = LocalSteps | AlgorithmSteps | DecentSteps


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--model", type=arguments.model, default="resnet18", help="default: %(default)s")
    parser.add_argument("--batch-size", type=count, default=8, help="of each learner (default: %(default)s)")
    parser.add_argument("--image-size", type=count, default=64, help="pixels a side (default: %(default)s)")
    parser.add_argument("--steps", type=count, default=10, help="of a turn (default: %(default)s)")
    given = parser.parse_args()
    us = learners.start()
    measure.use_cores(us)
    output = Output(given, "decent_dp", us)
    if not importlib.util.find_spec("decent_dp"):
        output.skip(PEER, "not installed: pip install decent-dp")
    elif us.nodes > 1 or us.size < 2:
        output.skip(PEER, "measured between learners of one node only")
    else:
        _start_gloo(us)
        stopwatch = measure.Stopwatch(us, given.turns, given.budget)
        rows = []
        for name in (f"weights-only:{given.model}", given.model):
            workload = models.make(name, given.batch_size, given.image_size, seed=us.rank)
            rows += _compare(workload, given.steps, stopwatch, output)
        output.table(HEADER, rows)
        dist.destroy_process_group()
    output.close()


def _compare(workload: Workload, steps: int, stopwatch: measure.Stopwatch, output: Output) -> list[list[str]]:
    local, dpsgd = LocalSteps(workload), AlgorithmSteps("dpsgd", workload, stopwatch.learners)
    kinds: dict[str, Steps] = {"local": local, "DPSGD": dpsgd, PEER: DecentSteps(workload)}
    times = stopwatch.compare({name: partial(_steps, kind, steps) for name, kind in kinds.items()})
    times = {name: measure.Times(found.each / steps) for name, found in times.items()}
    dpsgd.close()
    rows = []
    for name, each in times.items():
        values = each.row(times["local"])
        beyond = each.median - times["local"].median
        output.row(model=workload.name, by=name, batch=workload.samples, **values, beyond_local=beyond)
        low, high = values["ratio_quartiles"]
        rows.append([workload.name, name, duration(each.median), f"{values['ratio']:.2f}", f"{low:.2f} - {high:.2f}"])
    return rows


def _steps(kind: Steps, count: int) -> None:
    for _ in range(count):
        kind()
    if isinstance(kind, DecentSteps):
        kind.finish()


def _start_gloo(us: Learners) -> None:
    """torch.distributed among the same learners."""
    from loguru import logger

    logger.remove()  # it announces every wrapper on standard error
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["LOCAL_WORLD_SIZE"] = str(us.local_size)
    with socket.socket() as any_free_port:
        any_free_port.bind(("127.0.0.1", 0))
        port = any_free_port.getsockname()[1]
    port = us.broadcast(port)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=us.rank, world_size=us.size)


if __name__ == "__main__":
    main()
