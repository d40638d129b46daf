"""`python -m horovod_dpsgd.restart`: which jobs are started again, on what is left of the hosts, and until when."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, environment

from horovod_dpsgd import launching, restart

RESTART = [sys.executable, "-m", "horovod_dpsgd.restart", "--pause", "0"]
COUNTING = "echo start >>{log}; n=$(wc -l <{log}); "  # a job that knows how often it was started


def run(*words: object, **kwargs: object) -> subprocess.CompletedProcess:
    command = [*RESTART, *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=environment(), cwd=REPOSITORY, **kwargs
    )


def job(log: Path, then: str) -> list[str]:
    return ["--", "sh", "-c", COUNTING.format(log=log) + then]


def starts(log: Path) -> int:
    return len(log.read_text().splitlines())


@pytest.mark.parametrize(
    ("then", "times", "status"),
    [
        ("exit 0", 1, 0),
        ("test $n -ge 3", 3, 0),  # the third time it succeeds
        ("exit 9", 4, 9),  # after three restarts it is given up
        ("kill -KILL $$", 4, 137),
        ("exit 2", 1, 2),  # bad input stays bad
        ("test $n -ge 2 && exit 143; exit 1", 2, 143),  # it was asked to end
    ],
)
def test_a_job_is_started_again_while_that_may_help(tmp_path, then, times, status):
    done = run("--max-restarts", 3, *job(tmp_path / "log", then))
    assert (starts(tmp_path / "log"), done.returncode) == (times, status), done.stderr
    assert done.stderr.count("restart: restart ") == times - 1


@pytest.mark.parametrize("pause", ["-1", "nan", "soon"])
def test_a_pause_that_is_none_is_refused_before_the_job_starts(tmp_path, pause):
    done = run("--pause", pause, *job(tmp_path / "log", "exit 0"))
    assert done.returncode == 2 and "is not a number of 0 or more" in done.stderr
    assert not (tmp_path / "log").exists()


def test_status_0_without_the_result_is_a_failure(tmp_path):
    """Open MPI's mpirun ends with status 0 when it has lost a host."""
    result = tmp_path / "result.json"
    done = run("--done", result, *job(tmp_path / "log", f"test $n -lt 3 || touch {result}"))
    assert (starts(tmp_path / "log"), done.returncode) == (3, 0), done.stderr
    result.unlink()
    never = run("--done", result, "--max-restarts", 1, *job(tmp_path / "log", "exit 0"))
    assert never.returncode == 1
    assert "ended with status 0, but" in never.stderr


def test_hosts_that_do_not_answer_are_left_out(tmp_path):
    """`ssh` is played by the existence of a file; the second start finds host2 gone."""
    for host in ("host1", "host2"):
        (tmp_path / host).touch()
    then = f"echo {{np}} {{hosts}} >>{tmp_path}/placed; rm -f {tmp_path}/host2; test $n -ge 2"
    words = ["--hosts", "host1:8,host2:8", "--sizes", "16,12,4,8", "--check", f"test -e {tmp_path}/{{host}}"]
    done = run(*words, *job(tmp_path / "log", then))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "placed").read_text().splitlines() == ["16 host1:8,host2:8", "8 host1:8"]
    assert "host2 does not answer" in done.stderr
    (tmp_path / "host1").unlink()
    none_left = run("--max-restarts", 1, *words, *job(tmp_path / "log", "exit 0"))
    assert none_left.returncode == 1
    assert none_left.stderr.count("0 slots are left, and the job needs 4") == 2


def test_a_host_that_comes_back_is_waited_for(tmp_path):
    there = tmp_path / "host1"
    asked = f"sh -c 'test -e {there} || {{ touch {there}; exit 1; }}'"
    done = run("--hosts", "host1:8", "--check", asked, *job(tmp_path / "log", "exit 0"))
    assert (starts(tmp_path / "log"), done.returncode) == (1, 0), done.stderr
    assert "0 slots are left, and the job needs 1" in done.stderr


@pytest.mark.parametrize(
    ("hosts", "sizes", "np"),
    [([("a", 3), ("b", 4)], [], "7"), ([("a", 3)], [2, 4], "2"), ([("a", 3)], [4], None), ([], [], None)],
)
def test_the_largest_size_that_fits_is_taken(hosts, sizes, np):
    filled = restart.fill(["run", "-np", "{np}"], hosts, sizes)
    assert filled == (None if np is None else ["run", "-np", np])


def test_signals_are_passed_on_and_end_it(tmp_path):
    script = f"trap 'echo saved >>{tmp_path}/log' USR1; trap 'echo ended >>{tmp_path}/log; exit 1' TERM; "
    script += f"echo ready >>{tmp_path}/log; while :; do sleep 0.05; done"
    wrapper = subprocess.Popen([*RESTART, "--", "sh", "-c", script], env=environment(), cwd=REPOSITORY)
    for signal_sent, words in ((None, "ready"), (signal.SIGUSR1, "saved"), (signal.SIGTERM, "ended")):
        if signal_sent:
            wrapper.send_signal(signal_sent)
        end = time.monotonic() + 20
        while not ((tmp_path / "log").exists() and words in (tmp_path / "log").read_text()):
            assert time.monotonic() < end
            time.sleep(0.02)
    assert wrapper.wait(timeout=20) == 1
    assert (tmp_path / "log").read_text().split() == ["ready", "saved", "ended"], "and it was not started again"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "no command is given"),
        (["--", "mpirun", "-np", "{np}", "x"], "need --hosts"),
        (["--hosts", "host1", "--", "x"], "is not HOST:SLOTS"),
        (["--hosts", "host1:0", "--", "x"], "is not a whole number of 1 or more"),
        (["--max-restarts", "-1", "--", "x"], "is not a whole number of 0 or more"),
    ],
)
def test_a_wrong_command_line_is_refused(words, says):
    done = run(*words)
    assert done.returncode == 2
    assert says in done.stderr


def test_a_command_that_is_not_there_is_not_started_again(tmp_path):
    done = run("--", tmp_path / "no-such-program")
    assert done.returncode == 127
    assert done.stderr.count("cannot be started") == 1


@pytest.mark.mpi
def test_a_training_job_whose_learner_is_killed_ends_as_if_nothing_had_happened(mpirun, tmp_path):
    """Each start loses learner 1 in its 13th step; so the job gets from checkpoint to checkpoint, and through."""
    train, faulty = REPOSITORY / "benchmarks/cv/train.py", REPOSITORY / "benchmarks/reliability/faulty_train.py"
    options = ["--algo", "dpsgd", "--topology", "matching", "--synthetic", "--batch-size", "300", "--max-steps", "30"]
    options += ["--checkpoint-every", "10", "--keep", "0"]
    mpirun(3, train, *options, "--output", tmp_path / "whole")
    launch = [*launching.mpirun(3), sys.executable, str(faulty), *options]
    command = [*RESTART, "--done", str(tmp_path / "parts/result.json"), "--", *launch]
    command += ["--output", str(tmp_path / "parts"), "--resume", "auto"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env=environment() | {"FAULT": "kill-forward:1:12"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("restart: restart ") == 2, done.stderr
    ended = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "parts")]
    assert ended[0]["heldout_by_learner"] == ended[1]["heldout_by_learner"]
    assert ended[0]["heldout"] == ended[1]["heldout"]
