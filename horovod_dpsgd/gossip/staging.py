"""Copies between the model's weights and the window, where partners read them: on a GPU they go beside computation.

The host is ahead of the GPU: when it has queued a step's backward pass, most of that is still to be computed. So it may
wait for copies on a stream of their own without delaying anything that is computed meanwhile.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Staging(ABC):
    """Weights out of the model and back; copies are done in the order they were started.

    at_once: a copy out is complete when it has been started.
    """

    at_once: bool

    @abstractmethod
    def copy_out(self, weights: Tensor, area: Tensor) -> None:
        """Start to copy weights, as what was queued leaves them, to host memory of the same size and any dtype."""

    @abstractmethod
    def finish_copy_out(self) -> None:
        """Return when the last copy out is complete."""

    @abstractmethod
    def copy_in(self, areas: list[Tensor]) -> list[Tensor]:
        """Host memory on the weights' device. When this returns, the areas may be written over; the copies may be from
        the end of the next copy out on, which waits for all that was queued to read them."""


def staging(device: torch.device) -> Staging:
    return _OnGPU(device) if device.type == "cuda" else _OnCPU()


class _OnCPU(Staging):
    at_once = True

    def copy_out(self, weights: Tensor, area: Tensor) -> None:
        area.copy_(weights)

    def finish_copy_out(self) -> None:
        return None

    def copy_in(self, areas: list[Tensor]) -> list[Tensor]:
        return areas


class _OnGPU(Staging):
    at_once = False

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)
        self._out, self._in = (torch.cuda.Event(blocking=True) for _ in range(2))  # the host sleeps, and does not spin
        self._copies: list[Tensor] = []

    def copy_out(self, weights: Tensor, area: Tensor) -> None:
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            area.copy_(weights, non_blocking=True)
            self._out.record()

    def finish_copy_out(self) -> None:
        self._out.synchronize()

    def copy_in(self, areas: list[Tensor]) -> list[Tensor]:
        with torch.cuda.stream(self._stream):
            while len(self._copies) < len(areas):
                # Memory of this stream's: any other may have been freed by computation that has yet to use it
                self._copies.append(torch.empty_like(areas[0], device=self._device))
            for copy, area in zip(self._copies, areas, strict=False):
                copy.copy_(area, non_blocking=True)
            self._in.record()
        self._in.synchronize()
        return self._copies[: len(areas)]
