"""An optimizer's update in blocks of the flat buffer, so that it can follow the mixing while a block is in cache.

Mixing writes all weights, and the optimizer reads and writes them again: apart, they cross the memory bus twice. Here
the one who mixes writes a block of w_s,j(t), and has it updated before going on to the next. The update is one pass
over the block, its gradients and its state, where torch's optimizers make several unless told fused=True.

    if update.applies():
        update.begin()
        for index, block in enumerate(weights.split(update.sizes)):
            ...  # mix into block
            update(index, block)
        update.end()

The weights are then what `optimizer.step()` would have made of them, to rounding, and so is the state that is left in
the optimizer: the two may take turns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from horovod_dpsgd import lamb
from horovod_dpsgd.lamb import LAMB
from horovod_dpsgd.parameters import ALIGNMENT, FlatParameters

# For each thread: 2 MiB of float32. Blocks of a quarter of it would stay in faster caches, but each block costs some
# 8 us of calls, in which no memory is fetched, and streams that start anew; far larger ones fall out of all caches.
BLOCK_ELEMENTS = 2**19

Group = dict[str, Any]  # one of an optimizer's param_groups


@dataclass
class Pieces:
    """What one kernel call works on: pieces, flat, of a group's parameters that lie in one block.

    places: the pieces' numbers in the block; states: the pieces of each of the state's tensors; steps: the counters of
    the parameters that they are pieces of.
    """

    group: Group
    states: tuple[list[Tensor], ...]
    places: list[int] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)


class Kernel(ABC):
    """The update of one kind of optimizer.

    The torch._fused_ functions are what torch's optimizers call when made with fused=True. In spite of the underscore
    they are operators with a fixed schema, which exported programs name; they take tensors on the CPU since torch 2.4.
    They run through memory whatever the strides are, hence the flat pieces.

    numbers: hyper-parameters that must be plain numbers, as betas must; flags: those that must be off, or 0;
    whole: whether a parameter must not be cut.
    """

    numbers: tuple[str, ...]
    flags: tuple[str, ...] = ()
    whole = False

    def takes(self, group: Group) -> bool:
        """Whether this is the group's update, with its hyper-parameters of now."""
        numbers = [group[name] for name in self.numbers] + list(group.get("betas", ()))
        return all(isinstance(x, float | int) for x in numbers) and not any(group[name] for name in self.flags)

    @abstractmethod
    def names(self, group: Group) -> tuple[str, ...]:
        """The names of the state's tensors that have a parameter's shape."""

    @abstractmethod
    def start(self, group: Group, p: Tensor, state: dict[str, Any]) -> None:
        """Give `p` the state that its optimizer would give it, if it has none yet."""

    @abstractmethod
    def update(self, weights: list[Tensor], pieces: Pieces) -> None:
        """Update these weights, and the state, in place."""


