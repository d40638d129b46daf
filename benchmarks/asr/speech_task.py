"""The tied state of every frame, by the paper's acoustic model, from prepared speech."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.asr import model
from benchmarks.asr.levels import levels
from benchmarks.asr.model import AcousticModel
from benchmarks.asr.prepared import Prepared, SubSequences
from benchmarks.options import Options, parse
from horovod_dpsgd.errors import DataError, RecipeError
from horovod_dpsgd.training import Batch, Recipe, Score, Task

EVALUATION_LOGITS = {"cpu": 2**23, "cuda": 2**27}  # numbers in a held-out batch of logits: 32 MB, 512 MB
SYNTHETIC_INPUT, SYNTHETIC_STATES = 120, 5_000  # where the recipe does not say
SYNTHETIC_SAMPLES = {"swb300": 4_000_000, "swb2000": 30_000_000}  # Section 4.2; of others 50,000
SYNTHETIC_HELDOUT = 200


class DataOptions(Options):
    """What a recipe's data_options may hold.

    unroll: frames of a sub-sequence; heldout: judge by so many held-out sub-sequences, spread evenly (default: all).
    """

    unroll: int = Field(21, gt=0)
    heldout: int | None = Field(None, gt=0)


class Source(Protocol):
    """Sub-sequences of one part, by number."""

    def __len__(self) -> int: ...

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames, float32 [B, T, D], and states, int64 [B, T]."""


