"""Experiments whose runs are the cells of tables, and the numbers of the paper's tables beside theirs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.experiments import cells
from benchmarks.experiments.cells import Cell
from benchmarks.experiments.experiment import Experiment, Line, Scale
from benchmarks.experiments.launch import Loaded
from benchmarks.experiments.tables import Measure, Outcomes
from horovod_dpsgd.report.runs import Run


def experiment(
    folder: str,
    what: str,
    cost: str,
    cells_of: Callable[[Scale], list[Cell]],
    parts: Callable[[Outcomes, Path, str], list[str]],
    name: str,
    paper: str = "The paper's numbers are in an appendix that could not be read.",
    *,
    numbers: Callable[[str], list[Line]],
) -> Experiment:
    """The experiment `name`, of the cells of `cells_of`: `parts` makes figures and paragraphs of their runs; `paper` is
    the last, of which `numbers` makes lines of a CSV."""

    def report(scale: Scale, loaded: Loaded, output: Path) -> str:
        return "\n\n".join([*parts(Outcomes(cells_of(scale), loaded.runs), output, name), paper])

    def about(scale: Scale, run: Run) -> Line:
        name = run.folder.name.rpartition("-seed")[0]
        cell = next(cell for cell in cells_of(scale) if cell.name == name)
        return {"network": cell.net.label, **dict(cell.row), "method": cell.method.label}

    return Experiment(
        what,
        cost,
        lambda scale, seeds: cells.jobs(cells_of(scale), seeds),
        report,
        folder,
        needs_data=True,
        about=about,
        paper=numbers(paper),
    )


# Headings that say what a row of a table is of, and what they are in a CSV.
PLACE = {"batch": "batch", "rate": "rate", "alpha": "lr", "method": "method"}


def paper_lines(text: str, measure: Measure, columns: str = "network", **common: str) -> list[Line]:
    """The numbers of a Markdown table of the paper's, each a line of a CSV. The table's columns, but for those that say
    what a row is of, are networks, or whatever `columns` says; `common` is added to every line. None of other text."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    lines: list[Line] = []
    for row in rows[2:]:
        entries = dict(zip(rows[0], row, strict=True))
        place = {name: entries.pop(heading).partition(" ")[0] for heading, name in PLACE.items() if heading in entries}
        place |= common
        lines += [{columns: of, **place, **measure.of_paper(float(value))} for of, value in entries.items() if value]
    return lines
