"""SSGD, synchronous SGD (eq. 1 of the paper), by Horovod's all-reduce.

w(t+1) = w(t) - alpha mean_j grad L_j(w(t))
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import horovod.torch as hvd
import torch
from torch import Tensor, nn

from horovod_dpsgd.algorithms.base import Algorithm, Settings, averaged_buffers
from horovod_dpsgd.learners import Learners

BUCKET_BYTES = 25 * 2**20  # as PyTorch's DistributedDataParallel has it


class SSGD(Algorithm):
    """Synchronous SGD around any PyTorch optimizer: Horovod averages the gradients during the backward pass."""

    name = "ssgd"

    def __init__(
        self, optimizer: torch.optim.Optimizer, model: nn.Module, learners: Learners, settings: Settings
    ) -> None:
        if not hvd.is_initialized():
            _configure(learners.stall_timeout)
            hvd.init(comm=learners.world)
        for p in model.parameters():
            p.data = p.data.contiguous()  # Horovod refuses gradients in any other layout (channels-last, transposed)
        super().__init__(optimizer, model, learners, settings)
        # More than an Optimizer. Frozen parameters are named too, since `optimizer` may hold them.
        self.optimizer: Any = hvd.DistributedOptimizer(
            optimizer,
            named_parameters=model.named_parameters(),
            groups=buckets(self.parameters.parameters),
            backward_passes_per_step=settings.accumulate,  # it then sums over them, and reduces during the last
        )

    def begin_step(self) -> None:
        return None  # Horovod starts when the first gradient is ready

    def end_step(self) -> None:
        start = time.perf_counter()
        # Horovod looks for stalled learners too, but not while one of them is frozen, as all of it then waits for it.
        self.learners.wait_until(self._reduced, "the all-reduce of gradients")
        self.optimizer.synchronize()  # g_a = mean_j grad L_j(w(t))
        self.exposed_seconds = time.perf_counter() - start
        self.clip_gradients()  # the averaged one; until here Horovod's thread was at work on it
        with self.optimizer.skip_synchronize():
            self.optimizer.step()  # w(t+1) = w(t) - alpha g_a
        self.step += 1

    def _reduced(self) -> bool:
        """Whether Horovod has done all that it was given during the backward pass."""
        return all(hvd.poll(handle) for handle, _ in self.optimizer._handles.values() if handle is not None)

    def averaged(self) -> AbstractContextManager[None]:
        return averaged_buffers(self.model, self.learners)  # all learners hold w_a already

    def bytes_sent(self, step: int, between_nodes: bool = False) -> int:
        """Those of a ring all-reduce of the gradients."""
        return self.learners.ring_all_reduce_bytes(self.parameters.nbytes, between_nodes)


def buckets(parameters: Sequence[Tensor], nbytes: int = BUCKET_BYTES) -> list[list[Tensor]]:
    """The parameters in groups of up to `nbytes` (or one that is larger), in the order in which backward reaches them.

    Horovod by itself sums together what happens to be ready at a time, and the order of a sum is its rounding: two
    runs of the same seed drift apart. Fixed groups make a run repeatable, and still overlap with the backward pass.
    """
    groups: list[list[Tensor]] = []
    room = 0
    for p in reversed(parameters):
        size = p.numel() * p.element_size()
        if size > room or not groups:
            groups.append([])
            room = nbytes
        groups[-1].append(p)
        room -= size
    return groups


def _configure(stall_timeout: float) -> None:
    """What Horovod reads from the environment when it starts; what the user has set stays."""
    os.environ.setdefault("HOROVOD_DISABLE_GROUP_FUSION", "1")
    if stall_timeout:
        # It ends the job only if it looks for stalled learners more often than it gives them time.
        os.environ.setdefault("HOROVOD_STALL_SHUTDOWN_TIME_SECONDS", str(max(2, math.ceil(stall_timeout))))
        os.environ.setdefault("HOROVOD_STALL_CHECK_TIME_SECONDS", str(max(1, min(60, int(stall_timeout / 2)))))
