"""Networks of one shape as one: all their weights in one tensor, all their losses by one call."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from horovod_dpsgd.errors import ModelError
from horovod_dpsgd.parameters import FlatParameters, floating_buffers
from horovod_dpsgd.training import Batch, Task

LSTM_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")  # of a layer and direction


class Networks:
    """Losses of networks that differ in their weights alone. Raises ModelError for what cannot be stacked."""

    def __init__(self, task: Task, model: nn.Module, device: str) -> None:
        if floating_buffers(model):
            raise ModelError("networks with BatchNorm cannot be stacked: it changes its statistics in place")
        layout = FlatParameters(model)
        self._names = [f"model.{name}" for name in layout.names]
        self._shapes = [p.shape for p in layout.parameters]
        ends = [*layout.offsets[1:], layout.numel]
        taken = [p.numel() for p in layout.parameters]
        self._sizes = [
            size
            for offset, end, used in zip(layout.offsets, ends, taken, strict=True)
            for size in (used, end - offset - used)
        ]
        self._loss = _Loss(task, unrolled(model)).to(device)

    @staticmethod
    def flat(model: nn.Module) -> Tensor:
        """The model's weights, [numel], as `FlatParameters` has them."""
        return FlatParameters(model).gather()

    def losses(self, weights: Tensor, batch: Batch, shared: bool = False) -> Tensor:
        """Mean losses [S] of networks with weights [S, numel] on batches whose tensors are [S, B, ...].

        shared: the batch is one, [B, ...], for all, and the networks are in evaluation mode.
        """
        parts = weights.split(self._sizes, dim=1)[::2]  # between them is padding
        named = {
            name: part.unflatten(1, shape) for name, part, shape in zip(self._names, parts, self._shapes, strict=True)
        }

        def one(parameters: dict[str, Tensor], *of_batch: Tensor) -> Tensor:
            loss: Tensor = functional_call(self._loss, parameters, of_batch)
            return loss

        places = (0, *[None if shared else 0] * len(batch))
        self._loss.train(not shared)
        # The fused attention kernels are for one network: the CPU's refuse many, and on an H200 blocks of 32 failed
        # ("LSE is not correctly aligned")
        with sdpa_kernel(SDPBackend.MATH):
            losses: Tensor = vmap(one, in_dims=places, randomness="different")(named, *batch)
        return losses


class _Loss(nn.Module):
    """The task's loss as a module, so that it can be called with other weights than the model's own."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self._task, self.model = task, model

    def forward(self, *batch: Tensor) -> Tensor:
        return self._task.loss(self.model, batch)


def unrolled(model: nn.Module) -> nn.Module:
    """The model, with an `UnrolledLSTM` for every LSTM in it: what PyTorch's calls can be done for one network only."""
    for name, child in model.named_children():
        if isinstance(child, nn.LSTM):
            setattr(model, name, UnrolledLSTM(child))
        else:
            unrolled(child)
    return model


class UnrolledLSTM(nn.Module):
    """What a bidirectional nn.LSTM computes, step by step; its parameters keep their names. Both directions go at once.

    Raises ModelError for one of another kind.
    """

    def __init__(self, lstm: nn.LSTM) -> None:
        super().__init__()
        if not (lstm.bidirectional and lstm.batch_first and lstm.bias) or lstm.dropout or lstm.proj_size:
            raise ModelError("only bidirectional LSTMs, batch first, without dropout and projection, can be stacked")
        self.layers, self.hidden = lstm.num_layers, lstm.hidden_size
        for name, p in lstm.named_parameters():
            self.register_parameter(name, p)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[B, T, input] to [B, T, 2 hidden]."""
        for layer in range(self.layers):
            x = self._layer(x, *(self._both(f"{kind}_l{layer}") for kind in LSTM_WEIGHTS))
        return x, None

    def _both(self, name: str) -> Tensor:
        return torch.stack([getattr(self, name), getattr(self, f"{name}_reverse")])

    def _layer(self, x: Tensor, of_input: Tensor, of_hidden: Tensor, bias: Tensor, other_bias: Tensor) -> Tensor:
        both_ways = torch.stack([x, x.flip(1)]).flatten(1, 2)  # [2, B T, input]
        gates = both_ways @ of_input.mT + (bias + other_bias).unsqueeze(1)
        steps = gates.unflatten(1, x.shape[:2]).unbind(2)  # T times [2, B, 4 hidden]
        hidden, cell = torch.zeros(2, 2, len(x), self.hidden, device=x.device, dtype=x.dtype).unbind()
        outputs: list[Tensor] = []
        for step in steps:
            put_in, forget, new, put_out = (step + hidden @ of_hidden.mT).chunk(4, -1)
            cell = forget.sigmoid() * cell + put_in.sigmoid() * new.tanh()
            hidden = put_out.sigmoid() * cell.tanh()
            outputs.append(hidden)
        forwards, backwards = torch.stack(outputs, 2)  # [B, T, hidden] each
        return torch.cat([forwards, backwards.flip(1)], -1)
