"""Compare runs: print a table, draw their learning curves, or put all that is known of them on one page.

python -m horovod_dpsgd.report runs/mnist-ssgd-... runs/mnist-dpsgd-... --figure curves.png --html comparison.html
"""

from __future__ import annotations

from pathlib import Path

from horovod_dpsgd.command_line import OneLineParser, give_up
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import runs, table


def main() -> None:
    p = OneLineParser("python -m horovod_dpsgd.report", description="Compare runs.")
    p.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="run folders, with result.json in them")
    p.add_argument("--figure", type=Path, metavar="FILE.png", help="draw the learning curves (PNG and SVG)")
    p.add_argument("--html", type=Path, metavar="FILE.html", help="tables and curves on one page, in one file")
    arguments = p.parse_args()
    try:
        loaded = [runs.load(folder) for folder in arguments.folders]
    except UserError as error:
        give_up(error, p.prog)
    print(table.comparison(loaded, {"step ms": table.step_milliseconds}))
    try:
        _draw(loaded, arguments.figure, arguments.html)
    except OSError as error:
        give_up(f"{error.filename} cannot be written: {error.strerror}", p.prog)


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
