"""All measurements of the gossip layer, one after the other, and the tables and plots made of them.

    python benchmarks/comm/run.py                      # what has not been measured yet
    python benchmarks/comm/run.py --list
    python benchmarks/comm/run.py --only exchange-n2 fused --again
    python benchmarks/comm/run.py --quick              # tiny sizes: does everything work?
    python benchmarks/comm/run.py --report             # only make the tables again
    python benchmarks/comm/run.py --hosts node1:1,node2:1        # between two hosts of one's own

Measure on a machine with nothing else to do. JSON lines go to runs/comm, tables and plots to runs/comm/results, and
copies of the lines to the folder raw beside the tables. Where runs/comm is empty but --results DIR holds such copies, a
run begins with them, and measures only what is missing. A measurement that fails or cannot be made here is a line below
its table, with the reason, unless there is one from before: that stays.

--hosts measures what is else measured between emulated hosts; both must have this repository and its environment at the
same place, and be reached by mpirun. What MPI needs to be told there goes into its environment variables (for Open MPI
OMPI_MCA_btl_tcp_if_include and its like; the doctor says which). Lines go to runs/comm-hosts.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import plots, summary, tables
from benchmarks.comm.jobs import Job, all_jobs, jobs_between, load, parse
from benchmarks.experiments.launch import REPOSITORY
from benchmarks.two_hosts.netns import why_not
from horovod_dpsgd.command_line import OneLineParser
from horovod_dpsgd.files import write_whole
from horovod_dpsgd.launching import is_mpich

PEERS = ("decent-dp", "loguru")  # what pip is asked for by --install-peers


def main() -> None:
    parser = _options()
    given = parser.parse_args()
    jobs = jobs_between(given.hosts) if given.hosts else all_jobs()
    chosen = [job for job in jobs if not given.only or any(fnmatch.fnmatch(job.name, word) for word in given.only)]
    if not chosen:
        parser.error(f"no measurement is called {' or '.join(given.only)} (--list names them)")
    if given.list:
        print("\n".join(f"{job.name:32} {job.shown(given.quick)}" for job in chosen))
        return
    folder = given.runs / f"comm{'-hosts' if given.hosts else ''}{'-quick' if given.quick else ''}"
    results = given.results or folder / "results"
    folder.mkdir(parents=True, exist_ok=True)
    if not any(folder.glob("*.jsonl")):
        _copy_lines(results / "raw", folder)
    if given.install_peers:
        _install_peers(folder)
    failed = [] if given.report else [job.name for job in chosen if not _run(job, folder, given.quick, given.again)]
    measured = [load(job, folder) for job in jobs]
    written = [*tables.write(measured, results), *plots.write(measured, results)]
    if not given.hosts:  # the goals are about this machine
        written.append(summary.write(measured, results))
    _copy_lines(folder, results / "raw")
    print(f"\nWritten: {', '.join(_from_here(file) for file in written)}")
    if failed:
        sys.exit(f"run.py: these failed: {', '.join(failed)}")


def _copy_lines(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.jsonl"):
        shutil.copy(file, target)


def _run(job: Job, folder: Path, quick: bool, again: bool) -> bool:
    """Measure, unless it has been done; whether it is not a failure. Only a whole measurement is kept, and replaces one
    that was there."""
    done_before = bool(load(job, folder).rows)
    if done_before and not again:
        print(f"{job.name}: done before", flush=True)
        return True
    file, partial = folder / f"{job.name}.jsonl", folder / f"{job.name}.partial"
    partial.unlink(missing_ok=True)
    status, measured = 0, ""
    if (reason := _impossible(job)) is None:
        print(f"\n{job.name}: {job.shown(quick)}", flush=True)
        status = subprocess.run(
            [*job.command(quick), "--output", str(partial)], env=_environment(job, folder), check=False
        ).returncode
        reason = f"failed with status {status}" if status else None
        measured = partial.read_text() if partial.exists() else ""
        partial.unlink(missing_ok=True)
    if reason:
        measured = json.dumps({"kind": "skipped", "what": job.name, "reason": reason}) + "\n"
        print(f"{job.name}: not measured: {reason}", flush=True)
    if not done_before or parse(job, measured).rows:
        about = {"kind": "job", "name": job.name, "typed": job.shown(quick)}
        write_whole(file, f"{json.dumps(about)}\n{measured}")
    return not status


def _impossible(job: Job) -> str | None:
    """Why a job cannot be run here, or None."""
    if job.link and (reason := why_not()):
        return reason
    if dict(job.env).get("MPICH_ASYNC_PROGRESS") and not is_mpich():
        return "the MPI here is Open MPI, which has no progress thread of its own (run under MPICH)"
    return None


def _environment(job: Job, folder: Path) -> dict[str, str]:
    paths = [str(REPOSITORY), str((folder / "peers").resolve()), os.environ.get("PYTHONPATH", "")]
    # mpirun refuses root unless told twice
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return os.environ | root | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(job.env)


def _install_peers(folder: Path) -> None:
    """Into a folder of their own: they are no part of the environment."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "peers")]
    subprocess.run([*pip, *PEERS], check=True)


def _from_here(file: Path) -> str:
    return os.path.relpath(file)


def _two_hosts(text: str) -> str:
    if re.fullmatch(r"[^,:\s]+(:1)?,[^,:\s]+(:1)?", text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} are not two hosts with a learner each, such as node1:1,node2:1")
    return text


def _options() -> OneLineParser:
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names, or patterns such as 'step-*'")
    parser.add_argument("--again", action="store_true", help="measure anew what has been measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--report", action="store_true", help="measure nothing, make the tables and plots")
    parser.add_argument("--list", action="store_true", help="print the names and commands, and stop")
    parser.add_argument("--install-peers", action="store_true", help="first get decent-dp from PyPI, into --runs")
    parser.add_argument("--hosts", type=_two_hosts, metavar="A:1,B:1", help="two real hosts instead of emulated ones")
    parser.add_argument("--runs", type=Path, default=Path("runs"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--results", type=Path, metavar="DIR", help="where tables go (default: DIR/comm/results)")
    return parser


if __name__ == "__main__":
    main()
