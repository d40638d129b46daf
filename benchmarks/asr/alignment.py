"""Forced alignment: in which tied state of PocketSphinx's English acoustic model is each frame of an utterance?

The states are the senones of the model that PyPI's `pocketsphinx` carries: about 5,100 tied context-dependent states of
three-state phone models. They are the same kind of target as the paper's 32,000, which an aligner of IBM's own gave.
"""

from __future__ import annotations

from functools import cache
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pocketsphinx import Decoder

from horovod_dpsgd.errors import DataError

RATE = 16_000  # of the sound that the model was trained on
WORD_BEAMS = (1e-15, 1e-10, None)  # tried in turn; None: the decoder's own, 7e-29
SILENCE = "SIL"


class Alignment(NamedTuple):
    """states: senone of each frame, int32 [T]; silence: whether it is one of the silence phone's, bool [T]."""

    states: np.ndarray
    silence: np.ndarray


class Unaligned(Exception):
    """No alignment was found, for the reason said; `detail`: where that helps."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class Aligner:
    """PocketSphinx with its own dictionary and, after that, the words of `lexicon`: WORD PHONE PHONE..., a line each.

    Raises DataError for a lexicon that is damaged, or has a phone that the model does not know.
    """

    def __init__(self, lexicon: Path | None = None) -> None:
        self.lexicon = read_lexicon(lexicon) if lexicon else {}

    def align(self, sound: np.ndarray, words: tuple[str, ...]) -> Alignment:
        """Align float32 sound [samples], 16,000 a second, with its words. Raises Unaligned if that cannot be done."""
        if not words:
            raise Unaligned("no words")
        if unknown := [word for word in words if self._decoder(WORD_BEAMS[0]).lookup_word(word) is None]:
            raise Unaligned("a word not in the dictionary", " ".join(dict.fromkeys(unknown)))
        pcm = (sound * 2**15).round().clip(-(2**15), 2**15 - 1).astype("<i2").tobytes()
        for beam in WORD_BEAMS:
            try:
                return _aligned(self._decoder(beam), pcm, words)
            except RuntimeError:  # what the decoder raises, and we when it gave up half-way
                continue
        raise Unaligned("the aligner found no path")

    @cache  # noqa: B019 (as many as there are beams, and an aligner is for life)
    def _decoder(self, beam: float | None) -> Decoder:
        keys = {} if beam is None else {"wbeam": beam}
        decoder = Decoder(lm=None, loglevel="FATAL", **keys)
        for word, phones in self.lexicon.items():
            if decoder.lookup_word(word) is None:
                try:
                    decoder.add_word(word, phones, True)
                except RuntimeError as error:
                    raise DataError(
                        f"the lexicon's {word} has a phone that is not among CMUdict's: {phones}"
                    ) from error
        return decoder


def _aligned(decoder: Decoder, pcm: bytes, words: tuple[str, ...]) -> Alignment:
    """First the words, then the states within them. Raises RuntimeError if the words are not all found."""
    decoder.reinit_feat()  # else it goes on with the noise of earlier utterances, and their order would matter
    decoder.set_align_text(" ".join(words))
    _decode(decoder, pcm)
    found = [segment.word.partition("(")[0] for segment in decoder.seg() or ()]  # "read(2)": another pronunciation
    if tuple(word for word in found if not _is_filler(word)) != words:
        raise RuntimeError("not all of the words were found")
    decoder.set_alignment()
    _decode(decoder, pcm)
    states: list[int] = []
    silence: list[bool] = []
    for word in decoder.get_alignment():
        for phone in word:
            for state in phone:
                if state.start != len(states) or state.duration < 1:
                    raise RuntimeError("the states do not follow one another")
                states.extend(repeat(int(state.name), state.duration))
                silence.extend(repeat(phone.name == SILENCE, state.duration))
    return Alignment(np.array(states, np.int32), np.array(silence, bool))


def _decode(decoder: Decoder, pcm: bytes) -> None:
    decoder.start_utt()
    try:
        decoder.process_raw(pcm, full_utt=True)
    finally:
        decoder.end_utt()


def _is_filler(word: str) -> bool:
    return not word or word.startswith(("<", "["))


def read_lexicon(path: Path) -> dict[str, str]:
    """Pronunciations by word, in lower case as the decoder's own are. Raises DataError for a line without phones."""
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is missing or unreadable ({error})") from error
    if short := next((line for line in lines if len(line) < 2), None):
        raise DataError(f"{path}: {short[0]} has no phones; WORD PHONE PHONE... is expected")
    return {word.lower(): " ".join(phones) for word, *phones in lines}
