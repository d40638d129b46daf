"""Does `horovod_dpsgd.headroom` foretell full runs? Hits and misses, on recipes that it was not tuned by.

    python -m benchmarks.headroom_check mnist=DIR cifar10-cpu=DIR cifar10-cpu-bn=DIR [speech-cpu=DIR] [novels-cpu=DIR]

For each recipe the probe, and then full runs under both algorithms, with the recipe's own length and decay, at every
rate that the probe calls a limit. A hit: all full runs are stable where the probe says stable, none where it says that
all fail (both by headroom/judgement.py). On few cores hours; runs that exist are not made again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiments.launch import REPOSITORY, Job, Place, run_all
from horovod_dpsgd.command_line import OneLineParser, count, give_up
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.headroom.__main__ import look
from horovod_dpsgd.headroom.judgement import is_stable
from horovod_dpsgd.headroom.probe import ALGORITHMS, Probe, Request
from horovod_dpsgd.headroom.search import Boundary
from horovod_dpsgd.launching import mpirun
from horovod_dpsgd.report import table
from horovod_dpsgd.report.runs import Run

HEADER = ["recipe", "lr", "algorithm", "probe", "full runs stable", "held-out error %", ""]


@dataclass(frozen=True)
class Case:
    script: str
    learners: int
    arguments: tuple[str, ...]


CASES = {
    "mnist": Case("benchmarks/cv/train.py", 5, ("--recipe", "mnist")),
    "cifar10-cpu": Case("benchmarks/cv/train.py", 16, ("--recipe", "cifar10-cpu")),
    "cifar10-cpu-bn": Case(
        "benchmarks/cv/train.py", 16, ("--recipe", "cifar10-cpu", "--set", "model_options.batch_norm=true")
    ),
    "speech-cpu": Case("benchmarks/asr/train.py", 16, ("--recipe", "speech-cpu")),
    "novels-cpu": Case("benchmarks/nlp/train.py", 16, ("--recipe", "novels-cpu")),
}


def check(name: str, data_dir: str, folder: Path, seeds: int) -> list[list[str]]:
    """Rows of the table."""
    case, data, launcher = CASES[name], ("--data-dir", data_dir), mpirun("{np}")
    started = shlex.join(launcher).replace("{np}", str(case.learners))
    script = str(REPOSITORY / case.script)
    probe = look(Request(script, (*case.arguments, *data), started, folder / f"{name}-probe", seeds=seeds))
    limits = sorted({rung for b in probe.found.values() for rung in (b.stable, b.fails) if rung is not None})
    place = Place(folder / f"{name}-full", tuple(launcher), data, together=seeds)
    rows = []
    for algo in ALGORITHMS:
        full = {rung: run_all(_full_runs(case, probe, algo, rung), place).runs for rung in limits}
        for rung, runs in full.items():
            said = _said(probe.found[algo], rung)
            stable = sum(is_stable(run, rung, full) for run in runs)
            rows.append([name, str(probe.ladder[rung]), algo.upper(), said, *_outcome(said, stable, runs)])
    return rows


def _full_runs(case: Case, probe: Probe, algo: str, rung: int) -> list[Job]:
    lr = probe.ladder[rung]
    words = (*case.arguments, "--algo", algo, *lr.words, "--checkpoint-every", "0")
    return [
        Job(f"{algo}-lr{lr}-seed{seed}", case.script, probe.recipe.learners, (*words, "--seed", str(seed)))
        for seed in probe.seeds
    ]


def _said(b: Boundary, rung: int) -> str:
    """Of a rung beyond those that were tried, what the nearest limit says."""
    if b.stable is not None and rung <= b.stable:
        return "stable"
    return "fails" if b.fails is not None and rung >= b.fails else "seeds disagree"


def _outcome(said: str, stable: int, runs: Sequence[Run]) -> list[str]:
    wanted = {"stable": len(runs), "fails": 0}.get(said)
    verdict = "-" if wanted is None else "hit" if stable == wanted else "miss"
    return [f"{stable} of {len(runs)}", table.median_and_range([run.error_percent for run in runs]), verdict]


def main() -> None:
    p = OneLineParser("python -m benchmarks.headroom_check", description=__doc__)
    p.add_argument("cases", nargs="+", metavar="RECIPE=DIR", help=f"{', '.join(CASES)}, and where the data are")
    p.add_argument("--seeds", type=count, default=3, metavar="N", help="default: 3")
    p.add_argument("--runs", type=Path, default=Path("runs/headroom-check"), metavar="DIR", help="for run folders")
    p.add_argument("--results", type=Path, default=REPOSITORY / "results/headroom", metavar="DIR")
    given = p.parse_args()
    cases = dict(case.partition("=")[::2] for case in given.cases)
    if wrong := [name for name, folder in cases.items() if name not in CASES or not folder]:
        p.error(f"{', '.join(wrong)}: not RECIPE=DIR, of a recipe among {', '.join(CASES)}")
    try:
        rows = [row for name, folder in cases.items() for row in check(name, folder, given.runs, given.seeds)]
    except UserError as error:
        give_up(error, p.prog)
    hits, misses = (sum(row[-1] == word for row in rows) for word in ("hit", "miss"))
    command = shlex.join(["python", "-m", "benchmarks.headroom_check", *sys.argv[1:]])
    text = f"{table.markdown(HEADER, rows)}\n\n{hits} hits, {misses} misses.\n\nCommand: `{command}`\n"
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "headroom.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
