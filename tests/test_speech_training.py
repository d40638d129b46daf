"""Speech in the training loop, as jobs."""

from __future__ import annotations

import json

import pytest
from conftest import PROGRAMS, REPOSITORY
from speech import write_prepared

TRAIN = REPOSITORY / "benchmarks" / "asr" / "train.py"
SMALL = ["--set", "model_options={layers: 1, cells: 8, bottleneck: null, states: 30, input: 6}"]


@pytest.mark.mpi
def test_every_algorithm_trains_and_a_resumed_run_equals_the_uninterrupted_one(mpirun, tmp_path):
    write_prepared(tmp_path / "prepared", lengths=(210, 430, 64), silence=[0])
    done = mpirun(2, PROGRAMS / "speech_trains.py", tmp_path / "prepared", tmp_path)
    assert done.stdout.count(": trained") == 4
    assert "resumed: equal" in done.stdout


@pytest.mark.mpi
def test_the_command_line_trains_on_synthetic_speech(mpirun, tmp_path):
    options = ["--algo", "dpsgd", "--synthetic", "--batch-size", 8, "--max-steps", 3, *SMALL]
    done = mpirun(2, TRAIN, *options, "--output", tmp_path / "run")
    assert "speech dpsgd: 3 steps, held-out error" in done.stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (result["data"], result["task"], result["heldout"]["groups"]) == ("synthetic speech", "speech", None)
