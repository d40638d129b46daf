"""Mixing and the optimizer's update: one after the other over all weights, against both by blocks that stay in cache.

    python benchmarks/comm/fused.py                        # one process: torch.lerp stands for the exchange
    mpirun -np 2 python benchmarks/comm/fused.py           # and DPSGD.end_step against mix(), step(), publish()

Per optimizer and number of threads: (a) mix, then `optimizer.step()` as torch does it by default; (b) the same with
fused=True; (c) by blocks, as DPSGD does it. Parameters of ResNet-18's shapes (44 MB), fixed gradients.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import nn

from benchmarks.comm import arguments, measure, models
from benchmarks.comm.output import Output, duration
from horovod_dpsgd import gossip, learners, topology
from horovod_dpsgd.algorithms import Settings
from horovod_dpsgd.algorithms.dpsgd import DPSGD
from horovod_dpsgd.algorithms.update import Update
from horovod_dpsgd.lamb import LAMB
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters

MakeOptimizer = Callable[..., torch.optim.Optimizer]
OPTIMIZERS: dict[str, MakeOptimizer] = {
    "SGD, momentum": partial(torch.optim.SGD, lr=1e-3, momentum=0.9, weight_decay=1e-4),
    "Adam": partial(torch.optim.Adam, lr=1e-4),
    "AdamW": partial(torch.optim.AdamW, lr=1e-4),
    "LAMB": partial(LAMB, lr=1e-4),
}
HEADER = ("optimizer", "threads", "way", "time", "x default", "x fused=True")
DEFAULT, FUSED, BLOCKS = "mix, then step()", "mix, then step(), fused=True", "by blocks"


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--model", type=arguments.model, default="resnet18", help="whose parameters (default: %(default)s)"
    )
    parser.add_argument(
        "--optimizers",
        type=arguments.names(OPTIMIZERS, ";"),
        default=";".join(OPTIMIZERS),
        help='separated by ";" (default: %(default)s)',
    )
    given = parser.parse_args()
    us = learners.start()
    most = measure.use_cores(us)
    output = Output(given, "fused", us)
    stopwatch = measure.Stopwatch(us, given.turns, given.budget)
    rows = []
    for name in given.optimizers:
        for threads in range(1, most + 1) if us.size == 1 else [most]:
            torch.set_num_threads(threads)
            with ExitStack() as until_done:
                make_contenders = _one_process if us.size == 1 else partial(_learners, us, until_done)
                contenders = make_contenders(given.model, OPTIMIZERS[name])
                rows += _compare(name, threads, contenders, stopwatch, output)
    output.table(HEADER, rows)
    output.close()


def _compare(
    name: str,
    threads: int,
    contenders: dict[str, measure.Contender],
    stopwatch: measure.Stopwatch,
    output: Output,
) -> list[list[str]]:
    times = stopwatch.compare(contenders, calls=3)
    rows = []
    for way, found in times.items():
        ratios = {"x_default": found.ratio_to(times[DEFAULT])}
        if FUSED in times:
            ratios["x_fused"] = found.ratio_to(times[FUSED])
        place = "one process" if stopwatch.learners.size == 1 else "DPSGD"
        output.row(optimizer=name, threads=threads, way=way, measured_in=place, **found.row(times[DEFAULT]), **ratios)
        shown = [f"{ratios[key]:.2f}" if key in ratios else "-" for key in ("x_default", "x_fused")]
        rows.append([name, str(threads), way, duration(found.median), *shown])
    return rows


def _ways(make: MakeOptimizer) -> dict[str, MakeOptimizer]:
    """The optimizer of each way; torch's own have a fused=True, others have not."""
    ways = {DEFAULT: make, BLOCKS: make}
    return ways if make is OPTIMIZERS["LAMB"] else {DEFAULT: make, FUSED: partial(make, fused=True), BLOCKS: make}


# In one process


def _one_process(model: str, make: MakeOptimizer) -> dict[str, measure.Contender]:
    like = FlatParameters(models.make(model, 1, 32, 0).make_model())
    own, other, mixed = (measure.random_like_weights(like.numel, seed) for seed in range(3))
    gradients = [torch.randn_like(p).mul_(1e-3) for p in like.parameters]
    ways: dict[str, measure.Contender] = {}
    for way, make_one in _ways(make).items():
        weights = nn.ParameterList(torch.empty_like(p) for p in like.parameters)
        flat = FlatParameters(weights)
        flat.point_to(flat.views(mixed))
        for p, gradient in zip(flat.parameters, gradients, strict=True):
            p.grad = gradient
        optimizer = make_one(list(weights))
        whole = partial(_mix_then_step, optimizer, own, other, mixed)
        ways[way] = partial(_by_blocks, Update(optimizer, flat), own, other, mixed) if way == BLOCKS else whole
    return ways


def _mix_then_step(
    optimizer: torch.optim.Optimizer, own: torch.Tensor, other: torch.Tensor, mixed: torch.Tensor
) -> None:
    torch.lerp(own, other, 0.5, out=mixed)
    optimizer.step()


def _by_blocks(update: Update, own: torch.Tensor, other: torch.Tensor, mixed: torch.Tensor) -> None:
    with update as blocks:
        parts = (tensor.split(blocks.sizes) for tensor in (own, other, mixed))
        for index, (mine, theirs, block) in enumerate(zip(*parts, strict=True)):
            torch.lerp(mine, theirs, 0.5, out=block)
            blocks(index, block)


# Between learners


def _learners(us: Learners, until_done: ExitStack, model: str, make: MakeOptimizer) -> dict[str, measure.Contender]:
    workload = models.make(model, 1, 32, 0)
    matching = topology.create("matching", us.size)
    ways: dict[str, measure.Contender] = {}
    for way, make_one in _ways(make).items():
        net = workload.make_model()
        for p in net.parameters():
            p.grad = torch.randn_like(p).mul_(1e-3)
        optimizer = make_one(net.parameters())
        if way == BLOCKS:
            algorithm = DPSGD(optimizer, net, us, Settings(matching))
            until_done.callback(algorithm.close)
            ways[way] = partial(_end_step, algorithm)
        else:
            exchange = gossip.NeighbourExchange(us, FlatParameters(net), matching)
            until_done.callback(exchange.close)
            ways[way] = partial(_exchange_then_step, exchange, optimizer)
    return ways


def _end_step(algorithm: DPSGD) -> None:
    algorithm.begin_step()
    algorithm.end_step()


def _exchange_then_step(exchange: gossip.NeighbourExchange, optimizer: torch.optim.Optimizer) -> None:
    exchange.begin(exchange.step)
    exchange.mix()
    optimizer.step()
    exchange.publish()


if __name__ == "__main__":
    main()
