"""Inject every fault, soak the gossip layer, and write down what happened.

    python -m benchmarks.reliability                        # faults under mpirun and horovodrun; 20 minutes of soaking
    python -m benchmarks.reliability --only faults
    python -m benchmarks.reliability --only soak --minutes 5

Tables go to results/reliability, or to --results. What was measured before stays, so the parts can be run apart. Status
1 if soaking failed, as by a stall or by memory that grew.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.experiments.launch import REPOSITORY
from benchmarks.reliability import faults
from horovod_dpsgd import machine
from horovod_dpsgd.command_line import OneLineParser
from horovod_dpsgd.launching import environment, mpirun
from horovod_dpsgd.report import table
from horovod_dpsgd.training.run_log import git_revision, versions

SOAK = "benchmarks/reliability/soak.py"
SOAKED = (("dpsgd", "matching"), ("adpsgd", "matching"))
HEADER = (
    "fault, on learner 1 of 3",
    "launcher",
    "status",
    "ends after",
    "the reason, as the job gives it",
    "left",
    "intact",
)
SOAK_HEADER = (
    "algorithm", "learners", "minutes", "steps of all", "resident, MB a learner", "largest growth, MB", "/dev/shm, MB",
    "stalls",
)  # fmt: skip


def main() -> None:
    p = OneLineParser("python -m benchmarks.reliability", description=__doc__)
    p.add_argument("--only", choices=["faults", "soak"])
    p.add_argument("--minutes", type=float, default=20.0, help="of soaking, for each algorithm (default: %(default)s)")
    p.add_argument("--learners", type=int, default=16, help="that soak (default: %(default)s)")
    p.add_argument("--results", type=Path, default=REPOSITORY / "results/reliability", metavar="DIR")
    given = p.parse_args()
    given.results.mkdir(parents=True, exist_ok=True)
    if given.only != "soak":
        _write(given.results / "faults.md", _faults())
    if given.only != "faults":
        text, failed = _soak(given.learners, given.minutes)
        _write(given.results / "soak.md", text)
        if failed:
            sys.exit(f"soaking failed: {', '.join(failed)} (1: a stall, or memory that grew)")


def _faults() -> str:
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        for number, (fault, horovodrun) in enumerate((f, h) for f in faults.FAULTS for h in (False, True)):
            outcome = faults.inject(fault, Path(scratch) / str(number), horovodrun)
            launcher = "horovodrun" if horovodrun else "mpirun"
            after = f"{outcome.seconds:.1f} s"
            if math.isnan(outcome.seconds):  # nobody injected it
                after = "-" if fault.starts else "before it began"
            intact = "-" if outcome.intact is None else f"step {outcome.intact}"
            left = ", ".join(outcome.left) or "nothing"
            rows.append([fault.name, launcher, str(outcome.status), after, outcome.said or "none", left, intact])
            print(" | ".join(rows[-1]), flush=True)
    words = (
        f"A checkpoint every {faults.EVERY} steps; the fault comes in step {faults.AT_STEP}. `ends after`: from the "
        f"fault to the end of the launcher; the stall timeout is {faults.STALL_SECONDS} s. `left`: processes, files in "
        "/dev/shm and launchers' session folders that are still there afterwards. `intact`: the newest checkpoint "
        "whose checksums are right."
    )
    return f"# Faults injected into a training job\n\n{words}\n\n{table.markdown(HEADER, rows)}"


def _soak(learners: int, minutes: float) -> tuple[str, list[str]]:
    """The table, and which of the runs in it failed, with what status."""
    rows, failed = [], []
    for algo, topology in SOAKED:
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "soak.json"
            given = ["--algo", algo, "--topology", topology, "--minutes", str(minutes), "--output", str(output)]
            command = [*mpirun(learners), sys.executable, str(REPOSITORY / SOAK), *given]
            status = subprocess.run(command, env=environment(), check=False).returncode
            if not output.exists():
                sys.exit(f"soaking {algo} failed with status {status}")
            rows.append(_soak_row(json.loads(output.read_text())))
            if status:
                failed.append(f"{algo} with status {status}")
    words = (
        "More learners than cores, a random delay in every step (exponential, mean 0.1 s; one step in a hundred ten "
        "times as long). `resident`: memory of its own at the end; `growth`: of the learner that grew most, after the "
        "first fifth of the time; `/dev/shm`: at the first and the last step; `stalls`: waits of more than 10 s."
    )
    return f"# Soaking\n\n{words}\n\n{table.markdown(SOAK_HEADER, rows)}", failed


def _soak_row(numbers: dict) -> list[str]:
    first, last = numbers["shared_mb_first_last"]
    return [
        f"{numbers['algo']}, {numbers['topology']}",
        f"{numbers['learners']} on {numbers['cores']} cores",
        f"{numbers['minutes']:g}",
        f"{numbers['steps']:,}",
        f"{min(numbers['resident_mb']):g} - {max(numbers['resident_mb']):g}",
        f"{max(numbers['grown_mb']):g}",
        f"{first:g} - {last:g}",
        str(numbers["stalls"]),
    ]


def _write(file: Path, text: str) -> None:
    command = shlex.join(["python", "-m", "benchmarks.reliability", *sys.argv[1:]])
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    on = f"{machine.in_words()}. {time.strftime('%Y-%m-%d')}. Code: {git_revision()}."
    about = f"Command: `{command}`\n{on}\nVersions: {found}."
    file.write_text(f"{text}\n\n{about}\n")
    print(f"Written to {file}")


if __name__ == "__main__":
    main()
