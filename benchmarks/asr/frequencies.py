"""How often each tied state occurs: a table, and the frequencies over their rank (Zipf's law would be a straight line).

    python benchmarks/asr/frequencies.py PREPARED --output results/asr/frequencies

The paper puts the difficulty of its speech tasks down to so many, so unevenly frequent classes (Section 4.2).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.asr.prepared import PARTS, Prepared
from horovod_dpsgd.command_line import OneLineParser, give_up
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import figures, table

HEAD = (10, 100, 1000)  # the most frequent so many


def main() -> None:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("prepared", type=Path, metavar="PREPARED", help="made by benchmarks/asr/prepare.py")
    parser.add_argument("--output", type=Path, metavar="FILE", help="draw the figure to FILE.png and FILE.svg")
    given = parser.parse_args()
    try:
        prepared = Prepared(given.prepared)
        counts = {part: prepared.counts(part) for part in PARTS}
    except UserError as error:
        give_up(error)
    print(summary(counts))
    if given.output:
        files = figures.save(draw(counts, prepared.manifest.data, set(prepared.manifest.silence or [])), given.output)
        print("", *files, sep="\n")


def summary(counts: dict[str, np.ndarray]) -> str:
    """A line for each part: its frames, the states that occur in it, and the share of its most frequent ones."""
    lines = []
    for part, count in counts.items():
        ordered = np.sort(count)[::-1]
        shares = [f"{100 * ordered[:head].sum() / ordered.sum():.1f} %" for head in HEAD]
        lines.append([part, f"{ordered.sum():,}", f"{np.count_nonzero(ordered):,}", *shares])
    return table.markdown(["part", "frames", "states", *(f"in the first {head:,}" for head in HEAD)], lines)


def draw(counts: dict[str, np.ndarray], data: str, silence: set[int]) -> figures.Figure:
    """Frames in each state over the state's rank, both on logarithmic axes; states of silence as circles."""
    figure, (axes,) = figures.panels(1)
    for part, count in counts.items():
        order = np.argsort(-count, kind="stable")
        order = order[count[order] > 0]
        ranks = np.arange(1, len(order) + 1)
        (line,) = axes.plot(ranks, count[order], linewidth=1.5, label=part)
        silent = np.isin(order, list(silence))
        axes.plot(ranks[silent], count[order][silent], "o", markersize=5, color=line.get_color())
    axes.set(
        xscale="log", yscale="log", xlabel="rank of the state", ylabel="frames", title=f"{data} (circles: silence)"
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
