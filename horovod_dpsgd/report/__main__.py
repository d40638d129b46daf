"""Compare runs: print a table, draw their learning curves, or put all that is known of them on one page.

python -m horovod_dpsgd.report runs/mnist-ssgd-... runs/mnist-dpsgd-... --figure curves.png --html comparison.html
"""

from __future__ import annotations

import argparse
from pathlib import Path

from horovod_dpsgd.command_line import give_up
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import runs, table

PROGRAM = "horovod_dpsgd.report"


def main() -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {PROGRAM}", description="Compare runs.")
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, with result.json in them"
    )
    parser.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the learning curves (PNG and SVG)")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="tables and curves on one page, in one file")
    arguments = parser.parse_args()
    try:
        loaded = [runs.load(folder) for folder in arguments.folders]
    except UserError as error:
        give_up(error, PROGRAM)
    print(table.comparison(loaded, {"step ms": table.step_milliseconds}))
    try:
        _draw(loaded, arguments.figure, arguments.html)
    except OSError as error:
        give_up(UserError(f"{error.filename} cannot be written: {error.strerror}"), PROGRAM)


def _draw(loaded: list[runs.Run], figure: Path | None, html: Path | None) -> None:
    if figure:
        from horovod_dpsgd.report import figures

        print(*figures.save(figures.learning_curves(loaded), figure), sep="\n")
    if html:
        from horovod_dpsgd.report import page

        html.parent.mkdir(parents=True, exist_ok=True)
        html.write_text(page.render(loaded), encoding="utf-8")
        print(html)


if __name__ == "__main__":
    main()
