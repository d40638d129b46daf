"""What `benchmarks/reproduce.py` would run is possible, and what it makes of runs is what they hold."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, environment

from benchmarks import reproduce
from benchmarks.cv import image_task, models
from benchmarks.cv.datasets import DATA_SETS
from benchmarks.experiments import asr, cv, figure_2, ladder, launch, nlp
from horovod_dpsgd import launching
from horovod_dpsgd.report import runs
from horovod_dpsgd.training import cli
from horovod_dpsgd.training import recipe as recipes

SCALES = ("cpu", "paper")


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", reproduce.EXPERIMENTS)
def test_every_command_is_one_that_training_takes(name, scale, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    jobs = reproduce.EXPERIMENTS[name].jobs(scale, [0, 1])
    assert jobs and len({job.name for job in jobs}) == len(jobs)
    for job in jobs:
        given = cli.parser("", "mnist").parse_args(list(job.arguments))
        recipe = cli._recipe(given, REPOSITORY / Path(job.script).parent / "recipes", "mnist")
        recipe.check_learners(job.learners)
        if recipe.task in DATA_SETS:
            image_task.DataOptions.of(recipe)
            data_set = DATA_SETS[recipe.task]
            models.check(recipe.model, data_set.classes, image_size=data_set.size, **recipe.model_options)


def test_runs_of_the_same_name_are_the_same_run():
    """Experiments share run folders by name."""
    for scale in SCALES:
        by_name = {}
        for experiment in (*cv.EXPERIMENTS.values(), *asr.EXPERIMENTS.values(), *nlp.EXPERIMENTS.values()):
            for job in experiment.jobs(scale, [0]):
                assert by_name.setdefault(job.name, job) == job


def test_the_paper_s_rates_are_those_of_its_tables():
    """Section 4.1: AlexNet at batch 8192 and 32x has 0.32; Table 1: a batch of 2048 has 8x, of 4096 16x."""
    table_1 = {(cell.net, dict(cell.row)["batch"]): cell.x for cell in cv.table_1("paper")}
    assert [table_1[cv.ALEXNET, batch] for batch in ("256", "2048", "4096", "8192")] == [1, 8, 16, 32]
    given = cli.parser("", "mnist").parse_args(list(cv.table_3("paper")[0].job(0).arguments))
    recipe = recipes.load(given.recipe, REPOSITORY / "benchmarks/cv/recipes", {"lr_scale": given.lr_scale})
    assert (recipe.lr, recipe.batch_size, recipe.warmup_from) == (pytest.approx(0.32), 8192, 0.01)


def write_run(folder, cell, seed, error, diverged=False):
    folder = folder / cell.job(seed).name
    folder.mkdir(parents=True)
    algo = "dpsgd" if cell.method.style.startswith("dpsgd") else cell.method.style.removesuffix("-lamb")
    result = {
        "algo": algo, "topology": "matching" if algo == "dpsgd" else None, "learners": cell.learners, "seed": seed,
        "global_batch": 512, "lr": 0.0125 * cell.x, "data": "CIFAR-10", "chance_loss": math.log(10),
        "heldout": {"loss": None if error is None else 1.0, "error_percent": error}, "diverged": diverged,
        "optimizer": "sgd", "git": "abc", "versions": {"torch": "2"}, "config": {"noise_std": 0.0},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": step, "heldout_error_percent": 90 - step, "heldout_loss": 2 - step / 20} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs.load(folder)


def cells_of(line):
    return [cell.strip() for cell in line.strip("| ").split("|")]


@pytest.fixture
def outcomes(tmp_path):
    """SSGD collapses from 16x on, in one seed of two there; DPSGD nowhere; and 4x was never run."""
    cells = cv.table_3("cpu")
    loaded = []
    for cell in cells:
        if cell.net == cv.PLAIN and cell.x > 4:
            for seed in (0, 1):
                lost = cell.method == ladder.SSGD and cell.x >= 16 and (seed == 0 or cell.x == 32)
                loaded.append(write_run(tmp_path, cell, seed, None if lost else 40.0 + seed, lost))
    return ladder.Outcomes(cells, loaded)


def test_the_table_shows_medians_ranges_and_collapses(outcomes):
    rows = [cells_of(line) for line in ladder.results_table(outcomes, ladder.ACCURACY).splitlines()]
    assert rows[0] == ["network", "batch", "rate", "alpha", "SSGD", "DPSGD"]
    by_rate = {row[2]: row[3:] for row in rows[2:] if row[0] == cv.PLAIN.label}
    assert by_rate["32x"] == ["0.4", "10.00 (10.00 - 10.00), 2 of 2 collapsed", "59.50 (59.00 - 60.00)"]
    assert by_rate["16x"] == ["0.2", "34.50 (10.00 - 59.00), 1 of 2 collapsed", "59.50 (59.00 - 60.00)"]
    assert by_rate["4x"] == ["-", "-", "-"]


def test_the_largest_stable_rate_is_below_the_first_collapse(tmp_path):
    cells = cv.table_3("cpu")
    of_plain = [cell for cell in cells if cell.net == cv.PLAIN]
    loaded = [write_run(tmp_path, cell, 0, 40.0, cell.method == ladder.SSGD and cell.x == 16) for cell in of_plain]
    rows = [cells_of(line) for line in ladder.limits_table(ladder.Outcomes(of_plain, loaded)).splitlines()]
    assert rows[2:] == [[cv.PLAIN.label, "8x (not 16x)", "32x, the last tried"]]  # though 32x did not collapse


LADDERS = {"cv": cv, "asr": asr, "nlp": nlp}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in LADDERS for name in LADDERS[kind].EXPERIMENTS])
def test_reports_are_made_of_whatever_runs_there_are(kind, name, tmp_path):
    cells = getattr(LADDERS[kind], name.replace("-", "_"))("cpu")
    loaded = [write_run(tmp_path, cell, seed, 30.0 + seed) for cell in cells for seed in (0, 1)]
    text = LADDERS[kind].EXPERIMENTS[name].report("cpu", loaded, tmp_path)
    drawn = re.findall(r"!\[.*\]\((.*)\)", text)
    assert drawn and all((tmp_path / file).stat().st_size > 5000 for file in drawn)
    assert ("69.50 (69.00 - 70.00)" if kind == "cv" else "1.00 (1.00 - 1.00)") in text


def test_shorter_warm_ups_are_harder(tmp_path):
    cells = [cell for cell in nlp.table_5("cpu") if cell.method == ladder.SSGD]
    loaded = [write_run(tmp_path, cell, 0, 40.0, cell.x == 10) for cell in cells]
    outcomes = ladder.Outcomes(cells, loaded)
    assert cells_of(ladder.limits_table(outcomes, harder_upwards=False).splitlines()[2])[1] == "25 (not 10)"


def test_the_best_noise_is_that_of_the_highest_median(tmp_path):
    cells = cv.noise_injection("cpu")
    noisy = [cell for cell in cells if cell.method.style == "ssgd-star"]
    by_cell = {cell: [write_run(tmp_path, cell, 0, 80.0 - 5 * (cell is noisy[2]))] for cell in cells}
    assert ladder.ACCURACY.best({cell: runs for cell, runs in by_cell.items() if cell in noisy}) == noisy[2]
    assert ladder.LOSS.best({}) is None


def reproduce_(*words, cwd):
    command = [sys.executable, REPOSITORY / "benchmarks/reproduce.py", *words]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False, cwd=cwd)


def test_reproduce_lists_every_experiment_and_prints_commands(tmp_path):
    assert set(reproduce.EXPERIMENTS) <= set(reproduce_("list", cwd=tmp_path).stdout.split())
    lines = reproduce_("figure-2", "--dry-run", "--seeds", "2", cwd=tmp_path).stdout.splitlines()
    assert len(lines) == 2 * (2 + len(figure_2.NOISE_GRID))
    assert all(" -np 5 " in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_reproduce_prints_what_a_cluster_is_to_run(tmp_path):
    words = ["table-3", "--scale", "paper", "--dry-run", "--data-dir", "imagenet", "--seeds", "1"]
    done = reproduce_(*words, "--launcher", "srun -n {np}", "--", "--device", "cuda", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert len(lines) == 3 * 4 * 2
    assert all(
        line.startswith("srun -n 16 ") and "--data-dir imagenet --device cuda --output" in line for line in lines
    )


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["table-33"], "unknown table-33"),
        (["table-3"], "table-3 needs --data-dir"),
        (["table-3", "--demo", "--data-dir", "x"], "table-3 has no --demo"),
    ],
)
def test_reproduce_says_what_is_wrong(words, complaint, tmp_path):
    done = reproduce_(*words, cwd=tmp_path)
    assert done.returncode != 0
    assert complaint in done.stderr


@pytest.mark.mpi
def test_several_runs_in_one_launch_are_those_of_launches_of_their_own(tmp_path):
    common = ("--synthetic", "--max-steps", "3", "--batch-size", "40", "--log-every", "1", "--checkpoint-every", "0")
    jobs = [
        launch.Job(algo, "benchmarks/cv/train.py", 2, ("--algo", algo, *common)) for algo in ("ssgd", "dpsgd", "adpsgd")
    ]
    launcher = " ".join(launching.mpirun("{np}"))
    together = launch.run_all(jobs, launch.Place(tmp_path / "together", launcher, together=3))
    alone = launch.run_all(jobs[1:2], launch.Place(tmp_path / "alone", launcher))
    assert [run.result["algo"] for run in together] == ["ssgd", "dpsgd", "adpsgd"]
    assert together[1].result["heldout"] == alone[0].result["heldout"]
    np.testing.assert_array_equal(together[1].curve("train_loss"), alone[0].curve("train_loss"))
