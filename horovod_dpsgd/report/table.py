"""A comparison of runs as a Markdown table: median and range over the seeds. And the runs one by one, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from horovod_dpsgd.report.runs import Run, by_settings

HEADER = ("algorithm", "learners", "batch", "lr", "runs", "diverged", "held-out error %", "held-out loss")


def comparison(runs: Iterable[Run], extra: Mapping[str, Callable[[Sequence[Run]], str]] | None = None) -> str:
    """One row for all runs of the same settings. `extra` adds columns: a heading, and the cell for a row's runs."""
    extra = extra or {}
    rows = [[*_cells(group), *(cell(group) for cell in extra.values())] for group in by_settings(runs)]
    return markdown([*HEADER, *extra], rows)


def step_milliseconds(group: Sequence[Run]) -> str:
    """A cell for `extra`: the median time of a step, which means something on a machine with nothing else to do."""
    times = (1e3 * run.step_seconds for run in group)
    return median_and_range([each for each in times if np.isfinite(each)], 1)


def of_run(run: Run) -> dict[str, object]:
    """What a run has come to, as a line of a CSV: None for what does not apply or is not finite."""
    keys = ("algo", "topology", "optimizer", "learners", "global_batch", "lr", "seed")
    heldout = {f"heldout_{key}": run.result["heldout"].get(key) for key in ("loss", "error_percent")}
    outcome = (
        "diverged", "diverged_at_step", "steps", "epochs", "consensus_distance", "step_seconds_median",
        "exposed_communication_seconds_median", "samples_per_second", "bytes_sent_per_step", "git",
    )  # fmt: skip
    of_result = run.result.get
    return {key: of_result(key) for key in keys} | heldout | {key: of_result(key) for key in outcome}


def csv_text(lines: Sequence[Mapping[str, object]]) -> str:
    """The lines as CSV, one below the other; each has what columns it has, the others are empty there."""
    columns = list(dict.fromkeys(column for line in lines for column in line))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns line up in plain text too."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def median_and_range(values: Sequence[float], digits: int = 2, kind: Literal["f", "g"] = "f") -> str:
    """ "2.71 (2.64 - 2.93)"; the median alone for one value, "-" where nothing is finite.

    digits: behind the point, or, with kind "g", significant ones. What is not finite is of a run that was lost, and
    worse than all else: "lost (2.64 - 2.93)" if the median is among them.
    """
    found = median_low_high(values)
    if found is None:
        return "-"
    median, low, high = (f"{value:.{digits}{kind}}" if np.isfinite(value) else "lost" for value in found)
    return median if len(values) == 1 else f"{median} ({low} - {high})"


def median_low_high(values: Sequence[float]) -> tuple[float, float, float] | None:
    """The median, for which what is not finite counts as infinite; the least and greatest of what is. None for none."""
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return None
    lost = [np.inf] * (len(values) - len(finite))
    return float(np.median([*finite, *lost])), min(finite), max(finite)


def _cells(group: Sequence[Run]) -> list[str]:
    first = group[0].result
    return [
        group[0].label,
        str(first["learners"]),
        str(first["global_batch"]),
        f"{first['lr']:g}",
        str(len(group)),
        str(sum(run.result["diverged"] for run in group)),
        median_and_range([run.error_percent for run in group]),
        median_and_range([run.heldout_loss for run in group], 4),
    ]
