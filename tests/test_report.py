"""Tables and figures from run folders made up here, with numbers known beforehand."""

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import environment

from benchmarks.experiments import dead_units, figure_2, launch
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import figures, runs, table
from horovod_dpsgd.training.cli import recipe_of


def write_run(folder, algo="dpsgd", seed=0, error=2.5, noise_std=0.0, steps=50, momentum=0.0):
    folder.mkdir(parents=True)
    result = {
        "task": "mnist", "model": "mlp", "algo": algo, "topology": "complete" if algo == "dpsgd" else None,
        "optimizer": "sgd", "learners": 5, "global_batch": 2000, "lr": 1.0, "seed": seed, "data": "MNIST",
        "heldout": {"loss": None if error is None else 0.1, "error_percent": error}, "step_seconds_median": 0.004,
        "config": {"noise_std": noise_std, "max_steps": steps, "momentum": momentum, "seed": seed},
        "diverged": error is None,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    dynamics = {"effective_lr": 0.5, "weight_variance": 0.1, "noise": 0.3, "noise_ssgd": 0.1, "noise_2": 0.2}
    lines = [{"step": 10 * i, "train_loss": 2.0 / (i + 1), **dynamics} for i in range(1, 6)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs.load(folder)


def test_runs_that_differ_in_the_seed_alone_share_a_row(tmp_path):
    loaded = [write_run(tmp_path / f"d{seed}", seed=seed, error=error) for seed, error in enumerate([2.0, 9.0, 3.0])]
    loaded += [write_run(tmp_path / "s", algo="ssgd", error=5.0)]
    lines = table.comparison(loaded).splitlines()
    assert len(lines) == 4
    assert "3.00 (2.00 - 9.00)" in lines[2]
    assert lines[2].startswith("| DPSGD, complete | 5 ")
    assert "| 5.00 " in lines[3]


def test_runs_that_differ_in_more_than_the_seed_do_not_share_a_row(tmp_path):
    loaded = [write_run(tmp_path / f"{momentum}", seed=int(momentum), momentum=momentum) for momentum in (0.0, 0.9)]
    assert len(table.comparison(loaded).splitlines()) == 4


def test_a_run_without_a_finite_loss_is_worse_than_all_others(tmp_path):
    loaded = [write_run(tmp_path / "a", error=2.0), write_run(tmp_path / "b", seed=1, error=None)]
    cells = [cell.strip() for cell in table.comparison(loaded).splitlines()[2].split("|")]
    assert cells[5:8] == ["2", "1", "lost (2.00 - 2.00)"]


@pytest.mark.parametrize(
    ("values", "cell"),
    [
        ([3.0, 1.0, 2.0], "2.00 (1.00 - 3.00)"),
        ([2.0], "2.00"),
        ([5.0, math.nan, 6.0], "6.00 (5.00 - 6.00)"),
        ([math.nan, math.inf, 6.3], "lost (6.30 - 6.30)"),
        ([math.nan], "-"),
        ([], "-"),
    ],
)
def test_medians_count_what_was_lost_as_worst(values, cell):
    assert table.median_and_range(values) == cell


def test_curve_holds_what_was_logged_and_nan_for_null(tmp_path):
    run = write_run(tmp_path / "run")
    (tmp_path / "run/metrics.jsonl").write_text('{"step": 1, "a": 3.0}\n{"step": 2, "b": 1}\n{"step": 4, "a": null}\n')
    steps, values = runs.load(run.folder).curve("a")
    np.testing.assert_array_equal(steps, [1, 4])
    np.testing.assert_array_equal(values, [3.0, np.nan])


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(UserError, match=r"holds no run that ended: result\.json"):
        runs.load(tmp_path)


def test_figure_2_takes_the_noise_with_the_lowest_median_error(tmp_path):
    loaded = [write_run(tmp_path / "d"), write_run(tmp_path / "s", algo="ssgd", error=None)]
    for std, errors in ((0.01, [9.0, None]), (0.05, [4.0, 5.0])):
        loaded += [
            write_run(tmp_path / f"n{std}-{seed}", "ssgd-star", seed, error, std) for seed, error in enumerate(errors)
        ]
    without_noise = figure_2.report("cpu", launch.Loaded(loaded[:2]), tmp_path / "out")
    assert "SSGD*" not in without_noise
    text = figure_2.report("cpu", launch.Loaded(loaded), tmp_path / "out")
    first_table, whole_grid = text.split("SSGD*, the whole grid of noise:")
    assert "SSGD* (std 0.05)" in first_table
    assert "SSGD* (std 0.01)" not in first_table
    assert "SSGD* (std 0.01)" in whole_grid
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"figure-2.png", "figure-2.svg"}


def test_figure_4_tells_noise_by_periods(tmp_path):
    rest = {"noise_ssgd": 0.5, "effective_lr": 0.5, "weight_variance": 0.0}
    noises = ((1, 3.0), (61, 4.0), (101, 6.0), (701, 1.0), (901, 2.0))
    lines = [{"step": step, "noise": noise, "noise_2": noise / 2, **rest} for step, noise in noises]
    loaded = [dataclasses.replace(write_run(tmp_path / f"d{seed}", seed=seed), metrics=lines[seed:]) for seed in (0, 2)]
    text = figure_2.report_of_noise("cpu", launch.Loaded(loaded), tmp_path)
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if "|" in line]
    header, _, noise, _, noise_2, ratio, total, rate, _ = rows
    assert header == ["quantity", "steps 1 - 60", "steps 61 - 200", "steps 201 - 500", "steps 501 - 700", "later"]
    assert noise == ["Delta_DP", "3", "5.5 (5 - 6)", "-", "-", "1.5 (1.5 - 1.5)"]  # the second run begins at step 101
    assert noise_2[2] == "2.75 (2.5 - 3)"
    assert (ratio[0], ratio[2]) == ("Delta(2) / Delta_S", "5.5 (5 - 6)")
    assert (total[0], total[5]) == ("Delta_DP / (Delta_S + Delta(2))", "1.17 (1.17 - 1.17)")
    assert rate[0] == "alpha_e / alpha" and (tmp_path / "figure-4.png").stat().st_size > 5000


