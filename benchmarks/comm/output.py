"""What a measurement leaves: JSON lines in a file, and a table on the terminal. Only rank 0 writes.

The first line says on what and by which command the others were measured.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.comm import arguments, measure
from horovod_dpsgd import machine
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.report import table

REPOSITORY = Path(__file__).resolve().parents[2]


class Output:
    """Rows of one measurement, written where `given` says (see `arguments.parser`). Making one is collective."""

    def __init__(self, given: argparse.Namespace, bench: str, learners: Learners) -> None:
        path: Path | None = given.output
        self.rows: list[dict[str, Any]] = []
        self._speaks = learners.rank == 0
        self._bench = bench
        emulated = learners.nodes > 1 and measure.on_one_machine(learners)
        self._file = None
        reason = None
        if self._speaks and path is not None:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._file = path.open("w")
            except OSError as error:
                reason = f"--output {path}: {error.strerror}"
        if reason := learners.broadcast(reason):
            arguments.refuse(learners, reason)
        if self._speaks:
            about = _about(learners, emulated)
            self._write({"kind": "run", "bench": bench} | about)
            self.say(f"# {bench}: {learners.size} learners on {learners.nodes} node(s); {about['machine']}")

    def row(self, **values: Any) -> None:
        self.rows.append(values)
        self._write({"kind": "row", "bench": self._bench} | values)

    def skip(self, what: str, reason: str) -> None:
        """Say that something was not measured, and why."""
        self._write({"kind": "skipped", "bench": self._bench, "what": what, "reason": reason})
        self.say(f"# not measured: {what}: {reason}")

    def say(self, line: str) -> None:
        if self._speaks:
            print(line, flush=True)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        self.say("\n" + table.markdown(header, rows) + "\n")

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _write(self, line: dict[str, Any]) -> None:
        if self._file:
            self._file.write(json.dumps(_rounded(line)) + "\n")
            self._file.flush()


def _about(learners: Learners, emulated: bool) -> dict[str, Any]:
    from horovod_dpsgd.training.run_log import git_revision, versions

    return {
        "command": command(learners.size),
        "learners": learners.size,
        "nodes": learners.nodes,
        "emulated_hosts": emulated,
        "threads": torch.get_num_threads(),
        "machine": machine.in_words(),
        "versions": versions(),
        "git": git_revision(),
        "date": time.strftime("%Y-%m-%d"),
    }


def command(learners: int) -> str:
    """The command line of this program, as one would give it in the repository."""
    script, *words = sys.argv
    if "--output" in words:
        at = words.index("--output")
        del words[at : at + 2]
    try:
        script = str(Path(script).resolve().relative_to(REPOSITORY))
    except ValueError:
        script = Path(script).name
    return shlex.join([*(["mpirun", "-np", str(learners)] if learners > 1 else []), "python", script, *words])


def _rounded(thing: Any) -> Any:
    """Numbers with five digits: nothing here is known better."""
    if isinstance(thing, float):
        return float(f"{thing:.5g}")
    if isinstance(thing, dict):
        return {key: _rounded(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_rounded(value) for value in thing]
    return thing


def duration(seconds: float) -> str:
    """ "12.3 ms" """
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= 0.9995 * size:  # what is rounded to it
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def size_name(nbytes: int) -> str:
    """ "44 MB" """
    for unit, size in (("GB", 2**30), ("MB", 2**20), ("KB", 2**10)):
        if nbytes >= size:
            return f"{nbytes / size:g} {unit}"
    return f"{nbytes} B"
