"""Stacked runs as a table: what was varied down, algorithms across, the last held-out loss in each cell.

    python -m benchmarks.stacked.summary map.jsonl > map.md

Cells are medians (and ranges) over seeds; "lost" counts those that ended in NaN or infinity.
"""

from __future__ import annotations

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from horovod_dpsgd.report import table

Varied = tuple[tuple[str, str], ...]


def main() -> None:
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(__doc__.strip(), file=sys.stderr)
        sys.exit(2)
    print(markdown([json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]))


def markdown(lines: list[dict[str, Any]]) -> str:
    """From lines of a map, as `benchmarks.stacked` writes them."""
    cells: dict[Varied, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        varied = {key: value for key, value in line["varied"].items() if key not in ("algo", "seed")}
        algo = line["varied"].get("algo") or line["recipe"]["algo"]
        cells[tuple(varied.items())][algo].append(list(line["heldout_losses"].values())[-1])
    keys = list(dict.fromkeys(key for varied in cells for key, _ in varied))
    algorithms = list(dict.fromkeys(algo for row in cells.values() for algo in row))
    rows = [
        [*(dict(varied).get(key, "") for key in keys), *(_cell(row[algo]) for algo in algorithms)]
        for varied, row in sorted(cells.items(), key=lambda item: [_sortable(value) for _, value in item[0]])
    ]
    return table.markdown([*keys, *algorithms], rows)


def _cell(losses: list[float]) -> str:
    lost = sum(not math.isfinite(loss) for loss in losses)
    return table.median_and_range(losses, 3) + (f", {lost} lost" if lost else "")


def _sortable(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


if __name__ == "__main__":
    main()
