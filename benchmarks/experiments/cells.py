"""Cells of a table: networks by ever larger rates or batches, or ever shorter warm-ups, each by several algorithms.

A rate is given as the paper gives it, as a multiple of the base rate: 32x.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from benchmarks.experiments.launch import Job


@dataclass(frozen=True)
class Method:
    """An algorithm and its optimizer, with what it needs beside the recipe."""

    label: str
    arguments: tuple[str, ...]
    style: str  # of `figures.STYLES`

    @property
    def file_name(self) -> str:
        return _file_name(self.label)


SSGD = Method("SSGD", ("--algo", "ssgd"), "ssgd")
DPSGD = Method("DPSGD", ("--algo", "dpsgd"), "dpsgd")


def ssgd_star(std: float) -> Method:
    return Method(f"SSGD* ({std:g})", ("--algo", "ssgd-star", "--noise-std", f"{std:g}"), "ssgd-star")


@dataclass(frozen=True)
class Net:
    """A network and the recipe that it is trained by."""

    label: str
    script: str
    recipe: str
    options: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        return _file_name(self.label)


@dataclass(frozen=True)
class Cell:
    """The runs of a table's cell: all that they have in common but the seed.

    row: headings and entries of the table's row, as (("batch", "512"), ("rate", "16x")). x: where on the ladder it is,
    for figures. arguments: those of the row, and others, as how often to evaluate.
    """

    net: Net
    method: Method
    learners: int
    row: tuple[tuple[str, str], ...]
    x: float
    arguments: tuple[str, ...]

    @property
    def name(self) -> str:
        entries = "-".join(SHORT.get(heading, heading) + entry for heading, entry in self.row)
        return f"{self.net.file_name}-{entries}-{self.method.file_name}"

    def job(self, seed: int) -> Job:
        words = ("--recipe", self.net.recipe, *self.net.options, *self.method.arguments, *self.arguments)
        return Job(f"{self.name}-seed{seed}", self.net.script, self.learners, (*words, "--seed", str(seed)))


def _file_name(label: str) -> str:
    return re.sub("[^a-z0-9.-]", "", label.lower().replace("*", "-star").replace(" ", "-"))


SHORT = {"batch": "bs", "rate": "", "warm-up": "warmup"}  # in names of run folders


def at_rate(net: Net, batch: int, rate: float, method: Method, learners: int, more: tuple[str, ...] = ()) -> Cell:
    """A batch size, and a peak rate that is a multiple of the recipe's base rate."""
    arguments = ("--batch-size", str(batch), "--lr-scale", f"{rate:g}x", *more)
    return Cell(net, method, learners, (("batch", str(batch)), ("rate", f"{rate:g}x")), rate, arguments)


def jobs(cells: Iterable[Cell], seeds: Sequence[int]) -> list[Job]:
    """Seed by seed, so that a queue that is cut short has every cell as often as it can."""
    cells = list(dict.fromkeys(cells))
    return [cell.job(seed) for seed in seeds for cell in cells]