class SGDKernel(Kernel):
    numbers = ("lr", "momentum", "weight_decay")
    flags = ("dampening", "differentiable")  # without dampening, torch's first step is one from a buffer of zeros

    def names(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def start(self, group: Group, p: Tensor, state: dict[str, Any]) -> None:
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = torch.zeros_like(p)

    def update(self, weights: list[Tensor], pieces: Pieces) -> None:
        group = pieces.group
        torch._fused_sgd_(
            weights,
            pieces.gradients,
            pieces.states[0] if pieces.states else [],
            lr=group["lr"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            dampening=0.0,
            is_first_step=False,
        )


class AdamKernel(Kernel):
    numbers = ("lr", "eps", "weight_decay")
    flags: tuple[str, ...] = ("amsgrad", "capturable", "differentiable")

    def names(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def start(self, group: Group, p: Tensor, state: dict[str, Any]) -> None:
        if not state:
            step = torch.zeros((), dtype=torch.float32 if group.get("fused") else torch.get_default_dtype())
            state.update(step=step, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))

    def update(self, weights: list[Tensor], pieces: Pieces) -> None:
        group = pieces.group
        self.operator(group)(
            weights,
            pieces.gradients,
            *pieces.states,
            [],
            pieces.steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            amsgrad=False,
            maximize=group["maximize"],
        )

    def operator(self, group: Group) -> Any:
        decoupled = group.get("decoupled_weight_decay", False)  # since torch 2.7
        return torch._fused_adamw_ if decoupled else torch._fused_adam_


class AdamWKernel(AdamKernel):
    def operator(self, group: Group) -> Any:
        return torch._fused_adamw_


class LAMBKernel(AdamKernel):
    flags = ()
    whole = True  # a trust ratio is of a whole parameter

    def update(self, weights: list[Tensor], pieces: Pieces) -> None:
        directions = list(torch._foreach_mul(weights, pieces.group["weight_decay"]))
        exp_avgs, exp_avg_sqs = pieces.states
        numbers = lamb.adam_numbers(pieces.group)
        torch._fused_adam_(directions, pieces.gradients, exp_avgs, exp_avg_sqs, [], pieces.steps, **numbers)
        lamb.move(pieces.group, weights, directions)


# Subclasses of these are not among them: they may override anything.
KERNELS: dict[type[Optimizer], Kernel] = {
    SGD: SGDKernel(),
    Adam: AdamKernel(),
    AdamW: AdamWKernel(),
    LAMB: LAMBKernel(),
}


def blockwise(optimizer: Optimizer, parameters: FlatParameters, block: int | None = None) -> BlockwiseUpdate | None:
    """The update of `optimizer` in blocks of up to `block` elements, or None if only its own `step` can do it.

    block: by default as many as suit the threads PyTorch has now. LAMB's blocks hold whole parameters, however large.
    """
    if type(optimizer) not in KERNELS or parameters.device.type != "cpu":
        return None
    return BlockwiseUpdate(optimizer, parameters, block or BLOCK_ELEMENTS * torch.get_num_threads())


class BlockwiseUpdate:
    """The optimizer's update, cut into blocks of the flat buffer of `FlatParameters`.

    sizes: elements of each block, in order; they add up to `parameters.numel`, and stay for the life of the object.

    A step is `begin`, a call for every block, in any order, and `end`. It does what `optimizer.step()` does to weights
    and state, and nothing else: ask `applies` before each step whether that is all.
    """

    def __init__(self, optimizer: Optimizer, parameters: FlatParameters, block: int) -> None:
        self.optimizer = optimizer
        self.parameters = parameters
        self.kernel = KERNELS[type(optimizer)]
        line = ALIGNMENT // parameters.dtype.itemsize
        extents = [end - start for start, end in pairwise([*parameters.offsets, parameters.numel])]
        blocks = cut(extents, -(-block // line) * line, self.kernel.whole)
        self.sizes = [sum(size for _, size in pieces) for pieces in blocks]
        flat = torch.empty(parameters.numel, dtype=parameters.dtype, device="meta")
        self._layouts: dict[Tensor, _Layout] = {
            p: _Layout(view) for p, view in zip(parameters.parameters, parameters.views(flat), strict=True)
        }
        self._splits = [self._split(index, pieces) for index, pieces in enumerate(blocks)]
        self._work: list[dict[int, Pieces]] = []  # for each block, by the group's number
        self._updated: list[Tensor] = []

    def applies(self) -> bool:
        """Whether this step can be done by blocks: all its parameters can, and nobody hooks into `optimizer.step`."""
        return not _is_watched(self.optimizer) and all(
            self.kernel.takes(group) and all(self._takes(p) for p in group["params"])
            for group in self.optimizer.param_groups
        )

    @torch.no_grad()
    def begin(self) -> None:
        """Look at this step's gradients and hyper-parameters, and count the step in the optimizer's state."""
        self._work, self._updated = [{} for _ in self.sizes], []
        steps: list[Tensor] = []
        for number, group in enumerate(self.optimizer.param_groups):
            for p in group["params"]:
                if p.grad is not None:  # torch, too, leaves a parameter without a gradient as it is
                    self._add(number, group, p, steps)
                    self._updated.append(p)
        if steps:
            torch._foreach_add_(steps, torch.ones(()), alpha=1.0)  # a number would be made a tensor for each

    def __call__(self, index: int, weights: Tensor) -> None:
        """Update block `index` in place, of which `weights` [sizes[index]] are the mixed weights."""
        pieces = weights.split_with_sizes(self._splits[index])
        for work in self._work[index].values():
            self.kernel.update([pieces[place] for place in work.places], work)

    def end(self) -> None:
        """Leave the optimizer as after its own step, and the gradients to whoever wants to free them."""
        self.optimizer._opt_called = True  # type: ignore[attr-defined]  # else learning-rate schedulers warn
        for p in self._updated:
            torch.autograd.graph.increment_version(p)  # so that autograd sees that weights it saved have changed
        self._work, self._updated = [], []

    def _takes(self, p: Tensor) -> bool:
        if p.grad is None:
            return True
        return p in self._layouts and p.grad.layout is torch.strided

    def _add(self, number: int, group: Group, p: Tensor, steps: list[Tensor]) -> None:
        """Add the pieces of `p` to the work on the blocks that it lies in, and its counter, if any, to `steps`."""
        layout, names = self._layouts[p], self.kernel.names(group)
        state = self.optimizer.state[p] if names else {}
        if names:
            self.kernel.start(group, p, state)
        assert p.grad is not None
        gradients = layout.pieces(layout.of(p.grad))
        states = [layout.state_pieces(state, name) for name in names]
        step = state.get("step")
        if step is not None:
            steps.append(step)
        for piece, (index, place) in enumerate(layout.places):
            work = self._work[index].get(number)
            if work is None:
                work = self._work[index][number] = Pieces(group, tuple([] for _ in names))
            work.places.append(place)
            work.gradients.append(gradients[piece])
            for pieces, of_state in zip(work.states, states, strict=True):
                pieces.append(of_state[piece])
            if step is not None:
                work.steps.append(step)

    def _split(self, index: int, pieces: list[tuple[int, int]]) -> list[int]:
        """The sizes of a block's pieces, each followed by that of the padding after it."""
        split: list[int] = []
        for number, size in pieces:
            layout = self._layouts[self.parameters.parameters[number]]
            length = layout.add(size, index, len(split))
            split += [length, size - length]
        return split


class _Layout:
    """How a parameter lies in the flat buffer, and which pieces it is cut into.

    places: of each piece, the number of its block and its own number in it.
    """

    def __init__(self, view: Tensor) -> None:
        self.shape, self.strides, self.numel = view.shape, view.stride(), view.numel()
        self.lengths: list[int] = []
        self.places: list[tuple[int, int]] = []
        self._states: dict[str, tuple[int, Sequence[Tensor]]] = {}

    def add(self, size: int, block: int, place: int) -> int:
        """Add the next piece, of `size` elements with padding; how many it has without."""
        length = min(size, self.numel - sum(self.lengths))
        self.lengths.append(length)
        self.places.append((block, place))
        return length

    def of(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy of it, with the parameter's strides."""
        if tensor.stride() == self.strides:
            return tensor
        strides = zip(tensor.stride(), self.strides, self.shape, strict=True)
        if all(a == b or size == 1 for a, b, size in strides):  # what never counts need not agree
            return tensor
        return torch.empty_strided(self.shape, self.strides, dtype=tensor.dtype).copy_(tensor)

    def pieces(self, tensor: Tensor) -> Sequence[Tensor]:
        """Flat views of the pieces of a tensor that has the parameter's strides."""
        flat = tensor.as_strided((self.numel,), (1,))
        return flat.split_with_sizes(self.lengths) if len(self.lengths) > 1 else (flat,)  # most are not cut

    def state_pieces(self, state: dict[str, Any], name: str) -> Sequence[Tensor]:
        """The pieces of state[name], kept from step to step while its memory is where it was."""
        tensor: Tensor = state[name]
        known = self._states.get(name)
        if known is None or known[0] != tensor.data_ptr():
            tensor = state[name] = self.of(tensor)  # torch's own step gives a momentum buffer the gradient's strides
            known = self._states[name] = (tensor.data_ptr(), self.pieces(tensor))
        return known[1]


def cut(extents: list[int], block: int, whole: bool = False) -> list[list[tuple[int, int]]]:
    """Cut parameters of so many elements, one after the other, into blocks of `block` elements, the last one less.

    Each block is a list of (number of the parameter, elements of it). whole: cut no parameter; a block is then closed
    before one that does not fit, and a larger parameter is a block of its own.
    """
    blocks: list[list[tuple[int, int]]] = []
    room = 0
    for number, left in enumerate(extents):
        while left:
            if room == 0 or (whole and left > room):
                blocks.append([])
                room = block
            size = left if whole else min(left, room)
            blocks[-1].append((number, size))
            left -= size
            room -= size
    return blocks


def _is_watched(optimizer: Optimizer) -> bool:
    """Whether a call of `optimizer.step` does more, or something else, than the update of its class."""
    hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    scaled = getattr(optimizer, "grad_scale", None) is not None or getattr(optimizer, "found_inf", None) is not None
    step = vars(optimizer).get("step")  # set by learning-rate schedulers, who only want to know that it was called
    scheduled = hasattr(step, "_wrapped_by_lr_sched") and getattr(step, "__wrapped__", None) is type(optimizer).step
    replaced = step is not None and not scheduled
    return bool(hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks or scaled or replaced)
