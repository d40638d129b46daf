"""Prepared speech for tests: made-up frames and states."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.asr.writing import PreparedWriter, Utterance

Arrays = tuple[np.ndarray, np.ndarray]


def write_prepared(
    folder: Path,
    lengths: tuple[int, ...] = (64, 30),
    dimension: int = 4,
    states: int = 5,
    silence: list[int] | None = None,
    shard_bytes: int | None = None,
) -> dict[str, Arrays]:
    """Both parts, with utterances of these lengths; returns each part's frames [T, D] and states [T] in one piece."""
    numbers = np.random.default_rng(0)
    writer = PreparedWriter(folder, {"first": dimension - 1, "second": 1})
    made = {}
    for name, part in (("train", writer.train), ("heldout", writer.heldout)):
        if shard_bytes:
            part.frames_a_shard = shard_bytes // (4 * dimension)
        utterances = [
            (numbers.standard_normal((length, dimension), np.float32), numbers.integers(0, states, length))
            for length in lengths
        ]
        for number, (frames, its_states) in enumerate(utterances):
            part.add(Utterance(f"u{number}", f"s{number % 2}", frames, its_states, b"made up"))
        made[name] = tuple(np.concatenate(column) for column in zip(*utterances, strict=True))
    writer.finish("made-up speech", {}, silence, states)
    return made
