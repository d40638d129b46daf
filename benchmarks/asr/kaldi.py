"""Speech that Kaldi has processed: feature archives, i-vectors and alignments, for one part at a time.

A part is a folder in which these files are (names can be chosen, and may lead elsewhere):

    utt2spk             UTTERANCE SPEAKER
    feats.scp ...       any number of feature streams, [T, D] for each utterance
    cmvn.scp ...        per speaker (or utterance), Kaldi's statistics: sums, and sums of squares
    ivectors.scp        per utterance or speaker: one vector; or per utterance a matrix, a row for every 10 frames
    pdf.ark             per utterance T pdf-ids: ali-to-pdf final.mdl ark:"gunzip -c ali.*.gz|" ark:pdf.ark
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import kaldiio
import numpy as np
from tqdm import tqdm

from benchmarks.asr.features import with_deltas
from benchmarks.asr.writing import PartWriter, Utterance
from horovod_dpsgd.errors import DataError, RecipeError

IVECTOR_PERIOD = 10  # frames to a row of an online i-vector matrix, Kaldi's default
UNREADABLE = (OSError, ValueError, AssertionError, KeyError, IndexError, EOFError, RuntimeError, TypeError)


@dataclass(frozen=True)
class Stream:
    """Features as one archive has them, and what is done to them, in this order.

    cmvn: subtract the mean that this file's statistics give; variance: and divide by the standard deviation; deltas:
    add first and second ones; splice: put so many frames before and after beside each.
    """

    name: str
    file: str
    cmvn: str | None = None
    variance: bool = False
    deltas: bool = False
    splice: int = 0

    @classmethod
    def of(cls, text: str) -> Stream:
        """From NAME:FILE[:OPTION...], the options being cmvn=FILE, variance, deltas and splice=N."""
        name, _, rest = text.partition(":")
        file, *options = rest.split(":")
        keys: dict[str, str | bool | int] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if key == "cmvn" and value:
                keys[key] = value
            elif key == "splice" and value.isdecimal():
                keys[key] = int(value)
            elif key in ("variance", "deltas") and not equals:
                keys[key] = True
            else:
                raise RecipeError(f"--stream {text}: unknown {option!r}; known: cmvn=FILE, variance, deltas, splice=N")
        if not name or not file:
            raise RecipeError(f"--stream {text}: NAME:FILE[:OPTION...] is expected, as logmel:feats.scp:deltas")
        if keys.get("variance") and "cmvn" not in keys:
            raise RecipeError(f"--stream {text}: variance is taken from the statistics that cmvn=FILE names")
        return cls(name, file, **keys)  # type: ignore[arg-type]

    def processed(self, frames: np.ndarray, statistics: np.ndarray | None) -> np.ndarray:
        """[T, D] to [T, D']. statistics: [2, D + 1], as Kaldi has them."""
        if statistics is not None:
            count = statistics[0, -1]
            mean = statistics[0, :-1] / count
            frames = frames - mean
            if self.variance:
                frames = frames / np.sqrt(np.maximum(statistics[1, :-1] / count - mean**2, 1e-10))
        if self.deltas:
            frames = with_deltas(frames)
        return spliced(frames, self.splice)


def spliced(frames: np.ndarray, context: int) -> np.ndarray:
    """[T, D] to [T, (2 context + 1) D]: before the first frame comes the first again, after the last the last."""
    places = np.arange(len(frames))[:, None] + np.arange(-context, context + 1)
    return frames[places.clip(0, len(frames) - 1)].reshape(len(frames), -1)


class Table(Mapping[str, np.ndarray]):
    """An scp file: arrays by utterance or speaker, read when asked for. Raises DataError for what cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._arrays = kaldiio.load_scp(str(path))
        except UNREADABLE as error:
            raise _unreadable(path, error) from error

    def __getitem__(self, key: str) -> np.ndarray:
        try:
            return self._arrays[key]
        except UNREADABLE as error:
            raise _unreadable(path=self.path, error=error, key=key) from error

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)


class LeaveOut(Exception):
    """This utterance cannot be used, for this reason."""


@dataclass(frozen=True)
class KaldiPart:
    """One part's files, opened as they are needed. ivectors: FILE or FILE:PERIOD; alignments may hold a *."""

    folder: Path
    streams: tuple[Stream, ...]
    ivectors: str | None
    alignments: str

    @cached_property
    def speakers(self) -> dict[str, str]:
        path = self.folder / "utt2spk"
        try:
            return dict(line.split() for line in path.read_text().splitlines() if line.strip())
        except (OSError, ValueError) as error:
            raise _unreadable(path, error) from error

    @cached_property
    def tables(self) -> list[Table]:
        return [Table(self.folder / stream.file) for stream in self.streams]

    @cached_property
    def statistics(self) -> list[Table | None]:
        return [Table(self.folder / stream.cmvn) if stream.cmvn else None for stream in self.streams]

    @cached_property
    def ivector_table(self) -> Table | None:
        return Table(self.folder / self.ivectors.partition(":")[0]) if self.ivectors else None

    @cached_property
    def ivector_period(self) -> int:
        period = (self.ivectors or "").partition(":")[2] or str(IVECTOR_PERIOD)
        if not period.isdecimal() or period == "0":
            raise RecipeError(f"--ivectors {self.ivectors}: FILE or FILE:PERIOD is expected, in frames")
        return int(period)

    def dimensions(self) -> dict[str, int]:
        """Of each stream, as it is in the first utterance that has them all."""
        for name in self.tables[0]:
            try:
                streams = self._streams(name, self.tables[0][name].shape[0])
            except LeaveOut:
                continue
            return {stream: frames.shape[1] for stream, frames in streams.items()}
        raise DataError(f"no utterance of {self.folder} has all the streams, with as many frames in each")

    def write(self, writer: PartWriter, dimensions: dict[str, int]) -> None:
        """All utterances that have alignments and all streams; the others are skipped by name."""
        seen = set()
        with tqdm(self._alignments(), str(self.folder), len(self.tables[0]), unit=" utterances") as bar:
            for name, states in bar:
                seen.add(name)
                try:
                    writer.add(self._joined(name, states, dimensions))
                except LeaveOut as reason:
                    writer.skip(name, str(reason))
        for name in self.tables[0]:
            if name not in seen:
                writer.skip(name, "no alignment")

    def _joined(self, name: str, states: np.ndarray, dimensions: dict[str, int]) -> Utterance:
        """An utterance with its streams side by side. Raises LeaveOut, with the reason, if it cannot be used."""
        streams = self._streams(name, len(states))
        if different := [stream for stream, frames in streams.items() if frames.shape[1] != dimensions[stream]]:
            raise LeaveOut(f"another dimension in {different[0]}")
        frames = np.concatenate(list(streams.values()), 1)
        inputs = hashlib.sha256(np.ascontiguousarray(frames, "<f4").data)
        inputs.update(np.ascontiguousarray(states, "<i4").data)
        return Utterance(name, self.speakers[name], frames, states, inputs.digest())

    def _alignments(self) -> Iterator[tuple[str, np.ndarray]]:
        paths = sorted(self.folder.glob(self.alignments)) if "*" in self.alignments else [self.folder / self.alignments]
        if not paths:
            raise DataError(f"{self.folder} holds no {self.alignments}")
        for path in paths:
            try:
                for name, states in Table(path).items() if path.suffix == ".scp" else kaldiio.load_ark(str(path)):
                    if states.ndim != 1 or not np.issubdtype(states.dtype, np.integer) or states.min(initial=0) < 0:
                        raise DataError(f"{path}: {name} is no sequence of pdf-ids; ali-to-pdf makes them")
                    yield name, states.astype(np.int32)
            except UNREADABLE as error:
                raise _unreadable(path, error) from error

    def _streams(self, name: str, length: int) -> dict[str, np.ndarray]:
        """Every stream's frames [T, D] of an utterance. Raises LeaveOut, with the reason, if one is not to be had."""
        if name not in self.speakers:
            raise LeaveOut("no speaker in utt2spk")
        found = {}
        for stream, table, statistics in zip(self.streams, self.tables, self.statistics, strict=True):
            if name not in table:
                raise LeaveOut(f"no features in {stream.name}")
            frames = table[name]
            if len(frames) != length:
                raise LeaveOut(f"another number of frames in {stream.name} than in the alignment")
            its = None if statistics is None else self._by_speaker(statistics, name, f"no statistics for {stream.name}")
            found[stream.name] = stream.processed(frames, its)
        if self.ivector_table is not None:
            vectors = self._by_speaker(self.ivector_table, name, "no i-vector")
            found["ivector"] = self._to_frames(vectors, length)
        return found

    def _by_speaker(self, table: Table, name: str, otherwise: str) -> np.ndarray:
        for key in (name, self.speakers[name]):
            if key in table:
                return table[key]
        raise LeaveOut(otherwise)

    def _to_frames(self, vectors: np.ndarray, length: int) -> np.ndarray:
        """An i-vector [D], or one for every period [T / period, D], to [T, D]."""
        if vectors.ndim == 1:
            return np.broadcast_to(vectors, (length, len(vectors)))
        if len(vectors) != -(-length // self.ivector_period):
            raise LeaveOut("another number of i-vectors than the frames and their period want")
        return vectors.repeat(self.ivector_period, 0)[:length]


def _unreadable(path: Path, error: Exception, key: str = "") -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{error.filename or path} is not there{f' ({key} of {path})' if key else ''}")
    return DataError(f"{path} is damaged or unreadable{f' at {key}' if key else ''} ({type(error).__name__}: {error})")
