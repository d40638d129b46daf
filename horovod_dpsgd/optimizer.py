"""`DecentralizedOptimizer`: DPSGD for a training script of one's own, as `hvd.DistributedOptimizer` is SSGD for it."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from horovod_dpsgd import learners, topology
from horovod_dpsgd.algorithms.dpsgd import DPSGD


class DecentralizedOptimizer(torch.optim.Optimizer):
    """Wrap `optimizer`, made over the parameters of `model`, so that every `step()` is a step of DPSGD (eq. 2).

    `step()` averages the weights with this step's partners, who publish theirs while gradients are computed, and then
    applies the wrapped optimizer's update. Everything else (`zero_grad`, `param_groups`, learning-rate schedulers,
    `state_dict`) is the wrapped optimizer's. All learners start from the weights of rank 0.

    topology: "matching" (one random partner a step, the paper's), "ring", "random-ring", "complete", "exponential", or
    a `Topology`; seed: of a random topology, equal on all learners.

    Weights differ between learners: evaluate inside `with optimizer.averaged():`, where the model holds their mean.

    Constructing, stepping, `averaged`, `load_state_dict` and `close` are collective. Raises ValueError for a model that
    `FlatParameters` cannot hold, or that differs between learners.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        model: nn.Module,
        topology: str | topology.Topology = "matching",
        seed: int = 0,
    ) -> None:
        # The base class's __init__ is not called: this is a face for `optimizer`, with no parameters or state of its
        # own.
        us = learners.start()
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if any(id(p) not in held for p in model.parameters() if p.requires_grad):
            raise ValueError("the optimizer does not hold all trainable parameters of the model")
        self.optimizer = optimizer
        chosen = _topology(topology, us.size, seed)
        self.algorithm = DPSGD(optimizer, model, us, chosen)
        self.algorithm.begin_step()
        atexit.register(self.close)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of DPSGD; returns what `closure`, if given, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.algorithm.end_step()
        self.algorithm.begin_step()
        return loss

    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block the model holds the mean of all learners' weights and BatchNorm statistics. Collective."""
        return self.algorithm.averaged()

    def close(self) -> None:
        """Leave the exchange; the model keeps this learner's weights. Called at exit if not before. Collective."""
        atexit.unregister(self.close)
        self.algorithm.close()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        raise RuntimeError("parameters cannot be added: the exchange's memory was laid out when it was made")

    def state_dict(self) -> dict[str, Any]:
        return self.algorithm.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.algorithm.load_state_dict(state_dict)
        self.algorithm.begin_step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)

    def __repr__(self) -> str:
        return f"DecentralizedOptimizer({self.optimizer!r}, topology={self.algorithm.topology.name!r})"

    # Schedulers read and write these; the wrapped optimizer may replace its own, so they are looked up each time.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.optimizer.defaults


def _topology(chosen: str | topology.Topology, size: int, seed: int) -> topology.Topology:
    if isinstance(chosen, topology.Topology):
        if chosen.size != size:
            raise ValueError(f"the topology is for {chosen.size} learners, but there are {size}")
        return chosen
    return topology.create(chosen, size, seed)
