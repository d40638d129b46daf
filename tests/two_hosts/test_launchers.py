"""The plain launch lines of the README, over two hosts: nothing but -np and -H (patches/README.md, launcher)."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.two_hosts.netns import run_on_host1, why_not
from horovod_dpsgd.launching import is_mpich

WHO_IS_WHERE = str(Path(__file__).with_name("who_is_where.py"))
FOUR_LEARNERS = [f"learner {rank} of 4 on host{1 + rank // 2} with 2 there, sum 6, {sys.prefix}" for rank in range(4)]

pytestmark = [pytest.mark.mpi, pytest.mark.skipif(why_not() is not None, reason=why_not() or "")]


def learners(lines: str) -> list[str]:
    """The learners' lines in order of rank, without the launcher's label in front."""
    return sorted(line[line.index("learner") :] for line in lines.splitlines() if "learner " in line)


def mpirun_hosts() -> list[str]:
    """The launch line differs between the two libraries only in how hosts are written."""
    return ["-ppn", "2", "-hosts", "host1,host2"] if is_mpich() else ["-H", "host1:2,host2:2"]


def test_plain_horovodrun_starts_learners_on_both_hosts():
    pytest.importorskip("horovod")
    done = run_on_host1(["horovodrun", "-np", "4", "-H", "host1:2,host2:2", "python", WHO_IS_WHERE], timeout=120)
    assert learners(done.stdout) == FOUR_LEARNERS, done.stdout + done.stderr


def test_plain_mpirun_starts_learners_on_both_hosts():
    """`python` without a path: the other host must find this environment's, not the system's."""
    pytest.importorskip("horovod")
    done = run_on_host1(["mpirun", "-np", "4", *mpirun_hosts(), "python", WHO_IS_WHERE], timeout=120)
    assert learners(done.stdout) == FOUR_LEARNERS, done.stdout + done.stderr


def test_a_world_ends_with_its_time():
    """A hung job is killed whole, on both hosts, when its time is up."""
    marker = "77.077077"  # nobody else sleeps exactly this long
    with pytest.raises(subprocess.TimeoutExpired):
        run_on_host1(["sh", "-c", f"ssh host2 sleep {marker} & sleep {marker}"], timeout=2)
    assert subprocess.run(["pgrep", "-f", f"sleep {marker}"], capture_output=True, text=True).stdout == ""
