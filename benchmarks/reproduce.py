"""Reproduce a table or figure of the paper.

    python benchmarks/reproduce.py list
    python benchmarks/reproduce.py figure-2              # five seeds
    python benchmarks/reproduce.py figure-2 --demo       # one seed, the tuned noise only: minutes
    python benchmarks/reproduce.py figure-2 --dry-run    # only print the commands

Runs that exist are not run again, so an interrupted command can be given once more.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.experiments import figure_2, launch, mnist_adpsgd, mnist_recipes  # noqa: E402
from horovod_dpsgd.report import runs  # noqa: E402


@dataclass(frozen=True)
class Experiment:
    what: str
    cost: str  # on two cores
    module: ModuleType


EXPERIMENTS = {
    "figure-2": Experiment("MNIST: loss, effective learning rate, weight variance (Section 2.2)", "20 min", figure_2),
    "mnist-recipes": Experiment("MNIST: what Section 2.2 leaves open, varied one by one", "30 min", mnist_recipes),
    "mnist-adpsgd": Experiment("MNIST: AD-PSGD beside DPSGD, also with a slow learner", "20 min", mnist_adpsgd),
}


def main() -> None:
    arguments = _parser().parse_args()
    if arguments.name == "list":
        for name, experiment in EXPERIMENTS.items():
            print(f"{name:14} {experiment.cost:>8}  {experiment.what}")
        return
    experiment = EXPERIMENTS[arguments.name].module
    if arguments.demo and not hasattr(experiment, "DEMO_NOISE"):
        sys.exit(f"reproduce.py: error: {arguments.name} has no --demo")
    if arguments.demo:
        jobs = experiment.jobs([0], noise_grid=[experiment.DEMO_NOISE])
        folder = arguments.runs / f"{arguments.name}-demo"
    else:
        jobs, folder = experiment.jobs(range(arguments.seeds)), arguments.runs / arguments.name
    folders = launch.run_all(jobs, folder, arguments.dry_run)
    if arguments.dry_run:
        return
    output = arguments.results or (folder if arguments.demo else REPOSITORY / "results" / arguments.name)
    output.mkdir(parents=True, exist_ok=True)
    loaded = [runs.load(each) for each in folders]
    text = experiment.report(loaded, output)
    print(f"\n{text}\n\nWritten to {output}")
    if arguments.demo:
        print("This is one seed, and seeds differ much: results/README.md has the medians and ranges of five.")
    (output / "table.md").write_text(f"{text}\n\n{_provenance(loaded)}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=["list", *EXPERIMENTS])
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0 on (default: 5)")
    parser.add_argument("--demo", action="store_true", help="one seed, as a demonstration")
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="where the run folders go")
    parser.add_argument(
        "--results", type=Path, metavar="DIR", help="where tables and figures go (default: results/NAME)"
    )
    return parser


def _provenance(loaded: list[runs.Run]) -> str:
    """The command, the code and the versions that made the runs."""
    commits = sorted({str(run.result["git"]) for run in loaded})
    versions = loaded[0].result["versions"]
    return "\n".join(
        [
            f"Command: `{shlex.join(['python', 'benchmarks/reproduce.py', *sys.argv[1:]])}`",
            f"Data: {loaded[0].result['data']}. Code: {', '.join(commits)}.",
            "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        ]
    )


if __name__ == "__main__":
    main()
