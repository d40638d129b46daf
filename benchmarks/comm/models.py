"""Models with fixed made-up data: ImageNet's shapes from torchvision, and a small GPT-like language model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCABULARY, CONTEXT, WIDTH, HEADS, LAYERS = 8192, 128, 256, 8, 6
LANGUAGE_MODEL = "gpt-small"


class LanguageModel(nn.Module):
    """A causal transformer of 7 million parameters, decoder-only as GPT-2, from torch's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, norm=nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(CONTEXT), persistent=False)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits [B, T, V] of the tokens [B, T] that follow."""
        hidden = self.tokens(tokens) + self.positions.weight
        return self.layers(hidden, mask=self.mask, is_causal=True) @ self.tokens.weight.t()


class WeightsOnly(nn.Module):
    """The parameters of another model, and next to no computation: what is left is communication and update."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.weights = nn.ParameterList(p.detach().clone() for p in like.parameters())

    def forward(self, _inputs: Tensor) -> Tensor:
        return torch.stack([p.view(-1)[0] for p in self.weights]).sum()


@dataclass(frozen=True)
class Workload:
    """A model to be made, a batch, and what its samples are called."""

    name: str
    inputs: Tensor
    targets: Tensor
    unit: str

    @property
    def samples(self) -> int:
        return len(self.inputs)

    def make_model(self) -> nn.Module:
        torch.manual_seed(0)
        return _maker(self.name)()

    def loss(self, model: nn.Module) -> Tensor:
        outputs = model(self.inputs)
        if outputs.dim() == 0:
            return outputs
        return F.cross_entropy(outputs.flatten(0, -2), self.targets.flatten())


def check(name: str) -> None:
    """Raise ValueError for a name that `make` does not know."""
    _maker(name)


def make(name: str, batch_size: int, image_size: int, seed: int) -> Workload:
    """A workload by name: one of torchvision's models, "gpt-small", or "weights-only:" and one of these.

    Raises ValueError for any other.
    """
    numbers = torch.Generator().manual_seed(seed)
    if name.removeprefix("weights-only:") == LANGUAGE_MODEL:
        tokens = torch.randint(0, VOCABULARY, (batch_size, CONTEXT + 1), generator=numbers)
        return Workload(name, tokens[:, :-1], tokens[:, 1:].contiguous(), "seq")
    check(name)
    images = torch.randn(batch_size, 3, image_size, image_size, generator=numbers)
    return Workload(name, images, torch.randint(0, 1000, (batch_size,), generator=numbers), "img")


def _maker(name: str) -> Callable[[], nn.Module]:
    if name == LANGUAGE_MODEL:
        return LanguageModel
    if name.startswith("weights-only:"):
        inner = _maker(name.removeprefix("weights-only:"))
        return lambda: WeightsOnly(inner())
    from torchvision import models  # not by every command that has these options: it takes two seconds

    if name not in models.list_models(models):
        raise ValueError(f"unknown model {name!r}: {LANGUAGE_MODEL}, or one of torchvision's")
    return partial(models.get_model, name, weights=None)


def parameter_bytes(name: str) -> int:
    """Of the trainable parameters, without allocating them."""
    with torch.device("meta"):
        return sum(p.numel() * p.element_size() for p in _maker(name)().parameters())
