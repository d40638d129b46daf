"""Reproduce a table or figure of the paper.

    python benchmarks/reproduce.py list
    python benchmarks/reproduce.py figure-2              # five seeds
    python benchmarks/reproduce.py figure-2 --demo       # one seed, the tuned noise only: minutes
    python benchmarks/reproduce.py table-3 --data-dir DIR                   # on two cores, in four hours
    python benchmarks/reproduce.py table-3 --scale paper --data-dir DIR --dry-run       # only print the commands

Runs that exist are not run again, so an interrupted command can be given once more. Several names share runs.

At the paper's scale runs want 16 GPUs. How learners are started there, and arguments for all runs, can be given:

    ... --launcher 'mpirun -np {np} --hostfile hostfiles/two-hosts.txt' -- --device cuda --amp
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

SEEDS = 5  # unless --seeds says otherwise
REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.experiments import (  # noqa: E402
    asr,
    cifar10,
    cv,
    figure_2,
    landscapes,
    launch,
    listing,
    mnist_adpsgd,
    mnist_recipes,
    nlp,
    runtime,
    table_6,
)
from benchmarks.experiments.experiment import Experiment  # noqa: E402
from horovod_dpsgd import launching  # noqa: E402
from horovod_dpsgd.command_line import OneLineParser, count, give_up, split_arguments  # noqa: E402
from horovod_dpsgd.errors import UserError  # noqa: E402
from horovod_dpsgd.report.runs import Run  # noqa: E402

EXPERIMENTS: dict[str, Experiment] = listing.in_order(
    {
        "figure-2": figure_2.FIGURE_2,
        "figure-4": figure_2.FIGURE_4,
        "table-6": table_6.EXPERIMENT,
        **cv.EXPERIMENTS,
        **asr.EXPERIMENTS,
        **nlp.EXPERIMENTS,
        **cifar10.EXPERIMENTS,
        **landscapes.EXPERIMENTS,
        "runtime": runtime.EXPERIMENT,
        "mnist-recipes": mnist_recipes.EXPERIMENT,
        "mnist-adpsgd": mnist_adpsgd.EXPERIMENT,
    }
)


def main() -> None:
    words, more = split_arguments(sys.argv[1:])
    parser = _parser()
    arguments = parser.parse_args(words)
    arguments.more = more
    if unknown := set(arguments.names) - EXPERIMENTS.keys() - {"list"}:
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: list, {', '.join(EXPERIMENTS)}")
    if "list" in arguments.names:
        print(listing.text(EXPERIMENTS, REPOSITORY / "results"))
        return
    try:
        work = [_prepare(name, arguments) for name in arguments.names]  # what is wrong with the last is said first
        for run in work:
            run()
    except UserError as error:
        give_up(error)


def _prepare(name: str, arguments: argparse.Namespace) -> Callable[[], None]:
    """What is to be done for an experiment. Raises UserError for arguments that it cannot have."""
    experiment = EXPERIMENTS[name]
    if arguments.demo and experiment.demo is None:
        raise UserError(f"{name} has no --demo")
    if experiment.needs_data and not (arguments.data_dir or arguments.dry_run or arguments.report_only):
        task = Path(experiment.jobs(arguments.scale, [0])[0].script).parent.name
        where = f"benchmarks/{task}/{'datasets.py' if task == 'cv' else 'README.md'}"
        raise UserError(f"{name} needs --data-dir; what it may hold: {where}")
    return partial(_reproduce, name, experiment, arguments)


def _reproduce(name: str, experiment: Experiment, arguments: argparse.Namespace) -> None:
    suffix = "" if arguments.scale == "cpu" else "-paper"
    folder, results = experiment.runs + suffix, (experiment.results or experiment.runs) + suffix
    if arguments.demo and experiment.demo:
        folder, jobs = f"{name}-demo", experiment.demo()
    else:
        jobs = experiment.jobs(arguments.scale, range(arguments.seeds or SEEDS))
    place = _place(folder, arguments)
    if arguments.dry_run:
        launch.print_all(jobs, place)
        return
    loaded = launch.those_there(jobs, place) if arguments.report_only else launch.run_all(jobs, place)
    if not (loaded.runs or loaded.measured):
        raise UserError(f"no run of {name} has a result in {arguments.keep or place.folder}")
    output = arguments.results or (place.folder if arguments.demo else REPOSITORY / "results" / results)
    output.mkdir(parents=True, exist_ok=True)
    text = experiment.report(arguments.scale, loaded, output)
    print(f"\n{text}\n\nWritten to {output}")
    if arguments.demo:
        print("This is one seed, and seeds differ much: results/README.md has the medians and ranges of five.")
    (output / f"{name}.md").write_text(f"{text}\n\n{_provenance(loaded.runs)}\n")
    if loaded.runs:
        (output / f"{name}.csv").write_text(experiment.csv(arguments.scale, loaded.runs))


def _place(folder: str, arguments: argparse.Namespace) -> launch.Place:
    more = ("--data-dir", str(arguments.data_dir)) if arguments.data_dir else ()
    more = (*more, *arguments.more)
    launcher = () if arguments.report_only else _launcher(arguments.launcher)
    return launch.Place(arguments.runs / folder, launcher, more, arguments.keep, arguments.together)


def _launcher(given: str | None) -> tuple[str, ...]:
    """Raises UserError for quotes without an end."""
    if given is None:
        return tuple(launching.mpirun("{np}"))
    try:
        return tuple(shlex.split(given))
    except ValueError as error:
        raise UserError(f"--launcher {given}: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("names", nargs="+", metavar="NAME", help="list, or one or more of: " + ", ".join(EXPERIMENTS))
    parser.add_argument("--scale", choices=["cpu", "paper"], default="cpu", help="default: cpu")
    parser.add_argument("--seeds", type=count, metavar="N", help=f"how many, from 0 on (default: {SEEDS})")
    parser.add_argument("--demo", action="store_true", help="one seed, as a demonstration")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing: make tables and figures of what has been run so far"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="for all runs: where the data are")
    parser.add_argument("--launcher", metavar="WORDS", help="starts {np} learners (default: mpirun on this machine)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the run folders go")
    parser.add_argument(
        "--together", type=count, default=1, metavar="N", help="N runs in one launch, for short ones (default: 1)"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep each run's result and curves there, and use those there already"
    )
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where tables and figures go (default: below results/)"
    )
    return parser


def _provenance(runs: Sequence[Run]) -> str:
    """The command, and the data, the code, the machines and the versions that made the runs, if there are any.

    The command is one that makes the runs too, where they are missing: --report-only is left out.
    """
    words = [word for word in sys.argv[1:] if word != "--report-only"]
    command = f"Command: `{shlex.join(['python', 'benchmarks/reproduce.py', *words])}`"
    if not runs:
        return command
    data = sorted({run.result["data"] for run in runs})
    commits = sorted({str(run.result["git"]) for run in runs})
    made_with = Counter(_versions(run) for run in runs)
    versions = [
        f"Versions{f' ({number} of {len(runs)} runs)' if len(made_with) > 1 else ''}: {words}."
        for words, number in made_with.most_common()
    ]
    return "\n".join([command, f"Data: {'; '.join(data)}. Code: {', '.join(commits)}.", *versions])


def _versions(run: Run) -> str:
    words = ", ".join(f"{name} {version}" for name, version in run.result["versions"].items())
    return f"{words}; {run.result['machine']}" if "machine" in run.result else words  # older results do not say


if __name__ == "__main__":
    main()
