"""DPSGD and SSGD between two hosts: by the README's plain lines, and against eq. 2."""

import json
import re
import sys

import pytest
from conftest import PROGRAMS, REPOSITORY, mpi_library

from benchmarks.two_hosts.netns import run_on_host1, why_not
from two_hosts.test_launchers import mpirun_hosts

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]
TRAIN = str(REPOSITORY / "benchmarks/cv/train.py")


@pytest.mark.parametrize(
    "options",
    [*(["dpsgd", "--topology", name] for name in ("matching", "complete", "hierarchical")), ["adpsgd"], ["ssgd"]],
)
def test_plain_horovodrun_trains_on_both_hosts(tmp_path, options):
    short = ["--synthetic", "--max-steps", "30", "--output", str(tmp_path)]
    line = ["horovodrun", "-np", "4", "-H", "host1:2,host2:2", "python", TRAIN, "--algo", *options, *short]
    done = run_on_host1(line, timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    ended = json.loads((tmp_path / "result.json").read_text())
    assert ended["hosts"] == ["host1", "host1", "host2", "host2"]
    assert (ended["steps"], ended["diverged"]) == (30, False)


def test_dpsgd_between_hosts_matches_equation_2():
    program = str(PROGRAMS / "dpsgd_matches_reference.py")
    done = run_on_host1(["mpirun", "-np", "4", *mpirun_hosts(), sys.executable, program], timeout=240)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("equal") == 18


@pytest.mark.slow
def test_exchanges_between_hosts_are_never_torn_or_stale():
    program = [str(PROGRAMS / "no_torn_reads.py"), "10000", "random-ring", "1031"]
    done = run_on_host1(["mpirun", "-np", "4", *mpirun_hosts(), sys.executable, *program], timeout=600)
    assert "none torn or stale" in done.stdout, f"{mpi_library()}: {done.stdout[-3000:]}{done.stderr[-3000:]}"


def test_a_learner_that_stops_on_another_host_is_named():
    program = [str(PROGRAMS / "failing_learner.py"), "stop", "5", "matching"]
    done = run_on_host1(["mpirun", "-np", "2", *hosts_of_one(), sys.executable, *program], timeout=120)
    assert done.returncode != 0
    assert re.search(r"learner 0, step 5: nothing new from learner 1 on host2; gave up after 5 s", done.stderr), (
        done.stderr
    )


def hosts_of_one() -> list[str]:
    return ["-ppn", "1", "-hosts", "host1,host2"] if "ppn" in mpirun_hosts()[0] else ["-H", "host1:1,host2:1"]
