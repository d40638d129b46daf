"""Where what benchmarks have fetched or made of it is kept between runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """`$XDG_CACHE_HOME/horovod_dpsgd/KIND`, or the same below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "horovod_dpsgd" / kind


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Inside the block no other process is in one for the same folder; it waits for as long as that takes.

    The folder is made if it is not there. On a file system without locks it is up to the user.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        with suppress(OSError):
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield  # the lock goes with the file
