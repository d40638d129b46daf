"""Look at the loss landscape where training runs ended: how flat it is, and how smooth.

    python benchmarks/landscape.py RUN_DIR... --what contour       # the loss around each solution, on a random plane
    python benchmarks/landscape.py RUN_A RUN_B --what line         # from one solution to the other
    python benchmarks/landscape.py RUN_A RUN_B --what plane        # on a plane through two of them, or three
    python benchmarks/landscape.py RUN_DIR... --what eigenvalues   # the Hessian's ends and trace
    python benchmarks/landscape.py RUN_DIR... --what density       # the distribution of its eigenvalues
    python benchmarks/landscape.py RUN_DIR... --what curvature     # |lambda_min / lambda_max| on that random plane
    python benchmarks/landscape.py RUN_DIR... --what smoothing     # Theorem 1, at every checkpoint of the runs

    mpirun -np 4 python benchmarks/landscape.py ...                # the points divided among four learners

A solution is the mean of the learners in a run's newest checkpoint. Written to --output: WHAT.jsonl, a line a point,
and a figure as PNG and SVG; a command given once more goes on with the points that are missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.instruments.picture import Options
from benchmarks.instruments.pictures import PICTURES
from benchmarks.instruments.solutions import open_runs
from horovod_dpsgd import learners
from horovod_dpsgd.command_line import RaisingParser, give_up
from horovod_dpsgd.diagnostics.points import measure_all
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.processes import environment_local_rank

LEAST = {"points": 2, "seed": 0, "top": 1, "probes": 1, "lanczos_steps": 1, "pairs": 1, "samples": 1, "batch_size": 1}
POSITIVE = ("extent", "sigma")


def main() -> None:
    try:
        given = _parser().parse_args()
        options = _options(given)
    except UserError as error:
        give_up(error, speaks=environment_local_rank() == 0)
    us = learners.start()
    learners.use_threads(us)
    try:
        _look(given, options, us)
    except UserError as error:  # the same on all learners
        give_up(error, speaks=us.rank == 0)


def _look(given: argparse.Namespace, options: Options, us: Learners) -> None:
    landscape = open_runs(given.folders, given.samples, given.data_dir, given.device, us, given.batch_size)
    picture = PICTURES[given.what](landscape, options)
    output = given.output or given.folders[0] / "landscape"
    lines = output / f"{given.what}.jsonl"
    measured = measure_all(picture.points(), picture.measure, lines, picture.setup, us, _progress)
    if us.rank == 0:
        from horovod_dpsgd.report import figures

        print(picture.table(measured))
        files = figures.save(picture.draw(measured), output / given.what)
        print("", f"On {landscape.objective.samples} training samples. Written:", lines, *files, sep="\n")


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)


def _options(given: argparse.Namespace) -> Options:
    """Raises UserError for a number that is out of range."""
    for name, least in LEAST.items():
        value = getattr(given, name)
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: it must be at least {least}")
    for name in POSITIVE:
        value = getattr(given, name)
        if value is not None and not 0 < value < math.inf:
            raise UserError(f"--{name} {value}: it must be above 0, and finite")
    return Options(**{field.name: getattr(given, field.name) for field in dataclasses.fields(Options)})


def _parser() -> RaisingParser:
    default = Options()
    p = RaisingParser(description=__doc__)
    p.add_argument("folders", nargs="+", type=Path, metavar="RUN_DIR", help="of runs of one task and model")
    p.add_argument("--what", required=True, choices=list(PICTURES))
    p.add_argument("--output", type=Path, metavar="DIR", help="default: landscape/ in the first run's folder")
    p.add_argument(
        "--samples", type=int, default=2000, metavar="N", help="of the training set, at most (default: 2000)"
    )
    p.add_argument("--points", type=int, default=default.points, metavar="N", help="along an axis (default: 21)")
    p.add_argument(
        "--extent", type=float, default=default.extent, metavar="X", help="how far to go along an axis (default: 1)"
    )
    p.add_argument("--top", type=int, default=default.top, metavar="N", help="how many eigenvalues (default: 5)")
    p.add_argument(
        "--probes", type=int, default=default.probes, metavar="N", help="random vectors for trace, density (default: 8)"
    )
    p.add_argument(
        "--lanczos-steps", type=int, default=default.lanczos_steps, metavar="N",
        help="Hessian-vector products for a spectrum, at most (default: 80)",
    )  # fmt: skip
    p.add_argument(
        "--batch-size", type=int, metavar="N",
        help="samples at once, for a GPU more are faster (default: as many as a learner of the runs had)",
    )  # fmt: skip
    p.add_argument("--sigma", type=float, metavar="STD", help="of the smoothing (default: the learners' own spread)")
    p.add_argument("--pairs", type=int, default=default.pairs, metavar="N", help="draws of smoothing (default: 8)")
    p.add_argument("--seed", type=int, default=default.seed, help="of directions and random vectors (default: 0)")
    p.add_argument("--data-dir", type=Path, metavar="DIR")
    p.add_argument("--device", choices=["cpu", "cuda"], help="default: the run's own")
    return p


if __name__ == "__main__":
    main()
