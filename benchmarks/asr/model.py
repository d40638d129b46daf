"""The paper's acoustic model (Section 4.2): which tied state is each frame of speech in?"""

from __future__ import annotations

from torch import Tensor, nn

from horovod_dpsgd.errors import RecipeError


class AcousticModel(nn.Module):
    """Bidirectional LSTM layers, a linear bottleneck, and an output for each tied state.

    input: numbers a frame; states: K; layers: of the LSTM; cells: a layer, half of them a direction; bottleneck: its
    width, or None to go without. The defaults are the paper's model of 43,154,944 parameters (its dimensions are those
    of the IBM papers it refers to, as remembered; they fit the size and the memory a sample that it gives).

    Raises RecipeError for dimensions that cannot be.
    """

    def __init__(
        self, input: int = 260, states: int = 32_000, layers: int = 6, cells: int = 1024, bottleneck: int | None = 256
    ) -> None:
        super().__init__()
        check(input, states, layers, cells, bottleneck)
        self.lstm = nn.LSTM(input, cells // 2, layers, batch_first=True, bidirectional=True)
        self.bottleneck = nn.Linear(cells, bottleneck) if bottleneck else nn.Identity()
        self.output = nn.Linear(bottleneck or cells, states)

    def forward(self, frames: Tensor) -> Tensor:
        """Frames [B, T, input] to logits [B, T, states]; what the LSTM remembers begins anew with every sequence."""
        hidden, _ = self.lstm(frames)
        return self.output(self.bottleneck(hidden))


def check(input: int, states: int, layers: int, cells: int, bottleneck: int | None) -> None:
    """Raise RecipeError unless an `AcousticModel` can be made so."""
    least = {"input": (input, 1), "states": (states, 2), "layers": (layers, 1), "cells": (cells, 2)}
    if bottleneck is not None:
        least["bottleneck"] = bottleneck, 1
    for name, (value, smallest) in least.items():
        if type(value) is not int or value < smallest:
            raise RecipeError(f"model_options.{name}: {value!r} is not a whole number of at least {smallest}")
    if cells % 2:
        raise RecipeError(f"model_options.cells: {cells} is odd, but half of the cells are for each direction")
