"""Causal language models: the next token, in blocks cut from a text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.nlp import corpora, models, token_files, unigram
from benchmarks.nlp.token_files import Tokens
from benchmarks.nlp.tokenizing import Given, Tokenizing, TrainedHere
from benchmarks.options import Options, parse
from horovod_dpsgd.errors import DataError, RecipeError
from horovod_dpsgd.training import Batch, Order, Recipe, Score, Task

EVALUATION_LOGITS = {"cpu": 2**24, "cuda": 2**28}  # of a held-out batch
SYNTHETIC_VOCABULARY = 28_996  # if the recipe's tokenizer is a given one
SYNTHETIC_BLOCKS = 20_000
DIFFERENT = 500  # of them
SYNTHETIC_HELDOUT = 64


class DataOptions(Options):
    """What a recipe's data_options may hold.

    block_size: tokens of a sample; vocabulary: of a tokenizer that is trained on the text; tokenizer: a file, folder or
    name of one that is there (one of the two); order: of the blocks in training, random anew every epoch, or as they
    follow each other in the text, where each learner goes through stretches of its own; heldout: the part of the text
    that is evaluated on; heldout_blocks: only so many blocks of it, evenly spread.
    """

    block_size: int = Field(256, ge=4)
    vocabulary: int | None = Field(None, ge=300, le=2**31)
    tokenizer: str | None = None
    order: Order = "random"
    heldout: Literal["valid", "test"] = "valid"
    heldout_blocks: int | None = Field(None, gt=0)


class LanguageTask(Task):
    """Samples are blocks of `block_size` tokens that do not overlap, what is left over at the end being left out; in a
    block, all tokens but the first are predicted from those before them. A batch is (tokens [B, block_size],).

    Loss and error are of a token. The loss that a diverged run ends at is not ln K here, but that of guessing by the
    tokens' frequencies: their entropy in the training text is `chance_loss`.
    """

    def __init__(self, recipe: Recipe, may_fetch: bool = True) -> None:
        self.recipe = recipe
        self.options = parse(DataOptions, "data_options", recipe.data_options)
        self.order = self.options.order
        if recipe.synthetic:
            train, heldout, title = self._noise()
        else:
            train, heldout, title = self._text(may_fetch)
        self.classes = train.vocabulary
        self.train, self.heldout = (self._blocks(each, title) for each in (train, heldout))
        self.entropy = unigram.entropy(train.counts)
        self.tokens_per_word = heldout.per_word
        self.samples = SYNTHETIC_BLOCKS if recipe.synthetic else len(self.train)
        self.evaluated = self._evaluated()
        predicted = np.bincount(self.heldout[self.evaluated, 1:].ravel(), minlength=self.classes)
        self.unigram_loss = unigram.cross_entropy(predicted, train.counts)
        self.model = models.find(recipe.model, self.classes, self.options.block_size, recipe.model_options, may_fetch)
        self.data = (
            f"{title}, {len(train.numbers):,} tokens of {self.classes:,} different ones, unigram entropy "
            f"{self.entropy:.4f}; {self._heldout_words()}"
        )

    def _text(self, may_fetch: bool) -> tuple[Tokens, Tokens, str]:
        recipe = self.recipe
        found = corpora.find(recipe.task, recipe.data_dir, self.options.heldout, may_fetch)
        tokenizing = self._tokenizing(found, may_fetch)
        train, heldout = (
            token_files.load(text, tokenizing, f"{recipe.task}-{part}", verify=may_fetch)
            for text, part in ((found.train, "train"), (found.heldout, self.options.heldout))
        )
        if train.tokenizer != heldout.tokenizer:
            raise DataError(f"the cached tokens of {found.title} are of two tokenizers: remove them from the cache")
        least = corpora.CORPORA[recipe.task].words
        if train.words + train.lines < least:
            raise DataError(f"{found.train.paths[0]} is not {found.title}: {train.words:,} words; task text takes any")
        return train, heldout, f"{found.title} ({tokenizing.words})"

    def _tokenizing(self, found: corpora.Found, may_fetch: bool) -> Tokenizing:
        options = self.options
        if options.vocabulary and not options.tokenizer:
            return TrainedHere(found.train, options.vocabulary)
        if options.tokenizer and not options.vocabulary:
            return Given(options.tokenizer, may_fetch)
        raise RecipeError("data_options: one of vocabulary (a tokenizer trained here) and tokenizer must be given")

    def _noise(self) -> tuple[Tokens, Tokens, str]:
        vocabulary = self.options.vocabulary or SYNTHETIC_VOCABULARY
        train, heldout = (
            _random_tokens(blocks * self.options.block_size, vocabulary, seed)
            for seed, blocks in enumerate((DIFFERENT, SYNTHETIC_HELDOUT))
        )
        return train, heldout, "synthetic text"

    def _blocks(self, tokens: Tokens, title: str) -> np.ndarray:
        """[blocks, block_size], mapped as the tokens are."""
        size = self.options.block_size
        blocks = len(tokens.numbers) // size
        if not blocks:
            raise DataError(f"{title}: {len(tokens.numbers)} tokens are not enough for a block of {size}")
        return tokens.numbers[: blocks * size].reshape(blocks, size)

    def _evaluated(self) -> np.ndarray:
        """The numbers of the held-out blocks that are evaluated on."""
        there = len(self.heldout)
        wanted = min(self.options.heldout_blocks or there, there)
        return np.arange(wanted) * there // wanted

    def _heldout_words(self) -> str:
        there, used = len(self.heldout), len(self.evaluated)
        some = f"{there:,}" if used == there else f"{used:,} of {there:,}"
        return f"held out: {some} blocks of {self.options.block_size} of the {self.options.heldout} part"

    # ---- model ----

    def make_model(self) -> nn.Module:
        return self.model.make()

    # ---- data ----

    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        for chosen in indices:
            yield _batch(self.train, chosen.numpy() % len(self.train))

    def shard_batches(self, part: str, shard: int, shards: int) -> Iterator[Batch]:
        blocks, numbers = (self.train, np.arange(self.samples)) if part == "train" else (self.heldout, self.evaluated)
        batch = max(1, EVALUATION_LOGITS[self.recipe.device] // (self.options.block_size * self.classes))
        if part == "train":  # gradients are wanted of these
            batch = min(batch, self.recipe.samples_at_once(shards))
        mine = numbers[shard::shards] % len(blocks)
        for at in range(0, len(mine), batch):
            yield _batch(blocks, mine[at : at + batch])

    # ---- loss ----

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, targets = _predictions(model, batch)
        return F.cross_entropy(logits, targets)

    def score(self, model: nn.Module, batch: Batch) -> Score:
        logits, targets = _predictions(model, batch)
        errors = (logits.argmax(1) != targets).sum()
        return Score(float(F.cross_entropy(logits, targets, reduction="sum")), float(errors), len(targets))

    @property
    def chance_loss(self) -> float:
        return self.entropy

    def heldout_figures(self, loss: float) -> dict[str, float]:
        """Perplexity of a token and of a word, and the loss of guessing by frequencies, where a diverged run is, on the
        same tokens.

        Words are what white space separates, and line ends.
        """
        return {
            "perplexity": _exp(loss),
            "word_perplexity": _exp(loss * self.tokens_per_word),
            "unigram_loss": self.unigram_loss,
        }


def _batch(blocks: np.ndarray, chosen: np.ndarray) -> Batch:
    return (torch.from_numpy(blocks[chosen].astype(np.int64)),)


def _predictions(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Logits [N, vocabulary] and the tokens [N] that should have been predicted."""
    (tokens,) = batch
    return models.logits(model, tokens[:, :-1]).flatten(0, 1).float(), tokens[:, 1:].flatten()


def _exp(number: float) -> float:
    return math.inf if number > 700 else math.exp(number)


def _random_tokens(length: int, vocabulary: int, seed: int) -> Tokens:
    """Frequencies fall as those of words do (Zipf's law), and every second token follows from the one before it, so
    that there is something to learn."""
    numbers = np.random.default_rng(seed)
    p = 1 / np.arange(1, vocabulary + 1)
    drawn = numbers.choice(vocabulary, size=length, p=p / p.sum())
    drawn[1::2] = (drawn[0::2][: len(drawn[1::2])] * 7 + 1) % vocabulary
    words = len(drawn)
    return Tokens(drawn, np.bincount(drawn, minlength=vocabulary), words, 0, "synthetic")
