"""From a corpus of audio to the prepared form: log-mel features and aligned states, in parallel, and resumable.

First every utterance is read, measured and aligned, a few of them a piece of work: the pieces are files in the output
folder's `pieces/`, and those that are there are not made again. Then each speaker's mean and variance are known, and
which states occur; the prepared form is written, and the pieces go.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.asr import alignment, features
from benchmarks.asr.alignment import Aligner, Unaligned
from benchmarks.asr.corpora import Spoken
from benchmarks.asr.features import MELS, MeanAndVariance
from benchmarks.asr.prepared import Manifest
from benchmarks.asr.writing import PartWriter, PreparedWriter, Utterance, check_free
from horovod_dpsgd.errors import DataError
from horovod_dpsgd.files import write_whole

PIECE = 16  # utterances: seconds of work
SLACK = 2  # frames by which features and alignment may differ in number: they treat the last samples differently
STREAMS = {"logmel": MELS, "logmel-delta": MELS, "logmel-delta-delta": MELS}


@dataclass(frozen=True)
class Settings:
    """rate: of the sound that features are made from; lexicon: pronunciations beyond the aligner's own;
    keep_silence: frames of silence to leave at either end of an utterance (None: all)."""

    rate: int = 16_000
    lexicon: Path | None = None
    keep_silence: int | None = 15


@dataclass
class Piece:
    """What was made of a few utterances, one after the other: frames float32 [T, 40], states int32 [T], silence bool
    [T]. names, speakers and lengths: of those that could be used. skipped: name, reason and detail of the others."""

    frames: np.ndarray
    states: np.ndarray
    silence: np.ndarray
    names: list[str] = field(default_factory=list)
    speakers: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str, str]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        partial = path.with_suffix(f".{os.getpid()}.npz")
        arrays = ("frames", "states", "silence")
        words = {key: value for key, value in vars(self).items() if key not in arrays}
        np.savez(partial, words=np.array(json.dumps(words)), **{name: getattr(self, name) for name in arrays})
        partial.rename(path)

    @classmethod
    def load(cls, path: Path) -> Piece:
        with np.load(path) as arrays:
            words = json.loads(str(arrays["words"]))
            return cls(arrays["frames"], arrays["states"], arrays["silence"], **words)


class Measured(NamedTuple):
    """An utterance of a piece, with deltas beside its features."""

    name: str
    speaker: str
    inputs: str
    frames: np.ndarray
    states: np.ndarray
    silence: np.ndarray


# ---- one utterance ----


def measure(spoken: Spoken, aligner: Aligner, settings: Settings) -> tuple[np.ndarray, alignment.Alignment]:
    """Log-mel features [T, 40] and as many aligned states. Raises Unaligned, or DataError for a damaged file."""
    if spoken.audio is None:
        raise Unaligned("no audio")
    sound = features.read_audio(spoken.audio, settings.rate)
    states, silence = aligner.align(features.resampled(sound, settings.rate, alignment.RATE), spoken.words)
    frames = features.log_mel(sound, settings.rate)
    length = min(len(frames), len(states))
    if max(len(frames), len(states)) > length + SLACK:
        raise Unaligned("another number of frames in the features than in the alignment")
    return frames[:length], alignment.Alignment(states[:length], silence[:length])


def make_piece(path: Path, utterances: list[Spoken], aligner: Aligner, settings: Settings) -> None:
    frames, states, silence = [np.empty((0, MELS), np.float32)], [np.empty(0, np.int32)], [np.empty(0, bool)]
    piece = Piece(frames[0], states[0], silence[0])
    for spoken in utterances:
        try:
            its_frames, its = measure(spoken, aligner, settings)
            digest = hashlib.sha256(spoken.audio.read_bytes() if spoken.audio else b"")
        except Unaligned as problem:
            piece.skipped.append((spoken.name, str(problem), problem.detail))
            continue
        except (DataError, OSError) as problem:
            piece.skipped.append((spoken.name, "audio that cannot be read", str(problem)))
            continue
        digest.update(" ".join(spoken.words).encode())
        frames.append(its_frames)
        states.append(its.states)
        silence.append(its.silence)
        piece.names.append(spoken.name)
        piece.speakers.append(spoken.speaker)
        piece.lengths.append(len(its_frames))
        piece.inputs.append(digest.hexdigest())
    piece.frames, piece.states, piece.silence = (np.concatenate(part) for part in (frames, states, silence))
    piece.save(path)


# ---- all utterances ----


def make_pieces(folder: Path, parts: dict[str, list[Spoken]], settings: Settings, processes: int) -> dict[str, list]:
    """The files of each part's pieces, made if they are not there yet."""
    aligner = Aligner(settings.lexicon)  # first: a lexicon that cannot be read is found before anything starts
    files: dict[str, list[Path]] = {name: [] for name in parts}
    missing: list[tuple[Path, list[Spoken]]] = []
    there = 0
    for name, utterances in parts.items():
        for start in range(0, len(utterances), PIECE):
            path, work = folder / f"{name}-{start:08}.npz", utterances[start : start + PIECE]
            files[name].append(path)
            if path.exists():
                there += len(work)
            else:
                missing.append((path, work))
    total = sum(map(len, parts.values()))
    with tqdm(total=total, initial=there, desc="aligning", unit=" utterances", smoothing=0.05) as bar:
        for done in _work(missing, aligner, settings, min(processes, len(missing))):
            bar.update(done)
    return files


