"""`benchmarks/cv/train.py` as users start it: mpirun and horovodrun, 1 to 16 learners, resumed, and with bad input."""

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import PROGRAMS, REPOSITORY

from horovod_dpsgd import training

pytestmark = pytest.mark.mpi
TRAIN = REPOSITORY / "benchmarks/cv/train.py"
RECIPE = REPOSITORY / "benchmarks/cv/recipes/mnist.yaml"
RESULT_KEYS = {
    "task", "model", "algo", "topology", "optimizer", "learners", "global_batch", "lr", "seed", "steps", "epochs",
    "diverged", "diverged_at_step", "heldout", "heldout_by_learner", "consensus_distance", "samples_per_second",
    "step_seconds_median", "exposed_communication_seconds_median", "bytes_sent_per_step", "wall_seconds", "versions",
    "hosts", "git", "config",
}  # fmt: skip


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def checkpoint(folder: Path, step: int, rank: int) -> dict:
    return torch.load(folder / f"checkpoints/step-{step:08d}/learner-{rank:03d}.pt", weights_only=False)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_run_folder_holds_what_is_promised(mpirun, tmp_path, n):
    options = [
        "--algo",
        "dpsgd",
        "--synthetic",
        "--max-steps",
        20,
        "--log-every",
        5,
        "--diagnostics",
        "--diagnostics-samples",
        1000,
        "--set",
        "diagnostics_hessian=true",
        "--eval-every",
        10,
    ]
    mpirun(n, TRAIN, *options, "--output", tmp_path / "run")
    ended = result(tmp_path / "run")
    assert ended.keys() >= RESULT_KEYS
    assert (ended["learners"], ended["steps"], len(ended["hosts"])) == (n, 20, n)
    assert len(ended["heldout_by_learner"]["error_percent"]) == n
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train_loss" in line] == [5, 10, 15, 20]
    assert [line["step"] for line in lines if "effective_lr" in line] == [1, 11]
    measured = [line for line in lines if "effective_lr" in line]
    assert all(line[f"{name}_low"] < line[f"{name}_high"] for line in measured for name in ("full_loss", "noise"))
    assert all("noise_2_hessian" in line for line in measured)
    assert [line["step"] for line in lines if "heldout_loss" in line] == [10, 20]
    assert list((tmp_path / "run").glob("events.*"))


def test_config_of_a_run_is_a_recipe_that_repeats_it(mpirun, tmp_path):
    mpirun(2, TRAIN, "--algo", "dpsgd", "--synthetic", "--max-steps", 12, "--output", tmp_path / "first")
    mpirun(2, TRAIN, "--recipe", tmp_path / "first/config.yaml", "--output", tmp_path / "again")
    first, again = result(tmp_path / "first"), result(tmp_path / "again")
    assert first["heldout"] == again["heldout"]
    assert first["heldout_by_learner"] == again["heldout_by_learner"]


def test_adpsgd_takes_every_part_of_every_batch_once_and_goes_on_from_a_checkpoint(mpirun, tmp_path):
    options = ["--algo", "adpsgd", "--synthetic", "--batch-size", 300, "--checkpoint-every", 8, "--log-every", 3]
    mpirun(3, TRAIN, *options, "--slow-learner", "1:3", "--max-steps", 10, "--output", tmp_path)
    first = result(tmp_path)
    assert sum(first["steps_by_learner"]) == 30
    assert sum(first["staleness"].values()) == 30
    states = [checkpoint(tmp_path, 10, rank)["algorithm"] for rank in range(3)]
    assert [state["step"] for state in states] == first["steps_by_learner"]
    mpirun(3, TRAIN, "--max-steps", 24, "--output", tmp_path, "--resume")
    ended = result(tmp_path)
    assert (ended["steps"], sum(ended["steps_by_learner"])) == (24, 72)
    assert sum(ended["staleness"].values()) == 42, "since it was resumed"
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "train_loss" in line] == [3, 6, 8, 9, 10, 12, 15, 16, 18, 21, 24]


