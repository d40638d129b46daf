"""What this machine's MPI can and cannot do, and the flags to use. Start it as the training will be started:

    python -m horovod_dpsgd.doctor                                    this machine alone
    mpirun -np 16 -H host1:8,host2:8 python -m horovod_dpsgd.doctor   the whole job; horovodrun and srun likewise

One line a check. Exit status 0; 1 if something cannot work (FAIL); 2 for an argument that is not understood.
"""

from __future__ import annotations

import argparse
import os
import sys

from horovod_dpsgd.command_line import OneLineParser, bytes_of
from horovod_dpsgd.doctor.judgement import (
    WORLD_WINDOW,
    Finding,
    cannot_make_world_window,
    cores_a_learner,
    flags,
    judge_cores,
    judge_gpus,
    judge_launch,
    judge_library,
    judge_threads,
    judge_versions,
)
from horovod_dpsgd.doctor.probes import (
    HEAD_START,
    TIME_LIMIT,
    attempt,
    attempt_world_window,
    check_horovod,
    check_message,
    check_window,
    collect,
)
from horovod_dpsgd.learners import Learners, abort, describe, start, use_threads
from horovod_dpsgd.processes import environment_rank

DEFAULT_MODEL = "507MB"  # VGG11, the largest of the paper's
RDMA_DEVICES = ("/sys/class/infiniband", "/sys/class/cxi")


def arguments() -> argparse.Namespace:
    p = OneLineParser("python -m horovod_dpsgd.doctor", description=__doc__)
    words = f"one learner's weights; units are powers of 1024 (default: {DEFAULT_MODEL}, VGG11, which only warns)"
    p.add_argument("--model-size", type=bytes_of, metavar="SIZE", help=words)
    p.add_argument("--seconds", type=float, default=3.0, help="that the sender of a message computes (default: 3)")
    p.add_argument("--pretend-nodes", action="store_true", help=argparse.SUPPRESS)  # each learner a node of its own
    args = p.parse_args()
    if not 2 * HEAD_START <= args.seconds <= 60:
        p.error(f"argument --seconds: {args.seconds:g} is not between {2 * HEAD_START:g} and 60")
    return args


class Report:
    """The findings so far. They are printed as they come, so that they outlive an abort by MPI."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.failed: set[str] = set()  # titles

    def add(self, *findings: Finding) -> None:
        for finding in findings:
            if finding.level == "FAIL":
                self.failed.add(finding.title)
            self.say(str(finding))

    def say(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)


def examine(us: Learners, args: argparse.Namespace, report: Report) -> None:
    from mpi4py import MPI

    library, rdma = MPI.Get_library_version(), any(map(os.path.exists, RDMA_DEVICES))
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    level = levels.get(MPI.Query_thread(), "multiple")
    environment = dict(os.environ)
    everyone = us.gather(collect(us, library))
    use_threads(us)
    report.add(judge_launch(everyone, environment))
    if report.failed:
        return  # what each process finds alone says nothing about the job
    if args.pretend_nodes:
        us = describe(us.world, MPI.COMM_SELF.Dup())
        report.add(Finding("warn", "nodes", "each learner is taken for a node of its own, as you ask"))
    about_library = (library, us.nodes, level == "multiple", environment.get("OMPI_MCA_osc"), rdma)
    report.add(judge_library(*about_library))
    report.add(judge_threads(level, us.nodes), judge_cores(everyone), judge_gpus(everyone), judge_versions(everyone))
    if report.failed:
        report.add(Finding("skip", "window", "not tried, nor what needs it: see what failed above"))
    else:
        try_out(us, args, report)
        if cannot_make_world_window(*about_library):  # it may abort, and leave the rest unsaid
            report.add(Finding("skip", WORLD_WINDOW, "not tried: see the MPI library above"))
        elif not report.failed & {"window", "message"}:
            report.add(*attempt_world_window(us))
    report.add(us.broadcast(check_horovod() if us.rank == 0 else None))
    env = [name for name in ("PATH", "PYTHONPATH") if name in environment]
    cores = max(1, int(cores_a_learner(everyone)))
    report.say(flags(library, us.hosts, cores, env, rdma, os.geteuid() == 0))


def try_out(us: Learners, args: argparse.Namespace, report: Report) -> None:
    given = args.model_size is not None
    model = args.model_size if given else bytes_of(DEFAULT_MODEL)
    report.add(*attempt(us, "window", lambda: check_window(us, model, given)))
    if us.nodes == 1:
        reason = "one node: partners are read in place"
        report.add(Finding("skip", "message", reason), Finding("ok", "progress engine", f"needed: no, {reason}"))
    elif "window" not in report.failed:
        report.add(*attempt(us, "message", lambda: check_message(us, args.seconds), TIME_LIMIT + 2 * args.seconds))


def main() -> int:
    args = arguments()
    try:
        us = start()
    except (ImportError, RuntimeError) as error:
        reason = f"mpi4py cannot load one: {error}".replace("\n", "; ")
        Report(environment_rank() == 0).add(Finding("FAIL", "MPI library", reason))
        return 1
    report = Report(us.rank == 0 and (us.size > 1 or environment_rank() == 0))
    examine(us, args, report)
    if report.failed & {"window", "message"} and us.rank == 0:
        abort("after a failed check MPI may not end in order")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
