"""Gradients and Hessian-vector products of a scalar at a model's weights, as flat vectors [numel].

They are computed beside training: `p.grad`, and whoever listens to it, is left alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from horovod_dpsgd.parameters import FlatParameters


def gradient(parameters: FlatParameters, value: Tensor) -> Tensor:
    """The gradient of a scalar at the model's weights, in their dtype; 0 for weights it does not depend on."""
    return parameters.gather(list(torch.autograd.grad(value, parameters.parameters, materialize_grads=True)))


def hessian_vector(parameters: FlatParameters, value: Tensor, vector: Tensor) -> Tensor:
    """H v for the Hessian H of a scalar that was computed inside `twice_differentiable`, in the weights' dtype.

    By Pearlmutter 1994: the gradient of (gradient . v); no Hessian is formed.
    """
    parts = parameters.views(vector.to(parameters.dtype))
    gradients = torch.autograd.grad(value, parameters.parameters, create_graph=True, materialize_grads=True)
    reached = [(g, v) for g, v in zip(gradients, parts, strict=True) if g.requires_grad]
    if not reached:  # linear in the weights
        return torch.zeros_like(vector, dtype=parameters.dtype)
    slope = torch.stack([(g * v).sum() for g, v in reached]).sum()
    return gradient(parameters, slope)


@contextmanager
def same_draws(parameters: FlatParameters) -> Iterator[None]:
    """Inside blocks that follow each other the model draws the same random numbers (dropout's masks): what is drawn is
    put back at the end."""
    with torch.random.fork_rng(devices=[parameters.device] if parameters.device.type == "cuda" else []):
        yield


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Inside the block the forward pass takes no fused kernel (attention, recurrent networks) and no compiled network:
    they can be differentiated only once."""
    compiled = "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance")  # from PyTorch 2.6 on
    with (
        torch.compiler.set_stance("force_eager") if compiled else nullcontext(),
        sdpa_kernel(SDPBackend.MATH),
        torch.backends.cudnn.flags(enabled=False),
    ):
        yield
