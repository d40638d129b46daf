"""hostfiles/slurm.sbatch, with Slurm and mpirun played by scripts."""

import os
import signal
import subprocess
import time

import pytest
from conftest import REPOSITORY

SCRIPT = REPOSITORY / "hostfiles/slurm.sbatch"
JOB = """#!/bin/bash
echo "$@" >{folder}/started
trap 'sleep 0.3; exit 143' USR2
for _ in $(seq {tenths}); do sleep 0.1; done
exit {status}
"""


def submit(folder, tenths, status, *arguments):
    (folder / "bin").mkdir()
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/activate").touch()
    programs = {"mpirun": JOB.format(folder=folder, tenths=tenths, status=status)}
    programs["scontrol"] = f'#!/bin/sh\necho "$@" >{folder}/requeued\n'
    for name, text in programs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    slurm = {"SLURM_NTASKS": "16", "SLURM_JOB_ID": "77", "SLURM_SUBMIT_DIR": str(folder)}
    env = os.environ | slurm | {"PATH": f"{folder}/bin:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", str(SCRIPT), *arguments], env=env)
    end = time.monotonic() + 20
    while not (folder / "started").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    return job


@pytest.mark.parametrize("status", [0, 1])
def test_the_job_s_status_is_the_script_s(tmp_path, status):
    job = submit(tmp_path, 1, status)
    assert job.wait(timeout=30) == status
    words = "-np 16 --bind-to none python benchmarks/cv/train.py --algo dpsgd --topology matching"
    assert (tmp_path / "started").read_text().strip() == words
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("resume", [["--resume", "auto"], ["--resume=auto"], ["--resume"]])
def test_before_the_time_limit_the_run_saves_and_is_queued_again_if_it_can_go_on(tmp_path, resume):
    job = submit(tmp_path, 200, 0, "--output", "runs/a", *resume)
    time.sleep(0.2)
    job.send_signal(signal.SIGUSR2)
    assert job.wait(timeout=30) == 143
    assert (tmp_path / "requeued").exists() == ("auto" in resume[-1])