class SpeechTask(Task):
    """Sub-sequences of frames [B, T, D], and the states [B, T] they are in; a sample is a sub-sequence.

    Loss and error are means over frames. Where it is known which states are silence, frames of speech are scored on
    their own too. `levels`: what is lost by guessing by frequencies, on the frames that are evaluated.

    model: "bilstm". model_options: layers, cells, bottleneck, states, input, as `AcousticModel` has them; states and
    input are by default those of the data.
    """

    def __init__(self, recipe: Recipe, may_fetch: bool = True) -> None:
        self.options = parse(DataOptions, "data_options", recipe.data_options)
        known = ("layers", "cells", "bottleneck", "states", "input")
        if recipe.model != "bilstm" or recipe.model_options.keys() - set(known):
            raise RecipeError(f"task {recipe.task} has the model bilstm with model_options {', '.join(known)}")
        self.recipe = recipe
        self.train: Source
        self.heldout: Source
        self.silence: Tensor | None = None  # which states are, bool [K]
        self.levels: dict[str, float] = {}
        if recipe.synthetic:
            self._take_noise()
        else:
            self._take_prepared()
        model.check(**self.model_options)  # while it is still one line for the user
        self.classes = self.model_options["states"]
        self.samples = len(self.train)

    def _take_noise(self) -> None:
        self._choose_model(input=SYNTHETIC_INPUT, states=SYNTHETIC_STATES)
        model.check(**self.model_options)
        sizes = self.options.unroll, self.model_options["input"], self.model_options["states"]
        samples = SYNTHETIC_SAMPLES.get(self.recipe.task, 50_000)
        self.train, self.heldout = (RandomSpeech(count, *sizes) for count in (samples, SYNTHETIC_HELDOUT))
        self.data = "synthetic speech"
        self.chosen_heldout = self._spread(len(self.heldout))

    def _take_prepared(self) -> None:
        if self.recipe.data_dir is None:
            raise DataError(
                f"task {self.recipe.task} needs --data-dir DIR, made by benchmarks/asr/prepare.py (or --synthetic)"
            )
        prepared = Prepared(self.recipe.data_dir)
        there = prepared.manifest
        self._choose_model(input=there.dimension, states=there.states)
        if self.model_options["input"] != there.dimension:
            streams = ", ".join(f"{name} {dimension}" for name, dimension in there.streams.items())
            raise RecipeError(
                f"model_options.input: {self.model_options['input']}, but the data have {there.dimension} ({streams})"
            )
        if self.model_options["states"] < there.states:
            raise RecipeError(f"model_options.states: {self.model_options['states']}, but the data have {there.states}")
        train, heldout = (SubSequences(part, self.options.unroll) for part in (prepared.train, prepared.heldout))
        if not len(train) or not len(heldout):
            raise DataError(f"{prepared.folder} has no utterance of {self.options.unroll} frames in one of its parts")
        if there.silence is not None:
            self.silence = torch.zeros(self.model_options["states"], dtype=torch.bool)
            self.silence[there.silence] = True
            self.groups = ("speech",)
        self.data = f"{there.data}, {len(train):,} x {self.options.unroll} frames, {there.states:,} tied states"
        self.train, self.heldout = train, heldout
        self.chosen_heldout = self._spread(len(heldout))
        evaluated = heldout.counts(self.chosen_heldout, there.states)
        self.levels = levels(prepared.counts("train"), evaluated, there.silence)

    def _choose_model(self, input: int, states: int) -> None:
        defaults = {"layers": 6, "cells": 1024, "bottleneck": 256}
        self.model_options = defaults | {"input": input, "states": states} | self.recipe.model_options

    def _spread(self, there: int) -> np.ndarray:
        wanted = self.options.heldout or there
        if wanted >= there:
            return np.arange(there)
        self.data += f"; {wanted:,} of {there:,} held out"
        return np.arange(wanted) * there // wanted

    def make_model(self) -> nn.Module:
        return AcousticModel(**self.model_options)

    # ---- data ----

    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        for chosen in indices:
            yield _tensors(self.train.take(chosen.numpy()))

    def shard_batches(self, part: str, shard: int, shards: int) -> Iterator[Batch]:
        batch = max(1, EVALUATION_LOGITS[self.recipe.device] // (self.options.unroll * self.classes))
        if part == "train":
            source, chosen = self.train, np.arange(self.samples)
            batch = min(batch, self.recipe.samples_at_once(shards))  # gradients are wanted of these
        else:
            source, chosen = self.heldout, self.chosen_heldout
        mine = chosen[shard::shards]
        for at in range(0, len(mine), batch):
            yield _tensors(source.take(mine[at : at + batch]))

    # ---- loss ----

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        frames, states = batch
        return F.cross_entropy(model(frames).flatten(0, 1), states.flatten())

    def score(self, model: nn.Module, batch: Batch) -> Score:
        frames, states = batch
        logits, states = model(frames).float().flatten(0, 1), states.flatten()
        losses = F.cross_entropy(logits, states, reduction="none")
        wrong = logits.argmax(1) != states
        everything = Score(float(losses.double().sum()), float(wrong.sum()), len(states))
        if self.silence is None:
            return everything
        speech = ~self.silence.to(states.device)[states]
        return everything._replace(
            groups=(Score(float(losses[speech].double().sum()), float(wrong[speech].sum()), float(speech.sum())),)
        )

    def heldout_figures(self, loss: float) -> dict[str, float]:
        """The levels: only below that of who is told what is silence has a model learned phonetics."""
        return self.levels


def _tensors(arrays: tuple[np.ndarray, np.ndarray]) -> Batch:
    frames, states = arrays
    return torch.from_numpy(frames), torch.from_numpy(states)


class RandomSpeech:
    """Noise of a task's shapes, to measure speed: `samples` sub-sequences, but only `DIFFERENT` different ones.

    States follow from frames by a fixed linear rule, so they can be learned. The same for both parts.
    """

    DIFFERENT = 200
    USED_STATES = 1_000  # the rule has no need of more

    def __init__(self, samples: int, length: int, dimension: int, states: int) -> None:
        numbers = np.random.default_rng(0)
        self.samples = samples
        self.frames = numbers.standard_normal((self.DIFFERENT, length, dimension), np.float32)
        rule = numbers.standard_normal((dimension, min(states, self.USED_STATES)), np.float32)
        self.states = (self.frames @ rule).argmax(2)

    def __len__(self) -> int:
        return self.samples

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        chosen = numbers % self.DIFFERENT
        return self.frames[chosen], self.states[chosen]
