"""The paper's language model: the GPT-2-like transformer of a tutorial on transfer learning.

The paper (Section 4.5) takes model and recipe from huggingface/naacl_transfer_learning_tutorial. That network is
neither GPT-2 nor the transformer as first published: what a sublayer's output is added to is the normalised state, so
no path leads past the LayerNorms,

    h <- LN(h);  h <- h + attention(h);  h <- LN(h);  h <- h + MLP(h)

and no LayerNorm follows the last layer. (How the gains of the LayerNorms begin is for whoever makes the model:
`benchmarks.nlp.models`.)
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.options import Options
from horovod_dpsgd.errors import RecipeError

EPSILON = 1e-12  # of the LayerNorms


class Shape(Options):
    """The paper's sizes are the defaults: 50,396,360 parameters at 28,996 tokens and 256 positions.

    init_std: of the normal distribution that weights begin with, those of queries, keys and values excepted.
    """

    width: int = Field(410, gt=0)
    hidden: int = Field(2100, gt=0)  # units of an MLP
    heads: int = Field(10, gt=0)
    layers: int = Field(16, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    init_std: float = Field(0.02, gt=0)


class Transformer(nn.Module):
    """Logits [B, T, vocabulary] of the next token at each of T <= `positions` tokens, from tokens [B, T].

    The output layer is the embedding of the tokens, without a bias. Raises RecipeError for a width that is no multiple
    of the heads.
    """

    def __init__(self, vocabulary: int, positions: int, shape: Shape) -> None:
        super().__init__()
        if shape.width % shape.heads:
            raise RecipeError(f"model_options: width {shape.width} is no multiple of {shape.heads} heads")
        self.tokens = nn.Embedding(vocabulary, shape.width)
        self.positions = nn.Embedding(positions, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        layers = [Layer(shape) for _ in range(shape.layers)]
        self.layers = nn.ModuleList(layers)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=shape.init_std)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in layers:
            layer.attention.reset_inputs()

    def forward(self, tokens: Tensor) -> Tensor:
        places = torch.arange(tokens.shape[1], device=tokens.device)
        h = self.dropout(self.tokens(tokens) + self.positions(places))
        for layer in self.layers:
            h = layer(h)
        return F.linear(h, self.tokens.weight)


class Layer(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = (nn.LayerNorm(shape.width, eps=EPSILON) for _ in range(2))
        self.attention = CausalAttention(shape.width, shape.heads, shape.dropout)
        self.mlp = nn.Sequential(nn.Linear(shape.width, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, shape.width))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm_1(h)
        h = h + self.dropout(self.attention(h))
        h = self.norm_2(h)
        return h + self.dropout(self.mlp(h))


class CausalAttention(nn.Module):
    """What nn.MultiheadAttention computes under a causal mask, by PyTorch's fused kernel, which keeps no T x T matrix.

    On CPUs there is none with dropout.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.inputs = nn.Linear(width, 3 * width)  # queries, keys and values
        self.output = nn.Linear(width, width)

    def reset_inputs(self) -> None:
        """As nn.MultiheadAttention begins: the three together by Xavier's uniform distribution."""
        nn.init.xavier_uniform_(self.inputs.weight)

    def forward(self, h: Tensor) -> Tensor:
        query, key, value = self.inputs(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # [B, heads, T, -]
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.output(mixed.transpose(1, 2).flatten(2))