def test_a_resumed_run_draws_the_same_augmentations(mpirun, tmp_path):
    assert "equal" in mpirun(2, PROGRAMS / "resume_with_augmentation.py", tmp_path).stdout


def test_a_run_is_resumed_by_its_own_recipe_and_by_no_other(mpirun, tmp_path):
    options = ["--algo", "dpsgd", "--topology", "ring", "--lr", 0.3, "--synthetic", "--seed", 5]
    mpirun(2, TRAIN, *options, "--max-steps", 4, "--output", tmp_path)
    other = mpirun(2, TRAIN, "--lr", 0.5, "--output", tmp_path, "--resume", status=2)
    assert "it was begun with lr 0.3, now 0.5" in other.stderr
    more = mpirun(3, TRAIN, "--max-steps", 6, "--output", tmp_path, "--resume", status=2)
    assert "is not divisible" in more.stderr
    more = mpirun(4, TRAIN, "--max-steps", 6, "--output", tmp_path, "--resume", status=2)
    assert "is of 2 learners, but there are 4" in more.stderr
    mpirun(2, TRAIN, "--max-steps", 6, "--output", tmp_path, "--resume")
    ended = result(tmp_path)
    assert (ended["steps"], ended["topology"], ended["lr"], ended["seed"]) == (6, "ring", 0.3, 5)
    before = (tmp_path / "result.json").read_text()
    assert "nothing is left to do" in mpirun(2, TRAIN, "--output", tmp_path, "--resume").stdout
    assert (tmp_path / "result.json").read_text() == before


def test_clipping_autocast_and_a_slow_learner_run_in_the_loop(mpirun, tmp_path):
    options = ["--set", "clip_norm=0.1", "--amp", "--slow-learner", "1:2", "--synthetic", "--max-steps", 4]
    for algo in ("ssgd", "dpsgd"):
        mpirun(2, TRAIN, "--algo", algo, *options, "--output", tmp_path / algo)
        assert result(tmp_path / algo)["steps"] == 4


def test_a_batch_in_parts_makes_the_same_run(mpirun, tmp_path):
    assert mpirun(2, PROGRAMS / "accumulation_matches.py", tmp_path).stdout.count("equal") == 3


def test_all_learners_together_see_the_same_data_whatever_their_number(mpirun, tmp_path):
    """SSGD with 1 and with 4 learners is the same run, to rounding."""
    for n in (1, 4):
        mpirun(n, TRAIN, "--algo", "ssgd", "--synthetic", "--max-steps", 8, "--lr", 0.1, "--output", tmp_path / str(n))
    one, four = result(tmp_path / "1"), result(tmp_path / "4")
    assert one["heldout"]["loss"] == pytest.approx(four["heldout"]["loss"], rel=1e-5)


def test_divergence_is_a_result_and_no_crash(mpirun, tmp_path):
    mpirun(2, TRAIN, "--algo", "dpsgd", "--synthetic", "--lr", 1e30, "--max-steps", 200, "--output", tmp_path)
    ended = result(tmp_path)
    assert ended["diverged"]
    assert ended["diverged_at_step"] < ended["steps"] < 200
    again = mpirun(2, TRAIN, "--output", tmp_path, "--resume", "auto")
    assert f"the run has ended, after {ended['steps']} steps" in again.stdout, "also where it left no checkpoint"
    assert result(tmp_path) == ended


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ssgd", "dpsgd", "adpsgd"])
def test_horovodrun_starts_16_learners(horovodrun, tmp_path, algo):
    options = ["--algo", algo, "--synthetic", "--max-steps", 6, "--output", tmp_path]
    horovodrun(16, "localhost:16", "benchmarks/cv/train.py", *options, timeout=400)
    assert result(tmp_path)["learners"] == 16


