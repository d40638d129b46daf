"""DPSGD's optimizer state: each learner's own, or mixed as the weights are.

    m_s,j(t) = sum_k T_t[j,k] m_k(t)      for momentum, and for both moments of Adam and its kin

From there the optimizer goes on with its own gradient: for Adam m_j(t+1) = beta_1 m_s,j(t) + (1 - beta_1) g_j. The
paper does not say what becomes of the moments; this is an option, and three times the bytes for Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from horovod_dpsgd.algorithms.blockwise import KERNELS
from horovod_dpsgd.gossip import SlotExchange
from horovod_dpsgd.parameters import FlatParameters


class LocalMoments:
    """The state stays where it is."""

    exposed_seconds = 0.0

    def begin(self, step: int) -> None:
        """The step has begun: start to read the others' moments."""

    def mix(self) -> None:
        """Leave the mixed moments in the optimizer's state."""

    def publish(self) -> None:
        """The optimizer has made its step: the moments are those of the next one."""

    def settle(self) -> None:
        """Return when nobody reads any more. Collective."""

    def restart(self, step: int) -> None:
        """Begin again at `step` with the state that the optimizer has now. Collective, and after `settle`."""

    def copied(self, state: dict[str, Any]) -> dict[str, Any]:
        """The optimizer's state dict, its moments copied if they lie where others read them."""
        return state

    def bytes_sent(self, step: int, between_nodes: bool) -> int:
        return 0

    def close(self) -> None:
        """Leave the moments to the optimizer. Collective."""


class MixedMoments(LocalMoments):
    """The state's tensors lie in an exchange of their own, as if they were the parameters of a model.

    Raises ValueError for an optimizer of another class than SGD, Adam, AdamW and LAMB, or one that keeps no moments.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, create_exchange: Callable[[FlatParameters], SlotExchange]
    ) -> None:
        self.optimizer = optimizer
        self._places: list[tuple[Tensor, str]] = []  # the parameter whose state has a tensor of this name
        kernel = KERNELS.get(type(optimizer))
        for group in optimizer.param_groups:
            if kernel is None or not kernel.takes(group) or not kernel.names(group):
                raise ValueError(f"{type(optimizer).__name__} with these settings keeps no moments that can be mixed")
            for p in filter(lambda p: p.requires_grad, group["params"]):
                kernel.start(group, p, optimizer.state[p])
                self._places += [(p, name) for name in kernel.names(group)]
        # In the parameters' strides, in which their updates are computed: torch gives momentum those of gradients
        tensors = nn.ParameterList(torch.empty_like(p).copy_(optimizer.state[p][name]) for p, name in self._places)
        self._parameters = FlatParameters(tensors)
        self._exchange = create_exchange(self._parameters)
        self._attach()

    @property
    def exposed_seconds(self) -> float:  # type: ignore[override]
        return self._exchange.exposed_seconds

    def begin(self, step: int) -> None:
        self._exchange.begin(step)

    def mix(self) -> None:
        self._exchange.mix()
        self._attach()

    def publish(self) -> None:
        self._exchange.publish()

    def settle(self) -> None:
        self._exchange.settle()

    def restart(self, step: int) -> None:
        for tensor, (p, name) in zip(self._parameters.parameters, self._places, strict=True):
            tensor.data.copy_(self.optimizer.state[p][name])
        self._attach()
        self._exchange.restart(step)

    def copied(self, state: dict[str, Any]) -> dict[str, Any]:
        """Copied: a file of them would hold both slots whole, and the slots end with the exchange."""
        return state | {
            "state": {p: {name: _copy(value) for name, value in of_p.items()} for p, of_p in state["state"].items()}
        }

    def bytes_sent(self, step: int, between_nodes: bool) -> int:
        return self._exchange.bytes_sent(step, between_nodes)

    def close(self) -> None:
        self._exchange.close()
        self._attach()

    def _attach(self) -> None:
        """The optimizer's state is what the exchange holds now, in the slot of now."""
        for tensor, (p, name) in zip(self._parameters.parameters, self._places, strict=True):
            self.optimizer.state[p][name] = tensor.data


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
