"""The prepared form of speech: what training reads, whatever it was made from.

    PREPARED/
      manifest.json           what is there (`Manifest`); written last: a folder without it is not ready
      train/  heldout/        the two parts
        frames-0000.bin ...   [frames, dimension], float32 or float16, utterance after utterance, little-endian
        states-0000.bin ...   [frames], int32: the tied state of each of these frames
        lengths.npy           int32 [utterances]: frames of each, in order; none crosses from one file to the next
        counts.npy            int64 [states]: how many frames of the part are in each state
        utterances.tsv        name and speaker of each, in the same order
        skipped.tsv           name and reason of each utterance that was left out

A frame's numbers are the feature streams side by side, in the manifest's order. The files are mapped, never read whole:
a training set may be larger than memory.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from horovod_dpsgd.errors import DataError

FORMAT = 1
MANIFEST = "manifest.json"
PARTS = ("train", "heldout")
FRAME_TYPES = ("float32", "float16")


@dataclass(frozen=True)
class PartSummary:
    """shards: frames in each pair of files; skipped: how many utterances were left out, by reason; inputs: SHA-256 of
    all that the part was made from: names, speakers, sound or features, and transcripts or alignments."""

    utterances: int
    speakers: int
    frames: int
    shards: list[int]
    skipped: dict[str, int]
    inputs: str


@dataclass(frozen=True)
class Manifest:
    """streams: name and dimension of each; states: K; silence: the states that are silence (None: not known);
    made_by: settings and versions, for the record."""

    data: str
    states: int
    silence: list[int] | None
    streams: dict[str, int]
    frame_type: str
    parts: dict[str, PartSummary]
    made_by: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def dimension(self) -> int:
        return sum(self.streams.values())

    def text(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises DataError if there is none, or one of another format."""
        path = folder / MANIFEST
        try:
            keys = json.loads(path.read_text())
            if keys.get("format") != FORMAT:
                raise DataError(f"{path} is of format {keys.get('format')}, not {FORMAT}: prepare the data again")
            keys.pop("levels", None)  # of older ones, and of all held-out frames: a run says those of its own
            parts = {name: PartSummary(**part) for name, part in keys.pop("parts").items()}
            manifest = cls(parts=parts, **keys)
        except FileNotFoundError as error:
            raise DataError(
                f"{folder} does not hold prepared speech (no {MANIFEST}); benchmarks/asr/prepare.py makes it"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is damaged or unreadable ({error})") from error
        if missing := set(PARTS) - manifest.parts.keys():
            raise DataError(f"{path} lacks the part {', '.join(sorted(missing))}")
        return manifest


def shard_files(folder: Path, number: int) -> tuple[Path, Path]:
    """Frames and states."""
    return folder / f"frames-{number:04}.bin", folder / f"states-{number:04}.bin"


class Part:
    """The frames of one part, mapped. Raises DataError naming the file that is missing or not as long as it should be.

    lengths: frames of each utterance.
    """

    def __init__(self, folder: Path, manifest: Manifest, name: str) -> None:
        self.dimension = manifest.dimension
        self.frame_type = np.dtype(manifest.frame_type).newbyteorder("<")
        folder = folder / name
        shards = manifest.parts[name].shards
        self.lengths = load_array(folder / "lengths.npy")
        if self.lengths.sum() != sum(shards):
            raise DataError(f"{folder / 'lengths.npy'} does not fit the {sum(shards)} frames beside it")
        self.shard_starts = np.cumsum([0, *shards[:-1]])  # numbers of their first frames
        self._shards = [self._open(*shard_files(folder, number), frames) for number, frames in enumerate(shards)]

    def _open(self, frames: Path, states: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
        return (
            map_file(frames, self.frame_type, (count, self.dimension)),
            map_file(states, np.dtype("<i4"), (count,)),
        )

    def sequences(self, starts: np.ndarray, length: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Frames [length, D] and states [length] of each sequence that begins at one of the frames `starts`, still in
        the files.

        Such a sequence lies within one utterance.
        """
        shards = np.searchsorted(self.shard_starts, starts, side="right") - 1
        places = starts - self.shard_starts[shards]
        for shard, place in zip(shards.tolist(), places.tolist(), strict=True):
            frames, states = self._shards[shard]
            yield frames[place : place + length], states[place : place + length]


class SubSequences:
    """The part's utterances cut, each from its first frame on, into sequences of `length` frames that do not overlap.

    What remains of an utterance, less than `length` frames at its end, is in none of them.
    """

    def __init__(self, part: Part, length: int) -> None:
        self.part, self.length = part, length
        self.dimension = part.dimension
        self._first_frames = np.cumsum(part.lengths, dtype=np.int64) - part.lengths
        in_each = part.lengths // length
        self._firsts = np.cumsum(in_each, dtype=np.int64) - in_each  # numbers of each utterance's first sub-sequence
        self._count = int(in_each.sum())

    def __len__(self) -> int:
        return self._count

    def take(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frames, float32 [B, length, D], and states, int64 [B, length], of the sub-sequences of these numbers [B]."""
        frames = np.empty((len(numbers), self.length, self.dimension), np.float32)
        states = np.empty((len(numbers), self.length), np.int64)
        for row, (its_frames, its_states) in enumerate(self._sequences(numbers)):
            frames[row], states[row] = its_frames, its_states
        return frames, states

    def counts(self, numbers: np.ndarray, states: int) -> np.ndarray:
        """How many frames of these sub-sequences are in each of so many states, int64 [states]."""
        return np.bincount(np.concatenate([its for _, its in self._sequences(numbers)]), minlength=states)

    def _sequences(self, numbers: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        utterances = np.searchsorted(self._firsts, numbers, side="right") - 1  # the last of equals: others have none
        starts = self._first_frames[utterances] + (numbers - self._firsts[utterances]) * self.length
        return self.part.sequences(starts, self.length)


class Prepared:
    """A folder of prepared speech, opened. Raises DataError in one line if it is not one, or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, Manifest.read(folder)
        self.train, self.heldout = (Part(folder, self.manifest, name) for name in PARTS)

    def counts(self, part: str) -> np.ndarray:
        """How many frames of the part are in each state, int64 [states]."""
        return load_array(self.folder / part / "counts.npy")


def load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is damaged or unreadable ({error})") from error


def map_file(path: Path, kind: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """The file as a read-only array whose pages come when they are touched, and only those."""
    size = int(np.prod(shape)) * kind.itemsize
    try:
        with path.open("rb") as file:
            if (there := path.stat().st_size) != size:
                raise DataError(f"{path} has {there} bytes, not {size}: it is damaged, or not copied whole")
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    mapped.madvise(mmap.MADV_RANDOM)  # sub-sequences come in random order: what follows one is not needed with it
    return np.frombuffer(mapped, kind).reshape(shape)
