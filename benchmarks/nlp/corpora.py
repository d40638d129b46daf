"""The texts that are trained on, and the layouts in which people have them:

task          --data-dir DIR holds, itself or in a folder of the name in brackets
wikitext103   [wikitext-103, wikitext-103-raw, and each with -v1] any of the layouts below; without --data-dir the
              `datasets` library fetches it
novels        [novels] train.txt, valid.txt, and test.txt
text          any of the layouts below: text of your own

Layouts: wiki.train.tokens or wiki.train.raw, train.txt, or train*.parquet with a column "text"; and the same with valid
(or validation) and test for train. A line is a paragraph, or a sentence; its end is a token too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.cache import alone_in, cache_folder
from benchmarks.nlp.texts import ParquetText, PlainText, Text
from horovod_dpsgd.errors import DataError

NAMES = {"train": ("train",), "valid": ("valid", "validation"), "test": ("test",)}
PLAIN = ("wiki.{}.tokens", "wiki.{}.raw", "{}.txt")
ON_THE_HUB = ("Salesforce/wikitext", "wikitext-103-v1")
WIKITEXT_HELP = (
    "get wikitext-103-v1.zip or the parquet files of "
    "https://huggingface.co/datasets/Salesforce/wikitext/tree/main/wikitext-103-v1 and put them there"
)


@dataclass(frozen=True)
class Corpus:
    """title: in words fit to stand beside a result (empty: the folder's name); folders: below --data-dir, where it may
    be; words: that it has at least, so that no other text goes by its name; help: where to get it."""

    title: str
    folders: tuple[str, ...] = ()
    words: int = 0
    help: str = "DIR/train.txt and DIR/valid.txt are expected; for other layouts see benchmarks/nlp/README.md"
    on_the_hub: tuple[str, str] | None = None


WIKITEXT = "wikitext-103"
CORPORA = {
    "wikitext103": Corpus(
        "WikiText-103",
        (WIKITEXT, f"{WIKITEXT}-v1", f"{WIKITEXT}-raw", f"{WIKITEXT}-raw-v1"),
        words=100_000_000,  # of 103 million
        help=WIKITEXT_HELP,
        on_the_hub=ON_THE_HUB,
    ),
    "novels": Corpus("novels", ("novels",)),
    "text": Corpus(""),
}


@dataclass(frozen=True)
class Found:
    """A corpus on this machine: its name, and the text of two of its parts."""

    title: str
    train: Text
    heldout: Text


def find(task: str, data_dir: Path | None, heldout: str, may_fetch: bool) -> Found:
    """The corpus of that task, held out being its part "valid" or "test". Raises DataError: where to get it."""
    if task not in CORPORA:
        raise DataError(f"unknown task {task!r}: choose one of {', '.join(CORPORA)}")
    corpus = CORPORA[task]
    if data_dir is None and corpus.on_the_hub:
        data_dir = _fetched(corpus.on_the_hub, may_fetch)
    if data_dir is None:
        raise DataError(f"task {task} needs --data-dir DIR (or --synthetic): {corpus.help}")
    if not data_dir.is_dir():
        raise DataError(f"--data-dir {data_dir} is not a folder; {corpus.help}")
    folders = [data_dir / name for name in corpus.folders if (data_dir / name).is_dir()] + [data_dir]
    folder = next((each for each in folders if _part(each, "train")), None)
    if folder is None:
        raise DataError(f"--data-dir {data_dir} holds no text to train on: {corpus.help}")
    train, kept = _part(folder, "train"), _part(folder, heldout)
    if not train or not kept:
        raise DataError(f"{folder} holds no {heldout} part beside the text to train on: {corpus.help}")
    return Found(corpus.title or data_dir.resolve().name, train, kept)


def _part(folder: Path, part: str) -> Text | None:
    for name in NAMES[part]:
        for pattern in PLAIN:
            if (path := folder / pattern.format(name)).is_file():
                return PlainText((path,))
        if paths := sorted(folder.glob(f"{name}*.parquet")):
            return ParquetText(tuple(paths))
    return None


# ---- from the hub ----


def _fetched(on_the_hub: tuple[str, str], may_fetch: bool) -> Path | None:
    """A folder with the parts of a data set of the hub, into which one of each node puts them if they are not there.

    Where nodes share a cache the first one does it: the files of another would seem to be changed while it reads them.
    """
    folder = cache_folder("texts") / on_the_hub[1]
    if may_fetch:
        try:
            with alone_in(folder):
                for part in NAMES:
                    if not (folder / f"{part}.txt").is_file():
                        _write_lines(folder / f"{part}.txt", _rows(on_the_hub, NAMES[part][-1]))
        except OSError as error:
            raise DataError(f"cannot write to the cache {folder} ({error.strerror}); set XDG_CACHE_HOME") from error
    return folder if (folder / "train.txt").is_file() else None


def _rows(on_the_hub: tuple[str, str], split: str) -> Iterable[str]:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"without --data-dir the text is fetched by the datasets library (pip install datasets), or {WIKITEXT_HELP}"
        ) from error
    try:
        rows: Iterable[str] = datasets.load_dataset(*on_the_hub, split=split)["text"]
    except Exception as error:  # of any kind: of the network, the hub, and the library's own
        raise DataError(f"{'/'.join(on_the_hub)} cannot be fetched ({' '.join(str(error).split())})") from error
    return rows


def _write_lines(path: Path, rows: Iterable[str]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(row if row.endswith("\n") else f"{row}\n" for row in rows)
    partial.rename(path)
