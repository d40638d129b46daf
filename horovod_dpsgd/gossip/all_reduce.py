"""The exchange with everyone: w_s = w_a by an all-reduce of the weights that starts before the forward pass."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import ProgressEngine, completion
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.waiting import wait_until


class AllReduceExchange:
    """Two buffers of weights: MPI sums one of all learners into the other, and then they change places."""

    def __init__(self, learners: Learners, parameters: FlatParameters) -> None:
        self.learners = learners
        self.parameters = parameters
        self._slots = [
            torch.zeros(parameters.numel, dtype=parameters.dtype, device=parameters.device) for _ in range(2)
        ]
        self._views = [parameters.views(slot) for slot in self._slots]
        self._done: Callable[[], bool] = lambda: True
        self._engine = ProgressEngine(learners) if learners.nodes > 1 else None
        parameters.gather(out=self._slots[0])
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
        """Start the all-reduce of w(step); returns at once."""
        if step != self.step:
            raise RuntimeError(f"step {step} begun, but the weights are those of step {self.step}")
        self._sent = self.weights.cpu()  # the weights themselves, if they are not on a GPU; MPI reads them until mix()
        self._sum = self._slots[1 - self.slot].cpu()
        request = self.learners.world.Iallreduce(self._sent.numpy(), self._sum.numpy())
        self._done = self._engine.submit(completion(request)).done if self._engine else request.Test

    def mix(self) -> None:
        """Wait for the all-reduce, then turn the model to w_s(step) = w_a(step)."""
        start = time.perf_counter()
        self.settle()
        self._turn_to(1 - self.slot)
        torch.div(self._sum.to(self.weights.device), self.learners.size, out=self.weights)
        self.exposed_seconds = time.perf_counter() - start

    def publish(self) -> None:
        """Say that the model's weights are now w(step + 1)."""
        self.step += 1

    def settle(self) -> None:
        """Return when MPI no longer reads the weights: what `begin` started is done. Collective."""
        wait_until(self._done, self._describe, self.learners.stall_timeout)

    def bytes_sent(self, step: int) -> int:
        """Those of a ring all-reduce of the weights."""
        return self.learners.ring_all_reduce_bytes(self.parameters.nbytes)

    def close(self) -> None:
        """Leave the exchange; the model keeps its weights. Collective."""
        self.settle()
        if self._engine:
            self._engine.close()

    def _turn_to(self, slot: int) -> None:
        self.slot = slot
        self.parameters.point_to(self._views[slot])

    def _describe(self) -> str:
        return f"learner {self.learners.rank}, step {self.step}: not everyone has joined the all-reduce of the weights"
