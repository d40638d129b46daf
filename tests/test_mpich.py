"""DPSGD and AD-PSGD under MPICH, beside the Open MPI that the other tests use (make test installs both)."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import PROGRAMS, REPOSITORY, environment, mpi_library, run

from benchmarks.two_hosts.netns import run_on_host1, why_not

MPICH = Path(sys.prefix) / "mpich"
pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif("HYDRA" in mpi_library(), reason="MPICH is what all tests run under"),
    pytest.mark.skipif(not (MPICH / "bin/mpirun").exists(), reason=f"{mpi_library()}: no MPICH beside it (make test)"),
]
ENVIRONMENT = {"PATH": f"{MPICH / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}", "PYTHONPATH": str(REPOSITORY)}


def mpich(n: int, *words: object, status: int | None = 0) -> subprocess.CompletedProcess[str]:
    launch = [str(MPICH / "bin/mpirun"), "-np", str(n), str(MPICH / "bin/python")]
    return run([*launch, *map(str, words)], 240, status, env=ENVIRONMENT)


def test_it_is_mpich():
    assert "MPICH" in mpich(1, "-c", "from mpi4py import MPI; print(MPI.Get_library_version())").stdout


@pytest.mark.parametrize("n", [2, 3])
def test_dpsgd_matches_equation_2(n):
    assert "equal" in mpich(n, PROGRAMS / "dpsgd_matches_reference.py").stdout


def test_adpsgd_keeps_the_mean_to_the_last_bit():
    mpich(3, PROGRAMS / "adpsgd_keeps_the_mean.py", 60, 1031)


def test_exchanges_are_never_torn_or_stale():
    assert "none torn or stale" in mpich(2, PROGRAMS / "no_torn_reads.py", 2000, "matching", 1031).stdout


def test_a_learner_that_stops_is_named():
    done = mpich(3, PROGRAMS / "failing_learner.py", "stop", 3, "complete", status=None)
    assert done.returncode != 0
    assert "learner 1 has published 5; gave up after 3 s" in done.stderr


def test_the_training_script_runs_and_goes_on(tmp_path):
    options = ["--synthetic", "--batch-size", 300, "--output", tmp_path]
    mpich(3, REPOSITORY / "benchmarks/cv/train.py", *options, "--algo", "dpsgd", "--max-steps", 6)
    again = mpich(3, REPOSITORY / "benchmarks/cv/train.py", "--max-steps", 9, "--output", tmp_path, "--resume")
    assert "going on after step 6" in again.stdout + again.stderr


def test_sigterm_to_mpirun_saves_and_ends(tmp_path):
    """MPICH's mpirun passes it on, where Open MPI's kills the learners."""
    options = ["--synthetic", "--batch-size", "300", "--max-steps", "100000", "--slow-learner", "1:20"]
    train = str(REPOSITORY / "benchmarks/cv/train.py")
    launch = [str(MPICH / "bin/mpirun"), "-np", "2", str(MPICH / "bin/python"), train, *options]
    env = environment() | ENVIRONMENT
    job = subprocess.Popen(
        [*launch, "--output", str(tmp_path)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    end = time.monotonic() + 90
    while not ((tmp_path / "metrics.jsonl").exists() and (tmp_path / "metrics.jsonl").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    out, _ = job.communicate(timeout=60)
    assert re.search(r"interrupted by SIGTERM after step \d+ of 100000", out), out
    assert job.returncode != 0
    assert (tmp_path / "interrupted.json").exists()
    assert list(tmp_path.glob("checkpoints/step-*"))


@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_dpsgd_matches_equation_2_between_two_hosts():
    launch = [str(MPICH / "bin/mpirun"), "-np", "4", "-ppn", "2", "-hosts", "host1,host2", str(MPICH / "bin/python")]
    done = run_on_host1([*launch, str(PROGRAMS / "dpsgd_matches_reference.py")], timeout=240, env=ENVIRONMENT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("equal") == 18
