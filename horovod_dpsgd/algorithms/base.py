"""What every algorithm offers the training loop, and what they share.

One step, the same for all:

    algorithm.begin_step()      # communication on w_j(t) starts; the model holds the weights to take the gradient at
    loss = ...; loss.backward()
    algorithm.end_step()        # the model holds w_j(t+1)
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from horovod_dpsgd.errors import ModelError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters, floating_buffers
from horovod_dpsgd.topology import Topology


@dataclass(frozen=True)
class Settings:
    """What algorithms may be told beside the optimizer and the model; each takes what concerns it.

    topology: who mixes with whom; compressed: exchange weights rounded to bfloat16; noise_std: standard deviation of
    SSGD*'s weight noise; seed: of all that is random;
    clip_norm: the largest 2-norm of the gradient that an update is made from (None: any); accumulate: backward passes a
    step; mix_moments: whether DPSGD mixes the optimizer's moments as it does the weights.
    """

    topology: Topology | None = None
    compressed: bool = False
    noise_std: float = 0.0
    seed: int = 0
    clip_norm: float | None = None
    accumulate: int = 1
    mix_moments: bool = False


class Algorithm(ABC):
    """A distributed optimization algorithm around a PyTorch optimizer and model. Constructing one is collective.

    optimizer: the one whose `param_groups` hold the learning rate; topology: who mixes with whom, if anybody does;
    exposed_seconds: communication time of the last step that was not hidden behind computation; asynchronous: whether
    learners take steps without regard to each other's, so that some take more of them.
    """

    name: str
    asynchronous = False
    topology: Topology | None = None
    exposed_seconds = 0.0

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        self.optimizer = optimizer
        self.model = model
        self.learners = learners
        self.settings = settings
        self.parameters = FlatParameters(model)
        self.step = 0
        start_alike(model, learners)

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
    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """What this learner sends at `step`, or lets others read of it; between_nodes: of that, to other nodes."""

    @property
    def staleness(self) -> Counter[int] | None:
        """Of an asynchronous algorithm: how often how many averages had changed the weights between a gradient and its
        use, on this learner."""
        return None

    @property
    def skipped_averages(self) -> int | None:
        """Of an asynchronous algorithm: how many averages this learner did not begin, because an earlier one, with
        another node, was still under way."""
        return None

    def settle(self) -> None:
        """Return when no other learner will change this one's weights, in between steps. Collective.

        Only under an asynchronous algorithm there is anything to wait for.
        """
        return None

    def clip_gradients(self) -> None:
        """Scale the gradients in `p.grad` down to `settings.clip_norm`, if they are larger."""
        if self.settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.parameters, self.settings.clip_norm)

    def state_dict(self) -> dict[str, Any]:
        """All this learner needs to go on bit for bit, beside its data position. Valid between steps, after `settle`.

        The weights are copies; the optimizer's state, as PyTorch has it, are references to what training changes.
        """
        model = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        return {"algorithm": self.name, "step": self.step, "model": model, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state`, saved by the same algorithm with as many learners. Collective.

        Raises ValueError for the state of another algorithm.
        """
        if state.get("algorithm") != self.name:
            raise ValueError(f"this is no state of {self.name} (its algorithm is {state.get('algorithm')!r})")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def close(self) -> None:
        """Leave the communication in order; the model keeps its weights. Collective."""
        return None


def start_alike(model: nn.Module, learners: Learners) -> None:
    """Give all learners rank 0's weights and buffers. Raises ModelError, on all, if their models differ in shape."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    layout = " ".join(f"{name}{tuple(t.shape)}{t.dtype}{t.requires_grad}" for name, t in tensors.items())
    everyone = learners.gather(hashlib.sha256(layout.encode()).hexdigest())
    different = [rank for rank, other in enumerate(everyone) if other != everyone[0]]
    if different:
        raise ModelError(f"the model of learner {different[0]} differs from learner 0's in parameter names or shapes")
    for tensor in tensors.values():
        learners.broadcast_(tensor)


@contextmanager
def averaged_buffers(model: nn.Module, learners: Learners) -> Iterator[None]:
    """Inside the block BatchNorm's running statistics, and all float buffers, are means over learners; afterwards all
    buffers are as before. Collective."""
    before = [(b, b.clone()) for b in model.buffers()]
    for b in floating_buffers(model):
        b.copy_(learners.mean(b.double()))
    try:
        yield
    finally:
        for b, saved in before:
            b.copy_(saved)
