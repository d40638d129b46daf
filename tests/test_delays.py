"""Learners slowed down on purpose: how long they wait, and that it changes no number that is learned."""

from __future__ import annotations

import json

import numpy as np
import pytest
from conftest import REPOSITORY

from horovod_dpsgd.training.delays import delay, random_delay

TRAIN = REPOSITORY / "benchmarks" / "cv" / "train.py"
SEVERAL = REPOSITORY / "benchmarks" / "experiments" / "several.py"


def test_delays_are_exponential_with_mean_one():
    drawn = np.array([random_delay(seed=0, rank=rank, step=step) for rank in range(4) for step in range(1500)])
    assert drawn.min() >= 0
    assert drawn.mean() == pytest.approx(1, abs=0.05)
    assert drawn.std() == pytest.approx(1, abs=0.08)
    assert np.mean(drawn > np.log(2)) == pytest.approx(0.5, abs=0.03)


def test_delays_are_drawn_from_seed_rank_and_step():
    drawn = {key: random_delay(*key) for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]}
    assert len(set(drawn.values())) == len(drawn)
    assert drawn == {key: random_delay(*key) for key in drawn}


def test_a_factor_and_jitter_multiply():
    late = random_delay(0, 1, 5)
    assert delay(1.0, 0.0, 0, 1, 5) == 0
    assert delay(4.0, 0.0, 0, 1, 5) == 3
    assert delay(1.0, 0.5, 0, 1, 5) == pytest.approx(0.5 * late)
    assert delay(4.0, 0.5, 0, 1, 5) == pytest.approx(4 * (1 + 0.5 * late) - 1)


def test_jitter_delays_steps_and_leaves_what_is_learned_alone(mpirun, tmp_path):
    options = ["--algo", "dpsgd", "--synthetic", "--max-steps", "10", "--output"]
    runs = [*options, str(tmp_path / "even")], [*options, str(tmp_path / "late"), "--jitter", "5"]
    (tmp_path / "runs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in runs))
    mpirun(2, SEVERAL, TRAIN, tmp_path / "runs.jsonl")
    even, late = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("even", "late"))
    assert late["heldout"] == even["heldout"]
    assert late["config"]["jitter"] == 5
    assert late["step_seconds_median"] > 1.5 * even["step_seconds_median"]
