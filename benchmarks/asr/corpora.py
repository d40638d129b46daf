"""Folders of audio and transcripts, in the layouts in which people have them:

Kaldi style         text (UTTERANCE WORDS...), utt2spk (UTTERANCE SPEAKER; without it each speaks once), and
                    wav.scp (UTTERANCE FILE) or UTTERANCE.* or audio/UTTERANCE.*, in any format soundfile reads
LibriSpeech         as torchaudio keeps it: SPEAKER/CHAPTER/*.flac and *.trans.txt, at any depth
Speech Commands     as torchaudio keeps it: WORD/SPEAKER_nohash_N.wav, testing_list.txt, validation_list.txt
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from horovod_dpsgd.errors import DataError

AUDIO = {".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".sph"}
LAYOUTS = "a file text (Kaldi style), *.trans.txt (LibriSpeech), or validation_list.txt (Speech Commands)"


@dataclass(frozen=True)
class Spoken:
    """An utterance as it is recorded: who says what, and the file with the sound (None: there is none)."""

    name: str
    speaker: str
    words: tuple[str, ...]
    audio: Path | None


def find(train: Path, heldout: Path | None, fraction: float | None) -> dict[str, list[Spoken]]:
    """The utterances of both parts: those of two folders, or of one from which a fraction of speakers is held out.

    Speech Commands bring their own division; theirs for testing are in neither part. Raises DataError if a folder is in
    none of the layouts, or if the two do not determine a held-out part.
    """
    if not heldout and not fraction and (train / "validation_list.txt").is_file():
        return speech_commands(train)
    if heldout and not fraction:
        parts = {"train": read(train), "heldout": read(heldout)}
    elif fraction and not heldout:
        parts = {"train": [], "heldout": []}
        for spoken in read(train):
            parts["heldout" if zlib.crc32(spoken.speaker.encode()) < fraction * 2**32 else "train"].append(spoken)
    else:
        raise DataError("one of --heldout DIR and --heldout-fraction F is needed")
    for name, part in parts.items():
        if not part:
            why = ": it has too few speakers for that fraction" if fraction else ""
            folder = heldout if heldout and name == "heldout" else train
            raise DataError(f"the {name} part of {folder} has no utterances{why}")
    return parts


def read(folder: Path) -> list[Spoken]:
    """A folder in any of the layouts, in the order of names. Raises DataError if it is in none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder")
    if (folder / "text").is_file():
        return kaldi_style(folder)
    if any(folder.rglob("*.trans.txt")):
        return librispeech(folder)
    if (folder / "validation_list.txt").is_file():
        return [spoken for part in speech_commands(folder).values() for spoken in part]
    raise DataError(f"{folder} is in none of the layouts that are known: it should hold {LAYOUTS}")


def kaldi_style(folder: Path) -> list[Spoken]:
    if (folder / "segments").exists():
        raise DataError(f"{folder} has segments of longer recordings: cut these into a file for each utterance first")
    transcripts = _lines(folder / "text")
    speakers = {name: name for name, _ in transcripts}
    if (folder / "utt2spk").exists():
        speakers = dict(_lines(folder / "utt2spk"))
        if missing := [name for name, _ in transcripts if not speakers.get(name)]:
            others = f", nor for {len(missing) - 1} others" if missing[1:] else ""
            raise DataError(f"{folder / 'utt2spk'} has no speaker for {missing[0]}{others}")
    audio = _audio_files(folder)
    return [Spoken(name, speakers[name], _words(text), audio.get(name)) for name, text in sorted(transcripts)]


def _audio_files(folder: Path) -> dict[str, Path]:
    if not (folder / "wav.scp").exists():
        places = [place for place in (folder, folder / "audio") if place.is_dir()]
        return {path.stem: path for place in places for path in place.iterdir() if path.suffix.lower() in AUDIO}
    files = dict(_lines(folder / "wav.scp"))
    if piped := next((name for name, file in files.items() if file.endswith("|")), None):
        raise DataError(f"{folder / 'wav.scp'}: {piped} is a command; only files can be read: run the commands first")
    return {name: folder / file for name, file in files.items()}


def librispeech(folder: Path) -> list[Spoken]:
    found = []
    for transcripts in sorted(folder.rglob("*.trans.txt")):
        for name, text in _lines(transcripts):
            audio = transcripts.parent / f"{name}.flac"
            found.append(Spoken(name, name.partition("-")[0], _words(text), audio if audio.exists() else None))
    return found


def speech_commands(folder: Path) -> dict[str, list[Spoken]]:
    heldout, testing = (
        {name for name, _ in _lines(folder / file)} for file in ("validation_list.txt", "testing_list.txt")
    )
    parts: dict[str, list[Spoken]] = {"train": [], "heldout": []}
    for audio in sorted(folder.glob("*/*_nohash_*.wav")):
        name, word = f"{audio.parent.name}/{audio.name}", audio.parent.name
        if name not in testing:
            speaker = audio.name.partition("_nohash_")[0]
            parts["heldout" if name in heldout else "train"].append(Spoken(name, speaker, (word.lower(),), audio))
    return parts


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.lower().split())


def _lines(path: Path) -> list[tuple[str, str]]:
    """Lines of a first word and the rest. Raises DataError for a name that comes twice."""
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or unreadable ({error})") from error
    words = (line.split(maxsplit=1) for line in lines)  # at a space or a tab, as Kaldi does
    pairs = [(name, "".join(rest).strip()) for name, *rest in filter(None, words)]
    if len({name for name, _ in pairs}) < len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, after in pairwise(names) if name == after)
        raise DataError(f"{path} has two lines for {twice}")
    return pairs
