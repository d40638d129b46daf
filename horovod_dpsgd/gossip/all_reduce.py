"""The exchange with everyone, on several nodes or from GPUs: w_s = w_a by an all-reduce that starts before the forward
pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from horovod_dpsgd.gossip.progress import completion
from horovod_dpsgd.gossip.slots import SlotExchange, mix_into
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters


class AllReduceExchange(SlotExchange):
    """Two buffers of weights: MPI sums one of all learners into the other, and then they change places."""

    def __init__(self, learners: Learners, parameters: FlatParameters) -> None:
        self._done: Callable[[], bool] = lambda: True
        slots = [parameters.zeros() for _ in range(2)]
        super().__init__(learners, parameters, slots)

    def begin(self, step: int) -> None:
        super().begin(step)
        self._sent = self.weights.cpu()  # the weights themselves, if they are not on a GPU; MPI reads them until mix()
        self._sum = self._slots[1 - self.slot] if self.weights.is_cpu else torch.empty_like(self._sent)
        request = self.learners.world.Iallreduce(self._sent.numpy(), self._sum.numpy())
        self._done = self._engine.submit(completion(request)).done if self._engine else request.Test

    def _wait_for_others(self) -> None:
        self.learners.wait_until(self._done, "the all-reduce of the weights")

    def _mixing(self, blocks: Sequence[Tensor], sizes: list[int]) -> Iterator[Tensor]:
        for block, total in zip(blocks, self._sum.to(self.weights.device).split(sizes), strict=True):
            mix_into(block, [total], [1 / self.learners.size])
            yield block

    def settle(self) -> None:
        self._wait_for_others()

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """Those of a ring all-reduce of the weights."""
        return self.learners.ring_all_reduce_bytes(self.parameters.nbytes, between_nodes)
