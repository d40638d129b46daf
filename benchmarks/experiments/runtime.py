"""Training against the clock (Appendix F): the name that `reproduce.py` has for `benchmarks/runtime`."""

from __future__ import annotations

import argparse
import sys

from benchmarks.experiments.experiment import Elsewhere
from benchmarks.experiments.launch import REPOSITORY
from horovod_dpsgd.errors import UserError


def command(given: argparse.Namespace) -> list[str]:
    """`python -m benchmarks.runtime measure`, with runs and results where `reproduce.py` has them. Raises UserError for
    options that it has nothing like."""
    unlike = {"keep": given.keep, "launcher": given.launcher, "seeds": given.seeds, "together": given.together > 1}
    if wrong := [f"--{option}" for option, value in unlike.items() if value]:
        raise UserError(f"runtime has no {', '.join(wrong)}")
    results = given.results or REPOSITORY / "results" / "runtime"
    words = ["--runs", str(given.runs / "runtime"), "--output", str(results)]
    data = ["--data-dir", str(given.data_dir)] if given.data_dir else []
    more = [*data, *given.more]
    words += ["--list"] * given.dry_run + ["--report"] * given.report_only
    return [sys.executable, "-m", "benchmarks.runtime", "measure", *words, *(["--", *more] if more else [])]


EXPERIMENT = Elsewhere("time of SSGD, DPSGD, AD-PSGD, LAMB; stragglers", "4 h", command, "runtime", "wall-clock.md")
