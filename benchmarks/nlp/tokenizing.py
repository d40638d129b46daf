"""From lines of text to numbers of tokens, by the `tokenizers` library: a tokenizer trained here, or a given one.

The library is imported where there is text to tokenize; who finds the tokens in the cache does without.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from benchmarks.cache import alone_in, cache_folder
from benchmarks.nlp.texts import Text
from horovod_dpsgd.errors import DataError
from horovod_dpsgd.files import write_whole

if TYPE_CHECKING:
    import tokenizers

FORMAT = 1  # raise it when the same text is to give another tokenizer
HELP = "pip install 'tokenizers>=0.20,<1'"
FILE = "tokenizer.json"
UNKNOWN = "<unk>"  # as WikiText writes what is no word of its own
NEWLINE = "Ċ"  # how byte-level tokenizers write "\n"
LINE_ENDS = ("[SEP]", "</s>", "<|endoftext|>")  # of tokenizers that drop "\n"


class Encoder:
    """What a tokenizer of the `tokenizers` library makes of lines. Each ends with a token, "\\n" where there is one.

    vocabulary: how many numbers a token may have, from 0 on (in some tokenizers a few are nobody's); digest: of all
    that the tokenizer is.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self.tokenizer = tokenizer
        self.vocabulary = 1 + max(tokenizer.get_vocab().values(), default=-1)
        self.digest = hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
        unknown = getattr(tokenizer.model, "unk_token", None)
        self._unknown = unknown if unknown and tokenizer.token_to_id(UNKNOWN) is None else UNKNOWN
        self._end = self._line_end()

    def encode(self, lines: Sequence[str]) -> np.ndarray:
        """The tokens of all lines, one after the other."""
        if self._unknown != UNKNOWN:
            lines = [line.replace(UNKNOWN, self._unknown) for line in lines]
        numbers: list[int] = []
        for encoding in self.tokenizer.encode_batch_fast(list(lines), add_special_tokens=False):
            numbers += encoding.ids
            numbers += self._end
        return np.array(numbers, np.int64)

    def _line_end(self) -> list[int]:
        newline = self.tokenizer.token_to_id(NEWLINE)
        if newline is not None:
            return [newline]
        if ids := self.tokenizer.encode("\n", add_special_tokens=False).ids:
            return list(ids)
        for name in LINE_ENDS:
            if (number := self.tokenizer.token_to_id(name)) is not None:
                return [number]
        raise DataError(f"the tokenizer has no token for the end of a line: neither a newline nor {LINE_ENDS}")


class Tokenizing(Protocol):
    """A way to tokenize, known before the tokenizer is there."""

    @property
    def words(self) -> str:
        """Fit to stand beside a result."""

    def state(self) -> object:
        """What tells it from any other; its repr is hashed."""

    def encoder(self) -> Encoder:
        """Raises DataError for what is missing or damaged."""


@dataclass(frozen=True)
class TrainedHere:
    """Byte-level BPE of `vocabulary` tokens, trained on `text`: once, then from the cache."""

    text: Text
    vocabulary: int

    @property
    def words(self) -> str:
        return "byte-level BPE trained on it"

    def state(self) -> object:
        return "bpe", FORMAT, self.vocabulary, self.text.state()

    def encoder(self) -> Encoder:
        library = _library()
        digest = hashlib.sha256(repr(self.state()).encode()).hexdigest()[:16]
        folder = cache_folder("tokenizers") / f"bpe-{self.vocabulary}-{digest}"
        try:
            with alone_in(folder):
                return Encoder(_read(folder / FILE) or self._train(library, folder / FILE))
        except OSError as error:
            raise DataError(f"cannot write to the cache {folder} ({error.strerror}); set XDG_CACHE_HOME") from error

    def _train(self, library: Any, path: Path) -> tokenizers.Tokenizer:
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=True)  # a line begins with a word
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=self.vocabulary,
            special_tokens=[library.AddedToken(UNKNOWN, lstrip=True, special=True)],  # with the space before it
            initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self.text.lines(), trainer)
        write_whole(path, tokenizer.to_str())
        return tokenizer


@dataclass(frozen=True)
class Given:
    """A tokenizer of somebody else's: a tokenizer.json, a folder with one or with any that transformers knows, or a
    name on the hub, of which only that of a node who may fetch reads."""

    place: str
    may_fetch: bool

    @property
    def words(self) -> str:
        return f"the tokenizer {Path(self.place).name}"

    def state(self) -> object:
        path = Path(self.place)
        files = sorted(path.glob("*")) if path.is_dir() else [path] if path.is_file() else []
        stats = [(str(file.resolve()), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files]
        return "given", FORMAT, stats or self.place

    def encoder(self) -> Encoder:
        library, path = _library(), Path(self.place)
        file = path / FILE if path.is_dir() else path
        if file.is_file():
            tokenizer = _read(file)
            if tokenizer is None:
                raise DataError(f"{file} is no tokenizer of the tokenizers library, or damaged")
            return Encoder(tokenizer)
        return Encoder(library.Tokenizer.from_str(self._from_transformers()))

    def _from_transformers(self) -> str:
        """One kept in other files (vocab.txt, vocab.json and merges.txt), or on the hub."""
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise DataError(
                f"data_options.tokenizer: {self.place} is no {FILE}; anything else needs the transformers library"
            ) from error
        local = not self.may_fetch or Path(self.place).is_dir()
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.place, use_fast=True, local_files_only=local)
            return str(tokenizer.backend_tokenizer.to_str())
        except Exception as error:  # of any kind: files, the network, the hub, and the library's own
            raise DataError(
                f"data_options.tokenizer: {self.place} cannot be read ({' '.join(str(error).split())}); give a folder "
                "that holds one, or train one: data_options.vocabulary"
            ) from error


def _read(path: Path) -> tokenizers.Tokenizer | None:
    """None where it is missing or damaged."""
    try:
        content = path.read_text(encoding="utf-8")
        json.loads(content)
        return _library().Tokenizer.from_str(content)
    except (OSError, ValueError):
        return None
    except Exception as error:  # the library raises nothing more special
        if type(error) is not Exception:
            raise
        return None


def _library() -> Any:
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError as error:
        raise DataError(f"to tokenize text the tokenizers library is needed: {HELP}") from error
    return tokenizers