FOUND_BEFORE_THE_LEARNERS_START = {
    "unknown option": (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    "unknown algo": (["--algo", "sgd2"], "invalid choice: 'sgd2'"),
    "unknown recipe": (["--recipe", "no-such-recipe"], "no-such-recipe"),
    "negative rate": (["--lr", "-1"], "lr: "),
    "diagnostics of adpsgd": (["--algo", "adpsgd", "--diagnostics"], "diagnostics need all learners at one step"),
    "compressed sums": (["--set", "compression=bfloat16", "--topology", "complete"], "compression is for algo dpsgd"),
    "noise without ssgd-star": (["--algo", "dpsgd", "--noise-std", "0.1"], "noise_std"),
    "unknown key": ({"nonsense": 1}, "unknown key 'nonsense'"),
    "unknown task": ({"task": "nonsense"}, "unknown task 'nonsense'"),
    "resume without output": (["--resume"], "--resume needs --output"),
    "an average of nothing": (["--resume-average"], "how to --resume, which is not given"),
    "a topology for ssgd": (["--algo", "ssgd", "--topology", "ring"], "--topology is of dpsgd and adpsgd"),
    "another resume": (["--resume", "never", "--output", "x"], "invalid choice: 'never'"),
    "keep fewer than none": (["--keep", "-1"], "keep: "),
    "resume of nothing": (["--resume", "--output", "/no/such/folder"], "/no/such/folder/config.yaml"),
}


@pytest.mark.parametrize("case", FOUND_BEFORE_THE_LEARNERS_START)
def test_bad_input_is_one_line_and_status_2_on_rank_0_alone(tmp_path, monkeypatch, capsys, case):
    wrong, message = FOUND_BEFORE_THE_LEARNERS_START[case]
    if isinstance(wrong, dict):
        (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(yaml.safe_load(RECIPE.read_text()) | wrong))
        wrong = ["--recipe", str(tmp_path / "recipe.yaml")]
    monkeypatch.setattr(sys, "argv", ["train.py", *wrong])
    for rank in "01":
        monkeypatch.setenv("OMPI_COMM_WORLD_RANK", rank)
        with pytest.raises(SystemExit) as end:
            training.main("", {"mnist": None}, RECIPE.parent, "mnist")
        assert end.value.code == 2
        said = capsys.readouterr().err.splitlines()
        assert len(said) == (rank == "0")
        assert all(line.startswith("train.py: error: ") and message in line for line in said)


FOUND_WHEN_LEARNERS_HAVE_MET = {
    "unknown option": (["--no-such-option"], "unrecognized arguments: --no-such-option"),
    "batch not divisible": (["--batch-size", "2001", "--synthetic"], "batch_size 2001"),
    "batch larger than the data": (["--batch-size", "100000", "--synthetic"], "larger than the training set"),
    "missing data": (["--data-dir", "/no/such/folder"], "/no/such/folder"),
    "output below a file": (["--synthetic", "--output", "/dev/null/run"], "cannot write to /dev/null/run: Not a dir"),
    "output that takes no files": (["--synthetic", "--output", "/proc/self"], "cannot write to /proc/self"),
}


@pytest.mark.parametrize("case", FOUND_WHEN_LEARNERS_HAVE_MET)
def test_bad_input_under_mpirun_is_one_line_and_status_2(mpirun, tmp_path, case):
    wrong, message = FOUND_WHEN_LEARNERS_HAVE_MET[case]
    output = [] if "--output" in wrong else ["--output", tmp_path / "run"]
    done = mpirun(2, TRAIN, *wrong, *output, status=2)
    said = [line for line in (done.stdout + done.stderr).splitlines() if "error:" in line]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("train.py: error: ")
    assert message in said[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run/result.json").exists()


def test_a_folder_that_holds_a_run_is_not_overwritten(mpirun, tmp_path):
    options = ["--synthetic", "--max-steps", 2, "--output", tmp_path]
    mpirun(1, TRAIN, *options)
    before = (tmp_path / "result.json").read_text()
    done = mpirun(1, TRAIN, *options, status=2)
    assert "already holds a run" in done.stderr
    assert (tmp_path / "result.json").read_text() == before
