"""The distributed algorithms, by name. A new one is a file beside these and a line in `ALGORITHMS`."""

from __future__ import annotations

from importlib import import_module

from horovod_dpsgd.algorithms.base import Algorithm, Settings

# Imported when asked for: SSGD's file imports Horovod, which the others do without.
ALGORITHMS = {
    "ssgd": "horovod_dpsgd.algorithms.ssgd:SSGD",
    "ssgd-star": "horovod_dpsgd.algorithms.ssgd_star:SSGDStar",
    "dpsgd": "horovod_dpsgd.algorithms.dpsgd:DPSGD",
    "adpsgd": "horovod_dpsgd.algorithms.adpsgd:ADPSGD",
}


def find(name: str) -> type[Algorithm]:
    """The algorithm called `name`. Raises KeyError if there is none, ImportError if what it needs is not installed."""
    module, _, kind = ALGORITHMS[name].partition(":")
    found: type[Algorithm] = getattr(import_module(module), kind)
    return found


__all__ = ["ALGORITHMS", "Algorithm", "Settings", "find"]
