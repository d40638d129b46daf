"""From sound to numbers: log-mel energies, their deltas, and each speaker's mean and variance taken out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio import functional
from torchaudio.compliance import kaldi

from horovod_dpsgd.errors import DataError

MELS = 40
RATES = (16_000, 8_000)  # samples a second
FRAME_SECONDS = 0.025  # one begins every 10 ms
LEAST_DEVIATION = 1e-3  # a number that never changes is not blown up


def read_audio(path: Path, rate: int) -> np.ndarray:
    """Sound as float32 [samples] in [-1, 1] at `rate` samples a second, resampled if need be; channels are averaged.

    Raises DataError for a file that cannot be read.
    """
    try:
        sound, its_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError, TypeError) as error:  # soundfile's own errors are RuntimeErrors
        raise DataError(f"{path} is damaged or no audio ({error})") from error
    return resampled(sound.mean(1), its_rate, rate)


def resampled(sound: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    if rate == wanted:
        return sound
    return functional.resample(torch.from_numpy(sound), rate, wanted).numpy()


def log_mel(sound: np.ndarray, rate: int) -> np.ndarray:
    """[samples] to float32 [T, 40], as Kaldi computes them, without dither.

    Frame t begins at 10 t ms; one that would need samples after the end is not made, so short sound gives none.
    """
    if len(sound) < FRAME_SECONDS * rate:
        return np.empty((0, MELS), np.float32)
    as_in_kaldi = torch.from_numpy(sound)[None] * 2**15  # samples of 16 bits
    return kaldi.fbank(as_in_kaldi, num_mel_bins=MELS, sample_frequency=rate).numpy()


def with_deltas(frames: np.ndarray) -> np.ndarray:
    """[T, D] to [T, 3 D]: beside them their slopes over five frames, and the slopes of those."""
    static = torch.from_numpy(np.ascontiguousarray(frames.T, np.float32))
    deltas = functional.compute_deltas(static)
    return torch.cat([static, deltas, functional.compute_deltas(deltas)]).T.numpy()


class MeanAndVariance:
    """Of a speaker's frames, each number by itself; gathered a few frames at a time."""

    def __init__(self, dimension: int) -> None:
        self.count = 0
        self.sum, self.sum_of_squares = np.zeros(dimension), np.zeros(dimension)

    def add(self, frames: np.ndarray) -> None:
        frames = frames.astype(np.float64)
        self.count += len(frames)
        self.sum += frames.sum(0)
        self.sum_of_squares += np.square(frames).sum(0)

    def normalise(self, frames: np.ndarray) -> np.ndarray:
        """The frames with mean 0 and variance 1, if they are all that was added."""
        mean = self.sum / self.count
        deviation = np.sqrt(np.maximum(self.sum_of_squares / self.count - mean**2, 0))
        return ((frames - mean) / np.maximum(deviation, LEAST_DEVIATION)).astype(np.float32)