def _work(
    missing: list[tuple[Path, list[Spoken]]], aligner: Aligner, settings: Settings, processes: int
) -> Iterator[int]:
    """Make these pieces; give the number of utterances of each that is done."""
    if processes <= 1:
        for path, utterances in missing:
            make_piece(path, utterances, aligner, settings)
            yield len(utterances)
        return
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(processes, context, _start_worker, (settings,)) as pool:
        jobs = {pool.submit(_piece_of_worker, path, utterances): len(utterances) for path, utterances in missing}
        try:
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        except BrokenProcessPool as error:
            raise DataError("a worker was killed (no memory left?); the same command goes on from there") from error
        finally:
            pool.shutdown(cancel_futures=True)


_worker: dict[str, tuple[Aligner, Settings]] = {}


def _start_worker(settings: Settings) -> None:
    torch.set_num_threads(1)  # the processes are as many as there are cores
    _worker["self"] = Aligner(settings.lexicon), settings


def _piece_of_worker(path: Path, utterances: list[Spoken]) -> None:
    make_piece(path, utterances, *_worker["self"])


# ---- the prepared form ----


class Survey(NamedTuple):
    """What must be known of all utterances before one is written. speakers: by part and name; senones: those that
    occur, in order, which are the states 0, 1, ...; silence: those of these states that are."""

    speakers: dict[tuple[str, str], MeanAndVariance]
    senones: np.ndarray
    silence: list[int]

    @classmethod
    def of(cls, files: dict[str, list[Path]], keep_silence: int | None) -> Survey:
        speakers: dict[tuple[str, str], MeanAndVariance] = defaultdict(lambda: MeanAndVariance(sum(STREAMS.values())))
        occurring: set[int] = set()
        silent: set[int] = set()
        for part, its_files in files.items():
            for measured in _utterances(its_files, keep_silence):
                speakers[part, measured.speaker].add(measured.frames)
                occurring.update(np.unique(measured.states).tolist())
                silent.update(np.unique(measured.states[measured.silence]).tolist())
        senones = np.array(sorted(occurring), np.int32)
        return cls(speakers, senones, np.searchsorted(senones, sorted(silent)).tolist())


def prepare(
    output: Path, parts: dict[str, list[Spoken]], settings: Settings, processes: int, title: str, frame_type: str
) -> Manifest:
    """Prepare both parts. What an interrupted call has done is gone on with, if all is as it was.

    Raises DataError if the folder holds what other settings or files have made, or nothing is left to train on.
    """
    check_free(output)
    folder = output / "pieces"
    _check_same(folder, parts, settings)
    files = make_pieces(folder, parts, settings, processes)
    survey = Survey.of(files, settings.keep_silence)
    writer = PreparedWriter(output, STREAMS, frame_type)
    for part, part_writer in (("train", writer.train), ("heldout", writer.heldout)):
        _write(part_writer, files[part], settings.keep_silence, part, survey)
    np.save(output / "senones.npy", survey.senones)  # what each state is called by the aligner's model
    made_by = {
        **{key: str(value) if isinstance(value, Path) else value for key, value in asdict(settings).items()},
        **{name: version(name) for name in ("pocketsphinx", "soundfile", "torchaudio")},
    }
    manifest = writer.finish(title, made_by, survey.silence, states=len(survey.senones) or None)
    shutil.rmtree(folder)
    return manifest


def _write(
    writer: PartWriter,
    files: list[Path],
    keep_silence: int | None,
    part: str,
    survey: Survey,
) -> None:
    for measured in _utterances(files, keep_silence):
        frames = survey.speakers[part, measured.speaker].normalise(measured.frames)
        states = np.searchsorted(survey.senones, measured.states)
        writer.add(Utterance(measured.name, measured.speaker, frames, states, measured.inputs.encode()))
    for file in files:
        for name, reason, detail in _load(file).skipped:
            writer.skip(name, reason, detail)


def _utterances(files: list[Path], keep_silence: int | None) -> Iterator[Measured]:
    for file in files:
        piece = _load(file)
        starts = np.cumsum([0, *piece.lengths])
        for name, speaker, inputs, start, end in zip(
            piece.names, piece.speakers, piece.inputs, starts[:-1], starts[1:], strict=True
        ):
            kept = speech_and_a_little(piece.silence[start:end], keep_silence)
            frames = features.with_deltas(piece.frames[start:end])[kept]
            yield Measured(name, speaker, inputs, frames, piece.states[start:end][kept], piece.silence[start:end][kept])


def speech_and_a_little(silence: np.ndarray, frames: int | None) -> slice:
    """An utterance without its silent ends [T], of which so many frames are left on either side (None: all)."""
    speech = np.flatnonzero(~silence)
    if frames is None or not len(speech):
        return slice(0, len(silence))
    return slice(max(speech[0] - frames, 0), speech[-1] + 1 + frames)


def _load(path: Path) -> Piece:
    try:
        return Piece.load(path)
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise DataError(f"{path} is damaged ({error}): remove it, and the same command makes it again") from error


def _check_same(folder: Path, parts: dict[str, list[Spoken]], settings: Settings) -> None:
    """Raise DataError if the folder has pieces that were begun for something else."""
    key = hashlib.sha256(repr((PIECE, settings.rate, version("pocketsphinx"))).encode())
    if settings.lexicon:
        key.update(settings.lexicon.read_bytes() if settings.lexicon.is_file() else b"")
    for name, utterances in parts.items():
        for spoken in utterances:
            stat = spoken.audio.stat() if spoken.audio and spoken.audio.exists() else None
            key.update(repr((name, spoken, stat and (stat.st_size, stat.st_mtime_ns))).encode())
    path = folder / "made-for"
    try:
        if path.exists():
            if path.read_text() != key.hexdigest():
                raise DataError(f"{folder} was begun with other files or settings: remove it, or give another --output")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, key.hexdigest())
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror}") from error
