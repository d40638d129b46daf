"""Small problems, the learners of a test job, and the single-process reference of eq. 2."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import nn

from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import TOPOLOGIES, Topology

OPTIMIZERS = {
    "sgd": lambda weights: torch.optim.SGD(weights, lr=0.1),
    "momentum": lambda weights: torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda weights: torch.optim.Adam(weights, lr=0.01),
}


DEVICE = "cpu"  # of models and batches; --device changes it


class Net(nn.Module):
    """A little of everything: BatchNorm (buffers), a tied, a transposed and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)
        self.square = nn.Parameter(torch.randn(4, 5).t())
        self.tied = self.last.weight
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.norm(self.first(inputs))) + self.frozen
        hidden = hidden @ self.square @ self.square.t()
        return self.last(hidden) + 0.1 * self.tied.sum(1)


Nodes = list[int] | None  # every learner's; None: where they are


def start(node_of: Nodes = None, stall_timeout: float = 60.0) -> Learners:
    """This job's learners; on request as if they were on those nodes, so that messages go between them."""
    us = learners.start()
    node = us.node if node_of is None else us.world.Split(node_of[us.rank], us.rank)
    return learners.describe(us.world, node, stall_timeout)


def on_each(placements: list[Nodes], check: Callable[[Learners], None]) -> None:
    """The check with the learners placed so, and so: starting them is what takes the time."""
    for node_of in placements:
        us = start(node_of)
        if us.rank == 0:
            print("on nodes", us.node_of, flush=True)
        check(us)
        us.barrier()


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("--nodes", nargs="+", type=_nodes, default=[None], help="every learner's, as 0011; or several")
    parser.add_argument("--device", type=_use_device)
    return parser


def _nodes(word: str) -> list[int]:
    return [int(node) for node in word]


def _use_device(name: str) -> str:
    global DEVICE
    DEVICE = name
    return name


def topologies(names: Iterable[str] = TOPOLOGIES) -> list[str]:
    """Those of them that the device can have."""
    return [name for name in names if DEVICE == "cpu" or name != "hierarchical"]


def model() -> nn.Module:
    torch.manual_seed(7)
    return Net().double().to(DEVICE)


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.Generator().manual_seed(1000 * step + rank)
    inputs, classes = (
        torch.randn(4, 6, generator=numbers, dtype=torch.float64),
        torch.randint(0, 3, (4,), generator=numbers),
    )
    return inputs.to(DEVICE), classes.to(DEVICE)


def loss(net: nn.Module, examples: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(net(examples[0]), examples[1])


def flat(net: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in net.parameters() if p.requires_grad])


MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")


def reference_dpsgd(
    optimizer: str, topology: Topology, steps: int, clip_norm: float | None = None, mix_moments: bool = False
) -> list[nn.Module]:
    """Eq. 2 for all learners in one process: their models after `steps` steps.

    w_j(t+1) = sum_k T_t[j,k] w_k(t), then the optimizer's update from the gradient at w_j(t). mix_moments: its state is
    mixed by the same matrix before.
    """
    nets = [model() for _ in range(topology.size)]
    optimizers = [OPTIMIZERS[optimizer]([p for p in net.parameters() if p.requires_grad]) for net in nets]
    for step in range(steps):
        for rank, (net, opt) in enumerate(zip(nets, optimizers, strict=True)):
            opt.zero_grad()
            loss(net, batch(step, rank)).backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(net.parameters(), clip_norm)
        before = [[p.detach().clone() for p in net.parameters()] for net in nets]
        matrix = topology.matrix(step)
        if mix_moments:
            mix_states(nets, optimizers, matrix)
        for rank, (net, opt) in enumerate(zip(nets, optimizers, strict=True)):
            for index, p in enumerate(net.parameters()):
                p.data.copy_(sum(matrix[rank, k] * before[k][index] for k in range(topology.size)))
            opt.step()
    return nets


def mix_states(nets: list[nn.Module], optimizers: list[torch.optim.Optimizer], matrix: np.ndarray) -> None:
    """m_s,j = sum_k T[j,k] m_k, for all moments that there are (before the first step: none, which are zeros)."""
    states = [[dict(opt.state[p]) for p in net.parameters()] for net, opt in zip(nets, optimizers, strict=True)]
    for rank, (net, opt) in enumerate(zip(nets, optimizers, strict=True)):
        for index, p in enumerate(net.parameters()):
            for name in MOMENTS:
                if states[rank][index].get(name) is not None:
                    mixed = sum(matrix[rank, k] * states[k][index][name] for k in range(len(nets)))
                    opt.state[p][name] = mixed


def assert_same(net: nn.Module, others: list[nn.Module]) -> None:
    """The model holds the mean of these models' states, BatchNorm's running statistics among it."""
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            mean = torch.stack([other.state_dict()[name] for other in others]).mean(0)
            torch.testing.assert_close(value, mean, rtol=0, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
