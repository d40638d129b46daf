"""The distributed algorithms, by name. A new one is a file beside these and a line in `ALGORITHMS`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from horovod_dpsgd.algorithms.base import Algorithm, Settings


@dataclass(frozen=True)
class Entry:
    """What is to be known of an algorithm before its file is imported, which may import Horovod.

    kind: FILE:CLASS. asynchronous: as of the class. takes: the keys of a recipe that only some algorithms have. needs:
    a package beyond what all of them need.
    """

    kind: str
    asynchronous: bool = False
    takes: frozenset[str] = frozenset()
    needs: str | None = None


ALGORITHMS = {
    "ssgd": Entry("ssgd:SSGD", needs="horovod"),
    "ssgd-star": Entry("ssgd_star:SSGDStar", takes=frozenset({"noise_std"}), needs="horovod"),
    "dpsgd": Entry("dpsgd:DPSGD", takes=frozenset({"topology", "compression", "mix_moments"})),
    "adpsgd": Entry("adpsgd:ADPSGD", asynchronous=True, takes=frozenset({"topology"})),
}


def taking(key: str) -> str:
    """The names of those that have a key of a recipe, in words: "dpsgd and adpsgd"."""
    return " and ".join(name for name, entry in ALGORITHMS.items() if key in entry.takes)


def find(name: str) -> type[Algorithm]:
    """The algorithm called `name`. Raises KeyError if there is none, ImportError if what it needs is not installed."""
    file, _, kind = ALGORITHMS[name].kind.partition(":")
    found: type[Algorithm] = getattr(import_module(f"{__name__}.{file}"), kind)
    return found


__all__ = ["ALGORITHMS", "Algorithm", "Entry", "Settings", "find", "taking"]
