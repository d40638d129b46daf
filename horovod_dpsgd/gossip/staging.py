"""Copies between the model's weights and the window, where a learner's partners read and write: on a GPU they go beside
computation.

The host is ahead of the GPU: when it has queued a step's backward pass, most of that is still to be computed. So it may
wait for copies on a stream of their own without delaying anything that is computed meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Staging(ABC):
    """Weights out of the model and back. Copies out and in are each ordered among themselves.

    at_once: a copy out is complete when it has been started.
    """

    at_once: bool

    @abstractmethod
    def copy_out(self, weights: Tensor, area: Tensor) -> None:
        """Start to copy weights, as what was queued leaves them, to host memory of the same size and any dtype."""

    @abstractmethod
    def is_out(self) -> None:
        """Return when the last copy out is complete."""

    @abstractmethod
    def copies_in(self, areas: list[Tensor]) -> list[Tensor]:
        """Host memory on the weights' device. When this returns, the areas may be written over. The copies may be until
        the next call."""

    @abstractmethod
    def used(self) -> None:
        """All that reads the copies has been queued."""


def staging(device: torch.device) -> Staging:
    return _OnGPU(device) if device.type == "cuda" else _OnCPU()


class _OnCPU(Staging):
    at_once = True

    def copy_out(self, weights: Tensor, area: Tensor) -> None:
        area.copy_(weights)

    def is_out(self) -> None:
        return None

    def copies_in(self, areas: list[Tensor]) -> list[Tensor]:
        return areas

    def used(self) -> None:
        return None


class _OnGPU(Staging):
    at_once = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._out, self._in, self._used = (torch.cuda.Event() for _ in range(3))
        self._copies: list[Tensor] = []

    def copy_out(self, weights: Tensor, area: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            area.copy_(weights, non_blocking=True)
            self._out.record()

    def is_out(self) -> None:
        self._out.synchronize()

    def copies_in(self, areas: list[Tensor]) -> list[Tensor]:
        if len(self._copies) < len(areas):
            missing = len(areas) - len(self._copies)
            self._copies += [torch.empty_like(areas[0], device=self._device) for _ in range(missing)]
            # Their memory may have been freed by computation that is queued and has yet to use it.
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(self._used)  # by the step before, which these are written over
            for copy, area in zip(self._copies, areas, strict=False):
                copy.copy_(area, non_blocking=True)
            self._in.record()
        self._in.synchronize()
        return self._copies[: len(areas)]

    def used(self) -> None:
        self._used.record(torch.cuda.current_stream(self._device))
