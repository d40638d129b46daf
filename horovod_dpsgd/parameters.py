"""A model's parameters as one flat buffer, and back.

The parameters of the model become views of a flat buffer, so that a whole model is mixed, sent or copied by one call,
and turning the model to other weights moves pointers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

ALIGNMENT = 64  # bytes: a cache line, and enough for every vector unit
SUPPORTED = (torch.float32, torch.float64)


class FlatParameters:
    """The layout of a model's trainable parameters in a flat buffer of `numel` elements (padding, always zero,
    included).

    Tied parameters appear once, frozen ones not at all; a parameter keeps its strides (channels-last, transposed).
    Raises ValueError for a model without trainable parameters, of mixed dtypes, or of a dtype other than float32 and
    float64 (for mixed precision keep float32 weights and use torch.autocast).
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameters")
        self.names = [name for name, _ in named]
        self.parameters = [p for _, p in named]
        self.dtype = self.parameters[0].dtype
        self.device = self.parameters[0].device
        for name, p in named:
            if p.dtype != self.dtype or p.device != self.device or p.dtype not in SUPPORTED:
                raise ValueError(
                    f"parameter {name} is {p.dtype} on {p.device}: all must be float32 (or all float64) on one device; "
                    "for mixed precision keep the weights in float32 and use torch.autocast"
                )
        aligned = ALIGNMENT // self.dtype.itemsize
        self.offsets = []
        self.numel = 0
        for p in self.parameters:
            self.offsets.append(self.numel)
            self.numel += -(-p.numel() // aligned) * aligned

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def views(self, flat: Tensor) -> list[Tensor]:
        """A view of `flat` [numel] for every parameter, in its shape and strides."""
        return [
            flat.as_strided(p.shape, _dense_strides(p), flat.storage_offset() + offset)
            for p, offset in zip(self.parameters, self.offsets, strict=True)
        ]

    def zeros(self) -> Tensor:
        """A flat buffer [numel] on the parameters' device."""
        return torch.zeros(self.numel, dtype=self.dtype, device=self.device)

    def gather(self, tensors: list[Tensor] | None = None, out: Tensor | None = None) -> Tensor:
        """The parameters' values (or `tensors`, one for each: gradients, say) as a flat buffer [numel]."""
        flat = self.zeros() if out is None else out.zero_()
        with torch.no_grad():
            for view, tensor in zip(self.views(flat), tensors or self.parameters, strict=True):
                view.copy_(tensor)
        return flat

    def point_to(self, views: list[Tensor]) -> None:
        """Let the parameters be these views; no value is copied."""
        for p, view in zip(self.parameters, views, strict=True):
            p.data = view

    @contextmanager
    def holding(self, flat: Tensor) -> Iterator[None]:
        """Inside the block the model has the weights `flat` [numel]; after it, what it had before."""
        before = [p.data for p in self.parameters]
        self.point_to(self.views(flat))
        try:
            yield
        finally:
            self.point_to(before)


def _dense_strides(p: Tensor) -> tuple[int, ...]:
    """The strides of `p` if its elements fill its memory without gaps or overlap, else those of a contiguous tensor."""
    return torch.empty_like(p, device="meta").stride()


def floating_buffers(model: nn.Module) -> list[Tensor]:
    """What a model carries beside its weights and must be averaged with them: BatchNorm's running statistics."""
    return [b for b in model.buffers() if b.is_floating_point()]
