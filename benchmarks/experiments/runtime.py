"""Training against the clock (Appendix F): the name that `reproduce.py` has for `benchmarks/runtime`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.experiments.experiment import Elsewhere
from benchmarks.experiments.launch import REPOSITORY


def command(given: argparse.Namespace) -> list[str]:
    """`python -m benchmarks.runtime measure`, with runs and results where `reproduce.py` has them."""
    results = given.results or REPOSITORY / "results" / "runtime"
    words = ["--runs", str(given.runs / "runtime"), "--output", str(results)]
    data = ["--data-dir", str(given.data_dir)] if given.data_dir else []
    more = [*data, *given.more]
    dry = ["--list"] if given.dry_run else []
    return [sys.executable, "-m", "benchmarks.runtime", "measure", *words, *dry, *(["--", *more] if more else [])]


EXPERIMENT = Elsewhere("time of SSGD, DPSGD, AD-PSGD, LAMB; stragglers", "4 h", command, "runtime", "wall-clock.md")
