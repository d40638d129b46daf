"""How much headroom a training has under SSGD and under DPSGD: the largest stable learning rate, by short runs.

    python -m horovod_dpsgd.headroom --launcher 'mpirun --oversubscribe -np 16' \\
        benchmarks/cv/train.py -- --recipe cifar10-cpu --data-dir DIR

SCRIPT is any training script that calls `horovod_dpsgd.training.main`; what follows "--" are its arguments. Three steps
of it read the recipe. Then runs of --steps steps, which keep the warm-up and hold the peak rate after it, bracket and
bisect the limit by one seed, and others confirm both its sides (what counts as stable:
horovod_dpsgd/headroom/judgement.py). --over batch seeks the largest batch under linear scaling instead, --over warmup
the shortest warm-up. Writes headroom.json; a command given again goes on where it was.
"""

from __future__ import annotations

import math
import shlex
import sys
import textwrap
from pathlib import Path

from horovod_dpsgd.command_line import RaisingParser, give_up, split_arguments
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.headroom import verdict
from horovod_dpsgd.headroom.ladder import MAKERS
from horovod_dpsgd.headroom.probe import AFTER_WARMUP, ALGORITHMS, Probe, Request

PROGRAM = "python -m horovod_dpsgd.headroom"
INTERRUPTED = 130
ASKED_FOR = {"lr": ("--lr",), "batch": ("--lr", "RATE", "--batch-size"), "warmup": ("--warmup",)}


def main() -> int:
    try:
        request, dry_run = _request()
        if dry_run:
            _print_commands(request)
        else:
            look(request)
    except UserError as error:
        give_up(error, PROGRAM)
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return 0


def look(request: Request) -> Probe:
    """Make the runs, print and write what they say."""
    probe = Probe(request)
    verdict.write(probe)
    print(f"\n{verdict.rungs_table(probe)}\n\n{textwrap.fill(verdict.paragraph(probe), 100)}\n")
    print(f"Written: {request.output / verdict.HEADROOM}")
    return probe


def _print_commands(request: Request) -> None:
    print(shlex.join(request.pilot()))
    print("# then, for the VALUEs and SEEDs that the search asks for, by the recipe that the first has read:")
    for algo in ALGORITHMS:
        words = (*ASKED_FOR[request.over], "VALUE")
        name = f"{algo}-{request.over}VALUE-seedSEED"
        print(shlex.join(request.probe(name, algo, words, "SEED", request.steps or "STEPS")))


def _request() -> tuple[Request, bool]:
    words, more = split_arguments(sys.argv[1:])
    p = RaisingParser(PROGRAM, description=__doc__)
    p.add_argument("script", metavar="SCRIPT")
    p.add_argument("--launcher", required=True, metavar="WORDS", help="starts the learners: the words before `python`")
    p.add_argument("--over", choices=list(MAKERS), default="lr", help="what is made harder (default: lr)")
    p.add_argument("--steps", type=int, metavar="N", help=f"of a run (default: warm-up and {AFTER_WARMUP})")
    p.add_argument("--seeds", type=int, default=3, metavar="N", help="at the limit (default: 3)")
    p.add_argument("--factor", type=float, default=2.0, metavar="X", help="between rungs (default: 2)")
    p.add_argument("--rungs", type=int, default=6, metavar="N", help="to each side of the recipe's (default: 6)")
    p.add_argument("--output", type=Path, default=Path("runs/headroom"), metavar="DIR", help="default: runs/headroom")
    p.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    given = vars(p.parse_args(words))
    for name, least in {"steps": 10, "seeds": 1, "rungs": 1, "factor": 1.05}.items():
        if given[name] is not None and not least <= given[name] < math.inf:
            p.error(f"--{name} {given[name]}: it must be at least {least}, and finite")
    if not Path(given["script"]).is_file():
        p.error(f"{given['script']}: no such script")
    dry_run = given.pop("dry_run")
    return Request(arguments=tuple(more), **given), dry_run


if __name__ == "__main__":
    sys.exit(main())
