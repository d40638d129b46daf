"""Compare runs: print a table, and draw their learning curves.

python -m horovod_dpsgd.report runs/mnist-ssgd-... runs/mnist-dpsgd-... --figure curves.png
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import runs, table


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m horovod_dpsgd.report", description="Compare runs.")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, with result.json in them"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the learning curves (PNG and SVG)")
    arguments = parser.parse_args()
    try:
        loaded = [runs.load(folder) for folder in arguments.folders]
    except UserError as error:
        sys.exit(f"report: error: {error}")
    print(table.comparison(loaded, {"step ms": table.step_milliseconds}))
    if arguments.figure:
        from horovod_dpsgd.report import figures

        print(*figures.save(figures.learning_curves(loaded), arguments.figure), sep="\n")


if __name__ == "__main__":
    main()
