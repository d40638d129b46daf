"""Texts in the files that people have them in, read line by line."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from horovod_dpsgd.errors import DataError
from horovod_dpsgd.files import sha256


@dataclass(frozen=True)
class Text(ABC):
    """One part of a text: files that are read one after the other."""

    paths: tuple[Path, ...]

    @abstractmethod
    def lines(self) -> Iterator[str]:
        """Without their ends, and without spaces at either side. Raises DataError naming a file that is damaged."""

    def state(self) -> object:
        """What tells these files, as they are now, from any others; its repr is hashed."""
        return [(str(path.resolve()), (stat := path.stat()).st_size, stat.st_mtime_ns) for path in self.paths]

    def inputs(self) -> list[dict[str, Any]]:
        """Name, size and SHA-256 of every file."""
        return [
            {"path": str(path.resolve()), "bytes": path.stat().st_size, "sha256": sha256(path)} for path in self.paths
        ]


class PlainText(Text):
    """UTF-8."""

    def lines(self) -> Iterator[str]:
        for path in self.paths:
            try:
                with path.open(encoding="utf-8", newline="\n") as file:
                    for line in file:
                        yield line.rstrip("\r\n").strip(" ")
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not UTF-8 text (byte {error.start} of a line: {error.reason})") from error
            except OSError as error:
                raise DataError(f"{path} cannot be read ({error.strerror})") from error


class ParquetText(Text):
    """The column "text" of parquet files, as data sets on the hub have it: a row is a line, or some; a missing one, an
    empty line."""

    def lines(self) -> Iterator[str]:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise DataError(f"{self.paths[0]} needs pyarrow to be read: pip install pyarrow") from error
        for path in self.paths:
            try:
                for batch in parquet.ParquetFile(path).iter_batches(columns=["text"]):
                    for row in batch.column("text").to_pylist():
                        yield from (line.strip(" ") for line in (row or "").removesuffix("\n").split("\n"))
            except (OSError, ValueError, KeyError) as error:  # pyarrow's own are of these
                raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
