"""What all exchanges have in common: two slots of weights, and mixing from one into the other, block by block."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import ProgressEngine
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters


class BlockUpdate(Protocol):
    """Something to be done to each block of mixed weights while it is in the cache: the optimizer's update.

    sizes: the elements of each block of the flat buffer, in order.
    """

    sizes: list[int]

    def __call__(self, index: int, weights: Tensor) -> None: ...


class SlotExchange(ABC):
    """A step's exchange of weights (see `gossip.exchange`). The parameters of the model are views of the current slot.

    exposed_seconds: of the last step's communication, what computation did not hide: waiting and mixing.
    """

    def __init__(self, learners: Learners, parameters: FlatParameters, slots: Sequence[Tensor]) -> None:
        self.learners = learners
        self.parameters = parameters
        self._slots = slots
        self._views = [parameters.views(slot) for slot in slots]
        self._engine = ProgressEngine(learners) if learners.nodes > 1 else None
        parameters.gather(out=slots[0])
        self._turn_to(0)
        self.restart(0)

    @property
    def weights(self) -> Tensor:
        """w_j(t), flat [numel]; the model's parameters are views of it."""
        return self._slots[self.slot]

    def restart(self, step: int) -> None:
        """Begin (again) at `step` with the weights the model has now. Collective, and after `settle`."""
        self.step = step
        self.exposed_seconds = 0.0

    def begin(self, step: int) -> None:
        """Start to read the others' w(step); returns at once."""
        if step != self.step:
            raise RuntimeError(f"step {step} begun, but the weights are those of step {self.step}")

    def mix(self, update: BlockUpdate | None = None) -> None:
        """Wait for what is still missing, then turn the model to w_s(step) = sum_k T[j,k] w_k(step).

        `update`, if given, is called on every block of it as soon as the block is mixed.
        """
        start = time.perf_counter()
        self._wait_for_others()
        mixes = self._mixes()
        if mixes:
            self._turn_to(1 - self.slot)
        sizes = [self.parameters.numel] if update is None else update.sizes
        blocks = self.weights.split(sizes)
        self.exposed_seconds = 0.0
        for index, block in enumerate(self._mixing(blocks, sizes) if mixes else blocks):
            self.exposed_seconds += time.perf_counter() - start
            if update is not None:
                update(index, block)
            start = time.perf_counter()

    def publish(self) -> None:
        """Say that the model's weights are now w(step + 1)."""
        self.step += 1

    @abstractmethod
    def settle(self) -> None:
        """Return when no learner reads any more: what `begin` started is done, and not used. Collective."""

    @abstractmethod
    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """Bytes that others read of this learner at `step`, or that it sends; between_nodes: only to other nodes."""

    def close(self) -> None:
        """Leave the exchange; the model keeps its weights, in memory of its own. Collective."""
        own = self.weights.clone()
        self.settle()
        if self._engine:
            self._engine.close()
        self._free()
        self._slots, self._views = [own], [self.parameters.views(own)]
        self._turn_to(0)

    @abstractmethod
    def _wait_for_others(self) -> None:
        """Until what is to be mixed is there, and the slot that is written over is read by nobody."""

    def _mixes(self) -> bool:
        """Whether this learner has anything to mix this step."""
        return True

    @abstractmethod
    def _mixing(self, blocks: Sequence[Tensor], sizes: list[int]) -> Iterator[Tensor]:
        """Write w_s into `blocks` of the current slot (the other one holds w), and yield each when it is written."""

    def _free(self) -> None:
        """Release what was allocated. Collective."""
        return None

    def _here(self) -> str:
        """For messages about those who are waited for."""
        return f"learner {self.learners.rank}, step {self.step}"

    def _turn_to(self, slot: int) -> None:
        self.slot = slot
        self.parameters.point_to(self._views[slot])


def mix_into(out: Tensor, terms: Sequence[Tensor], coefficients: Sequence[float]) -> None:
    """out = sum of coefficient x term, all of one shape; added up in the order given."""
    if len(terms) == 2 and coefficients[0] == coefficients[1] == 0.5 and terms[0].dtype == terms[1].dtype:
        torch.lerp(terms[0], terms[1], 0.5, out=out)  # one pass: two reads, one write
        return
    torch.mul(terms[0], coefficients[0], out=out)
    for term, coefficient in zip(terms[1:], coefficients[1:], strict=True):
        out.add_(term, alpha=coefficient)
