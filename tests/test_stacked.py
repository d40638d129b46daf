"""Stacked networks against what they stand for: real learners, and PyTorch's own LSTM."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.stacked import __main__ as stacked_command
from benchmarks.stacked import summary
from benchmarks.stacked.networks import Networks, UnrolledLSTM
from benchmarks.tasks import find
from horovod_dpsgd.errors import ModelError, UserError
from horovod_dpsgd.training import recipe as recipes
from tests.conftest import environment

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
TASKS = {  # recipe and what makes it small
    "nlp/novels-cpu": ("max_steps=7", "batch_size=12", "clip_norm=0.05", "warmup=3"),
    "cv/cifar10-cpu": ("max_steps=4", "batch_size=12", "data_options.subset=1000", "lr=0.05", "warmup_epochs=0"),
    "asr/speech-cpu": ("max_steps=4", "batch_size=6", "momentum=0.9", "weight_decay=0.01", "warmup=2", "lr=4"),
}
LEARNERS = 3


def stacked(task: str, output: Path, *words: str, status: int = 0) -> str:
    recipe = BENCHMARKS / f"{task.replace('/', '/recipes/')}.yaml"
    command = [sys.executable, "-m", "benchmarks.stacked", "--recipe", str(recipe), "--device", "cpu"]
    done = subprocess.run(
        [*command, "--output", str(output), *words], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == status, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_stacked_runs_are_those_of_real_learners(mpirun, tmp_path, task):
    settings = [word for setting in (*TASKS[task], "synthetic=true") for word in ("--set", setting)]
    vary = ("--vary", "algo=ssgd,dpsgd", "--set", "eval_every=2", "--learners", str(LEARNERS))
    stacked(task, tmp_path / "map.jsonl", *settings, *vary)
    lines = [json.loads(line) for line in (tmp_path / "map.jsonl").read_text().splitlines()]
    assert [line["varied"] for line in lines] == [{"algo": "dpsgd", "seed": "0"}, {"algo": "ssgd", "seed": "0"}]
    benchmark, name = task.split("/")
    for line in lines:
        algo = line["varied"]["algo"]
        train = ("--recipe", name, "--algo", algo, "--eval-every", 2, "--log-every", 1, "--output", tmp_path / algo)
        mpirun(LEARNERS, BENCHMARKS / benchmark / "train.py", *train, *settings)
        metrics = [json.loads(each) for each in (tmp_path / algo / "metrics.jsonl").read_text().splitlines()]
        heldout = {str(each["step"]): each["heldout_loss"] for each in metrics if "heldout_loss" in each}
        result = json.loads((tmp_path / algo / "result.json").read_text())
        heldout[str(result["steps"])] = result["heldout"]["loss"]
        assert line["heldout_losses"] == pytest.approx(heldout, abs=2e-5)
        assert line["train_losses"] == pytest.approx([m["train_loss"] for m in metrics if "train_loss" in m], abs=1e-3)
        last = line["consensus_distances"][str(result["steps"])]
        assert last == pytest.approx(result["consensus_distance"], rel=1e-3, abs=1e-5)
        assert (last > 1e-5) == (algo == "dpsgd")


@pytest.mark.parametrize("layers", [1, 3])
def test_the_unrolled_lstm_is_pytorch_s(layers):
    lstm = nn.LSTM(5, 4, layers, batch_first=True, bidirectional=True).double()
    frames = torch.randn(2, 7, 5, dtype=torch.float64)
    unrolled = UnrolledLSTM(lstm)
    torch.testing.assert_close(unrolled(frames)[0], lstm(frames)[0])
    assert dict(unrolled.named_parameters()).keys() == dict(lstm.named_parameters()).keys()


def test_what_cannot_be_stacked_is_refused(tmp_path):
    with pytest.raises(ModelError, match="bidirectional"):
        UnrolledLSTM(nn.LSTM(5, 4))
    recipe = recipes.load("cifar10", BENCHMARKS / "cv" / "recipes", {"synthetic": True, "model": "resnet18"})
    task = find(recipe.task)(recipe, False)
    with pytest.raises(ModelError, match="BatchNorm"):
        Networks(task, task.make_model(), "cpu")
    error = stacked("nlp/novels-cpu", tmp_path / "map.jsonl", "--vary", "algo=adpsgd", status=2)
    assert error == "python -m benchmarks.stacked: error: algo adpsgd: stacked networks know ssgd, ssgd-star, dpsgd\n"


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--vary", "seed=0,1"], "--seeds N says how many seeds"),
        (["--vary", "lr=1,2", "--vary", "lr=3"], "--vary lr is given twice"),
        (["--vary", "topology=matching,hierarchical"], "topology hierarchical would be complete"),
    ],
)
def test_what_would_be_another_map_than_was_asked_for_is_refused(words, complaint, monkeypatch, tmp_path, capsys):
    recipe = ["--recipe", str(BENCHMARKS / "nlp/recipes/novels-cpu.yaml"), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["stacked", *recipe, "--output", str(tmp_path / "map.jsonl"), *words])
    with pytest.raises(SystemExit) as ended:
        stacked_command.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


def test_a_map_of_runs_that_are_not_alike_has_no_summary():
    lines = some_lines()
    with pytest.raises(UserError, match=r"there are two runs with .*'seed': '0'"):
        summary.cells([*lines, lines[0]])
    for key, value in (("learners", 8), ("recipe", lines[1]["recipe"] | {"momentum": 0.0})):
        with pytest.raises(UserError, match=r"differ in (learners|momentum), which was not varied"):
            summary.cells([lines[0], lines[1] | {key: value}])


def some_lines() -> list[dict]:
    losses = (("ssgd", "10", (3, 1, 2)), ("dpsgd", "10", (1, float("nan"), 1)), ("ssgd", "2", (4,)),
              ("dpsgd", "2", (1, math.inf, math.nan)))  # fmt: skip
    return [
        {
            "varied": {"algo": algo, "lr": lr, "seed": str(seed)},
            "learners": 4,
            "recipe": {"seed": seed, "momentum": 0.9},
            "heldout_losses": {"2": 9.0, "4": loss},
        }
        for algo, lr, of_seeds in losses
        for seed, loss in enumerate(of_seeds)
    ]


def test_the_summary_has_algorithms_across_and_medians_over_seeds():
    text = summary.markdown(summary.cells(some_lines()))
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in text.splitlines()]
    assert rows[0] == ["lr", "ssgd", "dpsgd"]
    assert rows[2:] == [
        ["2", "4.000", "lost (1.000 - 1.000), 2 of 3 lost"],
        ["10", "2.000 (1.000 - 3.000)", "1.000 (1.000 - 1.000), 1 of 3 lost"],
    ]


def test_the_figure_has_a_line_of_medians_and_a_cross_for_each_lost_run():
    (axes,) = summary.figure(summary.cells(some_lines()), "lr").axes
    lines = {line.get_label(): line for line in axes.get_lines()}
    assert list(lines["ssgd"].get_xdata()) == [2, 10] and list(lines["ssgd"].get_ydata()) == [4, 2]
    crosses = [x for line in axes.get_lines() if line.get_marker() == "x" for x in line.get_xdata()]
    assert crosses == [2, 2, 10]
    (axes,) = summary.figure(summary.cells(some_lines()), "lr", [summary.level("states known=3.5")]).axes
    assert len([line for line in axes.get_lines() if set(line.get_ydata()) == {3.5}]) == 1
    assert [text.get_text() for text in axes.texts] == ["states known"]
    with pytest.raises(argparse.ArgumentTypeError, match=r"'3\.5' is not NAME=LOSS"):
        summary.level("3.5")
