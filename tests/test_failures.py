"""A learner that fails ends the whole job, with a reason that names it and a status that is not 0."""

import re

import pytest
from conftest import PROGRAMS

pytestmark = pytest.mark.mpi


def test_an_exception_on_one_learner_ends_the_job(mpirun):
    done = mpirun(3, PROGRAMS / "failing_learner.py", "exception", 300, "complete", status=None, timeout=60)
    assert done.returncode != 0
    assert "learner 1 ends the job: ArithmeticError: this learner is meant to fail" in done.stderr
    assert "trained to the end" not in done.stdout


def test_a_learner_that_stops_is_named_and_ends_the_job_after_the_stall_timeout(mpirun):
    done = mpirun(3, PROGRAMS / "failing_learner.py", "stop", 3, "complete", status=None, timeout=60)
    assert done.returncode != 0
    assert re.search(r"learner [02], step 6: learner 1 has published 5; gave up after 3 s", done.stderr), done.stderr
    assert "trained to the end" not in done.stdout


def test_a_learner_that_leaves_early_is_named_and_ends_the_job_at_once(mpirun):
    done = mpirun(3, PROGRAMS / "failing_learner.py", "leave", 300, "ring", status=None, timeout=60)
    assert done.returncode != 0
    assert re.search(r"learner 1 has left after 5 steps, but learner [02] goes on to step 7", done.stderr), done.stderr
    assert "trained to the end" not in done.stdout


def test_a_learner_that_stops_under_ssgd_ends_the_job_after_the_stall_timeout(mpirun):
    done = mpirun(2, PROGRAMS / "failing_learner.py", "stop", 4, "ssgd", status=None, timeout=90)
    assert done.returncode != 0
    assert "trained to the end" not in done.stdout
    assert re.search(r"stalled|[Ss]tall", done.stdout + done.stderr), done.stderr


def test_a_model_that_one_learner_cannot_make_is_one_line_and_status_2(mpirun, tmp_path):
    options = ["--synthetic", "--max-steps", 2, "--batch-size", 300, "--output", tmp_path]
    done = mpirun(3, PROGRAMS / "one_model_fails.py", *options, status=2, timeout=60)
    assert done.stderr.count("the file of weights is damaged here") == 1, done.stderr
