"""Texts tokenized once, and one copy of their tokens in memory for all learners of a node.

A part of a text is a folder in the cache: tokens.bin, that every learner maps, and manifest.json, which is written last
and says of what it was made. What is being made can be interrupted: who comes next goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cache import alone_in, cache_folder
from benchmarks.nlp.texts import Text
from benchmarks.nlp.tokenizing import Encoder, Tokenizing
from horovod_dpsgd.errors import DataError
from horovod_dpsgd.files import sha256, sync, write_whole

FORMAT = 1  # of the cached files: raise it when what is made of the same text changes
TOKENS, MANIFEST, PARTIAL, PROGRESS = "tokens.bin", "manifest.json", "tokens.partial", "progress.json"
LINES = 2000  # that are tokenized at once
SAVE_SECONDS = 5.0  # of work that are lost at most when it is interrupted


@dataclass(frozen=True)
class Tokens:
    """numbers: [N], mapped read-only; counts: how often each of the vocabulary occurs; words: by white space; lines:
    of the text; tokenizer: its digest."""

    numbers: np.ndarray
    counts: np.ndarray
    words: int
    lines: int
    tokenizer: str

    @property
    def vocabulary(self) -> int:
        return len(self.counts)

    @property
    def per_word(self) -> float:
        """Tokens for each word, line ends being words too, as it is usual for WikiText."""
        return len(self.numbers) / (self.words + self.lines)


def load(text: Text, tokenizing: Tokenizing, name: str, verify: bool = True) -> Tokens:
    """The tokens of `text`, mapped from the cache, into which they are put if they are not there.

    verify: read them all to compare their checksum; else only their number is looked at. Of processes that come
    together one does the work and the others wait. Raises DataError if the text is damaged, or the cache cannot be
    written.
    """
    state = repr((FORMAT, text.state(), tokenizing.state()))
    folder = cache_folder("tokens") / f"{name}-{hashlib.sha256(state.encode()).hexdigest()[:16]}"
    tokens = _map(folder, verify)
    if tokens is None:
        try:
            with alone_in(folder):
                tokens = _map(folder, verify)
                if tokens is None:
                    _make(folder, text, tokenizing.encoder(), name)
                    tokens = _map(folder, verify)
        except OSError as error:
            raise DataError(
                f"cannot write tokens to the cache {folder} ({error.strerror}); set XDG_CACHE_HOME"
            ) from error
    if tokens is None:
        raise DataError(f"{folder} does not hold what was just written to it: is the disk full?")
    return tokens


def _map(folder: Path, verify: bool) -> Tokens | None:
    """None where it is missing or damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        path, dtype = folder / TOKENS, np.dtype(manifest["dtype"])
        if path.stat().st_size != manifest["tokens"] * dtype.itemsize:
            return None
        if verify and sha256(path) != manifest["sha256"]:
            return None
        numbers = np.memmap(path, dtype, mode="r") if manifest["tokens"] else np.empty(0, dtype)
        counts = np.array(manifest["counts"], np.int64)
        return Tokens(numbers, counts, manifest["words"], manifest["lines"], manifest["tokenizer"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _make(folder: Path, text: Text, encoder: Encoder, name: str) -> None:
    dtype = np.dtype(np.uint16 if encoder.vocabulary <= 2**16 else np.uint32)
    before = text.state()
    done = _encode(folder, text, encoder, dtype, name)
    if text.state() != before:
        raise DataError(f"{text.paths[0]} was changed while it was tokenized")
    path = folder / PARTIAL
    manifest = {
        "format": FORMAT,
        "dtype": dtype.name,
        "tokens": done.tokens,
        "sha256": sha256(path),
        "words": done.words,
        "lines": done.lines,
        "tokenizer": encoder.digest,
        "inputs": text.inputs(),
        "counts": _counts(path, dtype, encoder.vocabulary).tolist(),
    }
    write_whole(folder / "tokenizer.json", encoder.tokenizer.to_str())
    (folder / MANIFEST).unlink(missing_ok=True)  # of another file of tokens, damaged
    path.replace(folder / TOKENS)
    write_whole(folder / MANIFEST, json.dumps(manifest))
    (folder / PROGRESS).unlink(missing_ok=True)


@dataclass
class Done:
    """How far the work has come."""

    tokenizer: str
    tokens: int = 0
    words: int = 0
    lines: int = 0


def _encode(folder: Path, text: Text, encoder: Encoder, dtype: np.dtype[Any], name: str) -> Done:
    """Tokenize into the partial file, from where an earlier try came to."""
    from tqdm import tqdm

    done = _begun(folder, encoder.digest, dtype)
    pause = 1.0 if sys.stderr.isatty() else 10.0  # seconds between two looks of the bar; files get fewer
    bar = tqdm(desc=f"tokenizing {name}", unit=" lines", mininterval=pause)
    with bar, (folder / PARTIAL).open("ab") as file:
        file.truncate(done.tokens * dtype.itemsize)
        bar.update(done.lines)
        saved = time.monotonic()
        for lines in _pieces(islice(text.lines(), done.lines, None)):
            numbers = encoder.encode(lines)
            file.write(numbers.astype(dtype).tobytes())
            done.tokens += len(numbers)
            done.words += sum(len(line.split()) for line in lines)
            done.lines += len(lines)
            bar.update(len(lines))
            if time.monotonic() - saved > SAVE_SECONDS:
                file.flush()
                os.fsync(file.fileno())
                write_whole(folder / PROGRESS, json.dumps(vars(done)))
                saved = time.monotonic()
    sync(folder / PARTIAL)
    return done


def _begun(folder: Path, tokenizer: str, dtype: np.dtype[Any]) -> Done:
    """What an earlier try has left that can be gone on with: by the same tokenizer, and as long as it says."""
    try:
        done = Done(**json.loads((folder / PROGRESS).read_text()))
        there = (folder / PARTIAL).stat().st_size
    except (OSError, ValueError, TypeError):
        return Done(tokenizer)
    return done if done.tokenizer == tokenizer and there >= done.tokens * dtype.itemsize else Done(tokenizer)


def _pieces(lines: Iterator[str]) -> Iterator[list[str]]:
    while piece := list(islice(lines, LINES)):
        yield piece


def _counts(path: Path, dtype: np.dtype[Any], vocabulary: int) -> np.ndarray:
    counts = np.zeros(vocabulary, np.int64)
    with path.open("rb") as file:
        while piece := file.read(2**20):
            counts += np.bincount(np.frombuffer(piece, dtype), minlength=vocabulary)
    return counts
