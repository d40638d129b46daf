"""Small problems, the learners of a test job, and the single-process reference of eq. 2."""

from __future__ import annotations

import argparse
import copy

import torch
from torch import nn

from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import Topology

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
}


def start(every_learner_its_own_node: bool = False, stall_timeout: float = 60.0) -> Learners:
    """This job's learners; on request as if no two shared memory, so that all reads go through MPI."""
    us = learners.start()
    from mpi4py import MPI

    node = MPI.COMM_SELF.Dup() if every_learner_its_own_node else us.node
    return learners.describe(us.world, node, stall_timeout)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--apart", action="store_true", help="every learner is a node of its own")
    return parser.parse_args()


def model(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(7)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def batch(step: int, rank: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(1000 * step + rank)
    return torch.randn(4, 6, generator=numbers, dtype=dtype), torch.randint(0, 3, (4,), generator=numbers)


def loss(net: nn.Module, examples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(net(examples[0]), examples[1])


def flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters()])


def reference_dpsgd(optimizer: str, topology: Topology, steps: int) -> list[torch.Tensor]:
    """Eq. 2 for all learners in one process: their weights after `steps` steps.

    w_j(t+1) = sum_k T_t[j,k] w_k(t), then the optimizer's update from the gradient at w_j(t).
    """
    nets = [model() for _ in range(topology.size)]
    optimizers = [OPTIMIZERS[optimizer](net.parameters()) for net in nets]
    for step in range(steps):
        for rank, (net, opt) in enumerate(zip(nets, optimizers, strict=True)):
            opt.zero_grad()
            loss(net, batch(step, rank)).backward()
        before = [copy.deepcopy(net.state_dict()) for net in nets]
        matrix = topology.matrix(step)
        for rank, (net, opt) in enumerate(zip(nets, optimizers, strict=True)):
            mixed = {
                name: sum(matrix[rank, k] * before[k][name] for k in range(topology.size)) for name in before[rank]
            }
            net.load_state_dict(mixed)
            opt.step()
    return [flat(net) for net in nets]
