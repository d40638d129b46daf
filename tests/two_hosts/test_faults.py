"""What happens between hosts when a learner, a launcher or a whole host is lost."""

import json
import re
import sys
import time

import pytest
from conftest import REPOSITORY, mpi_library

from benchmarks.two_hosts.netns import run_on_host1, sshd, why_not
from horovod_dpsgd.training import checkpoint

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(why_not() is not None, reason=why_not() or ""),
    pytest.mark.skipif("HYDRA" in mpi_library(), reason=f"{mpi_library()}: the launch lines and words are Open MPI's"),
]
FAULTY = str(REPOSITORY / "benchmarks/reliability/faulty_train.py")
OPTIONS = ["--algo", "dpsgd", "--topology", "matching", "--synthetic", "--batch-size", "300", "--max-steps", "40"]
OPTIONS += ["--checkpoint-every", "10", "--log-every", "5"]
LAUNCH = ["mpirun", "-np", "2", "-H", "host1:1,host2:1", "-x", "FAULT", sys.executable, FAULTY, *OPTIONS]


def test_the_hosts_are_joined_by_the_ssh_that_is_named():
    """A real sshd leaves its mark on a session; the stand-in does not."""
    seen = run_on_host1(["ssh", "host2", "echo $SSH_CONNECTION on $(hostname)"], timeout=30).stdout.split()
    assert seen == (["10.77.0.1", *seen[1:2], "10.77.0.2", "22", "on", "host2"] if sshd() else ["on", "host2"])


def test_a_learner_killed_on_another_host_ends_the_job(tmp_path):
    env = {"FAULT": "kill-forward:1:25"}
    done = run_on_host1([*LAUNCH, "--output", str(tmp_path / "run")], timeout=120, env=env)
    seconds = time.time() - float((tmp_path / "run.fault").read_text())
    assert done.returncode != 0
    # Who is faster, mpirun or the other learner
    reason = r"process rank 1 with PID \d+ on node host2 exited on signal 9|An error occurred in Socket closed"
    assert re.search(reason, " ".join(done.stderr.split())), done.stderr
    assert seconds < 30
    assert checkpoint.newest(tmp_path / "run/checkpoints", pytest.fail).step == 20


def test_when_a_host_is_lost_the_job_goes_on_without_it(tmp_path):
    """The learner on host2 dies and host2 answers no more; the job is started again with host1's slots alone."""
    run, gone = tmp_path / "run", tmp_path / "host2-is-gone"
    check = f"sh -c 'test {{host}} = host1 || ! test -e {gone}'"
    restart = [sys.executable, "-m", "horovod_dpsgd.restart", "--pause", "0", "--hosts", "host1:1,host2:1"]
    restart += ["--check", check, "--done", str(run / "result.json"), "--"]
    start = ["sh", "-c", f'"$@" || {{ s=$?; touch {gone}; exit $s; }}', "sh"]
    launch = ["mpirun", "-np", "{np}", "-H", "{hosts}", "-x", "FAULT", *LAUNCH[7:]]
    words = [*restart, *start, *launch, "--output", str(run), "--resume", "auto", "--resume-average"]
    done = run_on_host1(words, timeout=240, env={"FAULT": "kill-forward:1:25", "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "host2 does not answer" in done.stderr
    ended = json.loads((run / "result.json").read_text())
    assert (ended["learners"], ended["steps"], ended["hosts"]) == (1, 40, ["host1"])
