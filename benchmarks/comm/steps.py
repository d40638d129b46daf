"""Training steps to be timed: without communication, and by each algorithm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable

import torch
from torch import Tensor

from benchmarks.comm.models import Workload
from horovod_dpsgd import algorithms, topology
from horovod_dpsgd.learners import Learners

LR, MOMENTUM = 0.001, 0.9


class LocalSteps:
    """Forward, backward, update, in plain PyTorch: what a step costs with nobody to talk to."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.model = workload.make_model()
        self.optimizer = make_optimizer(self.model.parameters())

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.workload.loss(self.model).backward()
        self.optimizer.step()

    def close(self) -> None:
        return None


class AlgorithmSteps:
    """The same by an algorithm of `ALGORITHMS`. Making one and closing it is collective.

    topology_name: as in `topology.create`; compressed: exchange weights rounded to bfloat16; both where they apply.
    elsewhere: seconds a step for which this learner only waits, as for an accelerator that computes.
    """

    elsewhere = 0.0

    def __init__(
        self,
        name: str,
        workload: Workload,
        us: Learners,
        topology_name: str = topology.Matching.name,
        compressed: bool = False,
    ) -> None:
        self.workload = workload
        self.model = workload.make_model()
        graph = topology.create(topology_name, us.size, node_of=us.node_of)
        settings = algorithms.Settings(graph, compressed)
        self.algorithm = algorithms.find(name)(make_optimizer(self.model.parameters()), self.model, us, settings)
        self._exposed: list[float] = []

    def __call__(self) -> None:
        self.algorithm.begin_step()
        self.algorithm.optimizer.zero_grad()
        time.sleep(self.elsewhere)  # before the gradients, which SSGD sends as they come
        self.workload.loss(self.model).backward()
        self.algorithm.end_step()
        self._exposed.append(self.algorithm.exposed_seconds)

    @property
    def exposed_seconds(self) -> float:
        """The median over the steps of communication that computation did not hide."""
        return statistics.median(self._exposed)

    def close(self) -> None:
        self.algorithm.close()


def make_optimizer(weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """SGD with momentum, by torch's fastest kernel: DPSGD's own update is fused, and would look too good without."""
    return torch.optim.SGD(weights, LR, MOMENTUM, fused=True)