def test_the_median_curve_matches_numpy_where_runs_end_early(tmp_path):
    whole = (np.array([1, 2, 3]), np.array([1.0, 2.0, 3.0]))
    short = (np.array([1, 2]), np.array([3.0, 6.0]))
    steps, median = figures._median([whole, short])
    np.testing.assert_array_equal(steps, [1, 2, 3])
    np.testing.assert_array_equal(median, [2.0, 4.0, 3.0])
    steps, _ = figures._median([whole, short, short])
    np.testing.assert_array_equal(steps, [1, 2])  # one of three is not the median of three


def test_dead_units_are_those_no_input_activates():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4), torch.nn.ReLU())
    torch.nn.init.constant_(model[0].bias, -100.0)  # the first layer is dead whatever comes, the second sees 0
    torch.nn.init.constant_(model[2].bias, 1.0)
    assert dead_units.dead_share(model, torch.rand(10, 3)) == 0.5


def test_the_command_prints_the_table_and_names_bad_folders(tmp_path):
    write_run(tmp_path / "run")

    def report(*words):
        command = [sys.executable, "-m", "horovod_dpsgd.report", *words]
        return subprocess.run(command, capture_output=True, text=True, env=environment(), check=False)

    done = report(tmp_path / "run", "--figure", tmp_path / "curves.png")
    assert done.returncode == 0
    assert "DPSGD, complete" in done.stdout
    assert (tmp_path / "curves.png").stat().st_size > 1000
    wrong = report(tmp_path / "nothing")
    assert wrong.returncode != 0
    assert len(wrong.stderr.splitlines()) == 1


def test_jobs_with_a_result_are_not_run_again_and_interrupted_ones_are_resumed(tmp_path, monkeypatch):
    started = []

    def run(command, **_):
        started.append(command)
        write_asked(Path(command[command.index("--output") + 1]))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    jobs = [job(name) for name in ("done", "kept", "new")]
    for folder in ("runs/done", "keep/kept"):
        write_asked(tmp_path / folder)
    place = launch.Place(tmp_path / "runs", ("start", "{np}", "times"), ("--log-every", "7"), tmp_path / "keep")
    loaded = launch.run_all(jobs, place)
    assert [run.folder.name for run in loaded.runs] == ["done", "kept", "new"]
    assert [name_of(command) for command in started] == ["new"]
    assert started[0][:3] == ["start", "5", "times"]
    assert started[0][-6:-2] == ["--log-every", "7", "--output", str(tmp_path / "runs/new")]
    assert started[0][-2:] == ["--resume", "auto"]
    for name in ("done", "new"):
        assert runs.load(tmp_path / "keep" / name).result == runs.load(tmp_path / "runs" / name).result


ASKED = ("--recipe", "mnist", "--lr", "1", "--max-steps", "50")


def job(name, learners=5, words=ASKED):
    return launch.Job(name, "benchmarks/cv/train.py", learners, words)


def write_asked(folder, algo="dpsgd"):
    """What a job of these words leaves."""
    write_run(folder, algo)
    config = recipe_of((*ASKED, "--algo", algo), launch.REPOSITORY / "benchmarks/cv/recipes").model_dump(mode="json")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"config": config}))


@pytest.mark.parametrize("collect", [launch.run_all, launch.those_there])
@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (job("run", words=(*ASKED, "--max-steps", "60")), "max_steps 50, now 60"),
        (job("run", words=(*ASKED, "--seed", "3")), "seed 0, now 3"),
        (job("run", learners=4), "learners 5, now 4"),
    ],
)
def test_a_run_of_other_settings_is_not_taken_for_the_one_that_is_asked_for(tmp_path, collect, other, difference):
    write_asked(tmp_path / "run")
    with pytest.raises(UserError, match=f"the run in {tmp_path}/run was made with .*{difference}: give the same"):
        collect([other], launch.Place(tmp_path, ("false",)))


@pytest.mark.parametrize("collect", [launch.run_all, launch.those_there])
@pytest.mark.parametrize(
    "more",
    [
        ("--eval-every", "9", "--data-dir", "elsewhere"),
        ("--device", "cuda"),  # of a cluster, while this machine has no GPU
        ("--set", "data_options.workers=2"),
    ],
)
def test_a_run_may_differ_in_what_shapes_no_result(tmp_path, collect, more):
    write_asked(tmp_path / "run")
    assert len(collect([job("run")], launch.Place(tmp_path, ("false",), more)).runs) == 1


def test_the_topology_of_a_recipe_is_not_that_of_ssgd(tmp_path):
    write_asked(tmp_path / "run", algo="ssgd")
    words = (*ASKED, "--algo", "ssgd", "--set", "topology=ring")
    assert len(launch.those_there([job("run", words=words)], launch.Place(tmp_path, ())).runs) == 1


def name_of(command):
    return command[command.index("--output") + 1].rsplit("/", 1)[1]


def test_a_failed_run_ends_the_queue_with_its_status(tmp_path):
    launcher = (sys.executable, "-c", "raise SystemExit(3)")
    with pytest.raises(SystemExit, match="the run first failed with status 3"):
        launch.run_all([job("first")], launch.Place(tmp_path, launcher))
