"""Many learners, fewer cores, a random delay in every step, for as long as is wanted: does memory grow, does it stall?

    mpirun -np 16 --oversubscribe python benchmarks/reliability/soak.py --minutes 20 --output soak.json
    mpirun -np 16 --oversubscribe python benchmarks/reliability/soak.py --minutes 0.5 --algo adpsgd

DPSGD (or another algorithm) on a small network and made-up data. Every step begins with a delay drawn from an
exponential distribution, whose mean is the delay's; one step in a hundred is delayed ten times as long. Each learner
looks at its own resident memory, learner 0 also at what lies in /dev/shm. A wait of more than ten seconds counts as a
stall. Status 1 if there was one, or if memory grew.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import shutil
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from horovod_dpsgd import algorithms, learners, topology
from horovod_dpsgd.command_line import OneLineParser

SETTLED = 0.2  # of the run, after which memory must not grow
MB = 1e6
GROWTH = 8 * MB  # that is not counted: Python's and malloc's own comings and goings
SAMPLES = 40


class Stalls(logging.Handler):
    """Counts what `horovod_dpsgd.waiting` warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main() -> int:
    given = _arguments()
    us = learners.start()
    learners.use_threads(us)
    stalls = Stalls()
    logging.getLogger("horovod_dpsgd").addHandler(stalls)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.ReLU(), torch.nn.Linear(512, 10))
    settings = algorithms.Settings(topology.create(given.topology, us.size, node_of=us.node_of))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    algorithm = algorithms.find(given.algo)(optimizer, model, us, settings)
    delays = np.random.default_rng((0, us.rank))
    inputs, targets = torch.randn(32, 256), torch.randint(0, 10, (32,))
    start = time.monotonic()
    end, steps = start + 60 * given.minutes, 0
    samples: list[int] = []
    shared: list[int] = []
    while True:
        algorithm.begin_step()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        time.sleep(delays.exponential(given.delay) * (10 if delays.random() < 0.01 else 1))
        algorithm.end_step()
        steps += 1
        passed = time.monotonic() - start
        if passed >= len(samples) * 60 * given.minutes / SAMPLES:
            samples.append(resident())
            shared.append(shutil.disk_usage("/dev/shm").used)
        # All stop at one step, though their clocks differ; a look every hundred steps disturbs little.
        if steps % 100 == 0 and us.broadcast(time.monotonic() >= end):
            break
    algorithm.settle()
    seconds = time.monotonic() - start
    algorithm.close()
    grown = us.gather(max(samples[int(SETTLED * len(samples)) :]) - samples[int(SETTLED * len(samples))])
    lines = [line for each in us.gather(stalls.lines) for line in each]
    result = {
        "algo": given.algo, "topology": given.topology, "learners": us.size, "cores": os.cpu_count(),
        "minutes": round(seconds / 60, 2), "delay_seconds": given.delay, "steps": sum(us.gather(steps)),
        "resident_mb": [round(each / MB, 1) for each in us.gather(samples[-1])],
        "grown_mb": [round(each / MB, 2) for each in grown],
        "shared_mb_first_last": [round(shared[0] / MB, 2), round(shared[-1] / MB, 2)],
        "stalls": len(lines),
    }  # fmt: skip
    if us.rank == 0:
        text = json.dumps(result)
        print(text, *lines, sep="\n", flush=True)
        if given.output:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(text + "\n")
    return int(bool(lines) or max(grown) > GROWTH or shared[-1] - shared[len(shared) // 5] > GROWTH)


def resident() -> int:
    """Bytes of this process's memory that are its own; shared memory and mapped files do not count."""
    total, shared = Path("/proc/self/statm").read_text().split()[1:3]
    return (int(total) - int(shared)) * resource.getpagesize()


def _arguments() -> argparse.Namespace:
    p = OneLineParser(description=__doc__)
    p.add_argument("--minutes", type=float, default=20.0, help="default: %(default)s")
    p.add_argument("--delay", type=float, default=0.1, metavar="SECONDS", help="mean (default: %(default)s)")
    p.add_argument("--algo", choices=["dpsgd", "adpsgd", "ssgd"], default="dpsgd")
    p.add_argument("--topology", choices=list(topology.TOPOLOGIES), default="matching")
    p.add_argument("--output", type=Path, metavar="FILE", help="the numbers, as JSON")
    return p.parse_args()


if __name__ == "__main__":
    sys.exit(main())
