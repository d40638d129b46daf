"""Writing the prepared form (`prepared.py`), utterance by utterance, with no more than one of them in memory."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from benchmarks.asr.prepared import FRAME_TYPES, MANIFEST, PARTS, Manifest, PartSummary, shard_files
from horovod_dpsgd.errors import DataError
from horovod_dpsgd.files import write_whole

SHARD_BYTES = 2**32  # of frames, at most: few files, and none too large to copy


class Utterance(NamedTuple):
    """frames: [T, D]; states: [T]; inputs: a digest of what it was made from."""

    name: str
    speaker: str
    frames: np.ndarray
    states: np.ndarray
    inputs: bytes


class PartWriter:
    """One part's files. What is added goes to disk at once; `finish` writes the tables."""

    def __init__(self, folder: Path, dimension: int, frame_type: str, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.dimension = folder, dimension
        self.frame_type = np.dtype(frame_type).newbyteorder("<")
        self.frames_a_shard = shard_bytes // (dimension * self.frame_type.itemsize)
        self.counts: np.ndarray = np.zeros(0, np.int64)
        self.skipped: list[tuple[str, str]] = []
        self._reasons: Counter[str] = Counter()
        self._utterances: list[tuple[str, str]] = []
        self._lengths: list[int] = []
        self._shards: list[int] = []
        self._files: tuple[BinaryIO, BinaryIO] | None = None
        self._inputs = hashlib.sha256()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, utterance: Utterance) -> None:
        name, speaker, frames, states, inputs = utterance
        assert frames.shape == (len(states), self.dimension)
        if not len(states) or not np.isfinite(frames).all():
            self.skip(name, "a feature that is no finite number" if len(states) else "no frames")
            return
        if self._files is None or self._shards[-1] + len(states) > self.frames_a_shard:
            self._next_shard()
        assert self._files is not None
        frames.astype(self.frame_type, order="C").tofile(self._files[0])
        states.astype("<i4").tofile(self._files[1])
        self._shards[-1] += len(states)
        self._lengths.append(len(states))
        self._utterances.append((name, speaker))
        counts = np.bincount(states, minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts
        self._inputs.update(b"\0".join([name.encode(), speaker.encode(), inputs]))

    def skip(self, name: str, reason: str, detail: str = "") -> None:
        """Leave an utterance out, to be counted by its reason and named."""
        self._reasons[reason] += 1
        self.skipped.append((name, f"{reason}: {detail}" if detail else reason))

    def finish(self, states: int) -> PartSummary:
        """Write the tables of this part, whose states are 0 to `states` - 1."""
        self._close()
        np.save(self.folder / "lengths.npy", np.array(self._lengths, np.int32))
        self.counts = np.pad(self.counts, (0, states - len(self.counts)))
        np.save(self.folder / "counts.npy", self.counts)
        for name, rows in (("utterances.tsv", self._utterances), ("skipped.tsv", self.skipped)):
            with (self.folder / name).open("w", newline="") as file:
                csv.writer(file, "excel-tab", lineterminator="\n").writerows(rows)
        return PartSummary(
            utterances=len(self._lengths),
            speakers=len({speaker for _, speaker in self._utterances}),
            frames=sum(self._lengths),
            shards=self._shards,
            skipped=dict(self._reasons.most_common()),
            inputs=self._inputs.hexdigest(),
        )

    def _next_shard(self) -> None:
        self._close()
        frames, states = shard_files(self.folder, len(self._shards))
        self._files = frames.open("wb"), states.open("wb")
        self._shards.append(0)

    def _close(self) -> None:
        for file in self._files or ():
            file.close()
        self._files = None


class PreparedWriter:
    """A whole folder of prepared speech: add to `train` and `heldout`, then `finish`.

    Raises DataError if the folder already holds some, or cannot be written.
    """

    def __init__(self, folder: Path, streams: dict[str, int], frame_type: str = "float32") -> None:
        assert frame_type in FRAME_TYPES
        self.folder, self.streams, self.frame_type = folder, streams, frame_type
        check_free(folder)
        dimension = sum(streams.values())
        self.train, self.heldout = (PartWriter(folder / name, dimension, frame_type) for name in PARTS)

    def finish(
        self, data: str, made_by: dict[str, Any], silence: list[int] | None, states: int | None = None
    ) -> Manifest:
        """Write the tables, and at last the manifest. states: K, if not just as many as occur.

        Raises DataError if a part is empty, or a state is none of the K.
        """
        writers = dict(zip(PARTS, (self.train, self.heldout), strict=True))
        highest = max(len(writer.counts) for writer in writers.values())
        if states is not None and highest > states:
            raise DataError(f"state {highest - 1} occurs, but there are to be {states}: 0 to {states - 1}")
        states = states or highest
        if silence and not 0 <= min(silence) <= max(silence) < states:
            raise DataError(f"states {', '.join(map(str, silence))} of silence: there are states 0 to {states - 1}")
        manifest = Manifest(
            data, states, silence, self.streams, self.frame_type,
            {name: writer.finish(states) for name, writer in writers.items()}, made_by=made_by,
        )  # fmt: skip
        for name, part in manifest.parts.items():
            if not part.utterances:
                raise DataError(f"no utterance of the {name} part is left: {_reasons(part)}")
        write_whole(self.folder / MANIFEST, manifest.text())
        return manifest


def check_free(folder: Path) -> None:
    """Raise DataError if the folder holds prepared speech already, or cannot be made."""
    if (folder / MANIFEST).exists():
        raise DataError(f"{folder} already holds prepared speech: give another --output, or remove it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error


def summary(manifest: Manifest, folder: Path) -> str:
    """What a user wants to know of what was prepared, in a few lines."""
    lines = []
    for name, part in manifest.parts.items():
        hours = part.frames / 360_000
        lines.append(f"{name}: {part.utterances:,} utterances of {part.speakers:,} speakers, {hours:.2f} h")
        if part.skipped:
            lines.append(f"  left out, {sum(part.skipped.values()):,}: {_reasons(part)} ({folder / name}/skipped.tsv)")
    lines.append(f"{manifest.states:,} states, {manifest.dimension} numbers a frame")
    return "\n".join(lines)


def _reasons(part: PartSummary) -> str:
    return "; ".join(f"{count:,} {reason}" for reason, count in part.skipped.items()) or "there was none"
