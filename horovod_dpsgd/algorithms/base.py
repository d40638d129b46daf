"""What every algorithm offers the training loop, and what they share.

One step, the same for all:

    algorithm.begin_step()      # communication on w_j(t) starts; the model holds the weights to take the gradient at
    loss = ...; loss.backward()
    algorithm.end_step()        # the model holds w_j(t+1)
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn

from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters, floating_buffers


class Algorithm(ABC):
    """A distributed optimization algorithm around a PyTorch optimizer and model. Constructing one is collective.

    optimizer: the one whose `param_groups` hold the learning rate; exposed_seconds: communication time of the last step
    that was not hidden behind computation.
    """

    name: str
    exposed_seconds = 0.0

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners) -> None:
        self.optimizer = optimizer
        self.model = model
        self.learners = learners
        self.parameters = FlatParameters(model)
        self.step = 0
        start_alike(model, self.parameters, learners)

    @abstractmethod
    def begin_step(self) -> None:
        """Start this step's communication; afterwards the model holds the weights to take the gradient at."""

    @abstractmethod
    def end_step(self) -> None:
        """Finish the communication and update the weights from the gradients in `p.grad`."""

    @abstractmethod
    def averaged(self) -> AbstractContextManager[None]:
        """Inside the block the model is w_a: mean weights, and mean BatchNorm statistics. Collective.

        It may be entered between steps, or between begin_step and end_step. Nothing done to the model inside it stays.
        """

    @abstractmethod
    def bytes_sent_per_step(self) -> int:
        """What this learner sends in a step, or lets others read of it."""

    def state_dict(self) -> dict[str, Any]:
        """All this learner needs to go on bit for bit, beside its data position. Valid between steps.

        The weights are copies; the optimizer's state, as PyTorch has it, are references to what training changes.
        """
        model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {"algorithm": self.name, "step": self.step, "model": model, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, saved by the same algorithm with as many learners. Collective."""
        if state["algorithm"] != self.name:
            raise ValueError(f"the state is of {state['algorithm']}, not of {self.name}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def close(self) -> None:
        """Leave the communication in order; the model keeps its weights. Collective."""
        return None


def start_alike(model: nn.Module, parameters: FlatParameters, learners: Learners) -> None:
    """Give all learners rank 0's weights and buffers. Raises ValueError if the models differ in names or shapes."""
    signature = hashlib.sha256(parameters.signature().encode()).hexdigest()
    different = [
        rank for rank, other in enumerate(learners.gather(signature)) if other != learners.broadcast(signature)
    ]
    if different:
        raise ValueError(f"the model of learner {different[0]} differs from learner 0's in parameter names or shapes")
    for tensor in [*model.parameters(), *model.buffers()]:
        learners.broadcast_(tensor)


@contextmanager
def averaged_buffers(model: nn.Module, learners: Learners) -> Iterator[None]:
    """Inside the block BatchNorm's running statistics are the means over learners. Collective."""
    buffers = floating_buffers(model)
    before = [b.clone() for b in buffers]
    for b in buffers:
        b.copy_(learners.mean(b))
    try:
        yield
    finally:
        for b, saved in zip(buffers, before, strict=True):
            b.copy_(saved)
