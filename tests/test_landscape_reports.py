"""What `reproduce.py` measures at the ends of runs is measured once, kept, and told as medians over seeds."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from test_experiments import cells_of

from benchmarks.experiments import figure_2, landscapes, launch
from benchmarks.experiments.measurement import of_landscape
from horovod_dpsgd.diagnostics import points
from horovod_dpsgd.diagnostics.points import Points
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report.runs import NEEDED, Run
from horovod_dpsgd.training.cli import recipe_of

RUNS = [figure_2.job(kind, 0) for kind in ("ssgd", "dpsgd")]
CONTOUR = of_landscape("mnist", "contour", 0, tuple(RUNS), 2)
JOBS = [*RUNS, CONTOUR]


# What is run


@pytest.fixture
def started(monkeypatch):
    """The commands that were started; each leaves what the real one would."""
    commands = []

    def run(command, **_):
        output = Path(command[command.index("--output") + 1])
        commands.append(output.name)
        output.mkdir(parents=True, exist_ok=True)
        if "--what" in command:
            for folder in command[command.index("--what") - len(RUNS) : command.index("--what")]:
                assert list(Path(folder, "checkpoints").glob("step-*"))
            (output / "contour.jsonl").write_text(json.dumps({"setup": {}}) + "\n")
            (output / "contour.svg").touch()
        else:
            (output / "checkpoints/step-00001500").mkdir(parents=True, exist_ok=True)
            (output / "metrics.jsonl").touch()
            (run,) = (run for run in RUNS if run.name == output.name)
            config = recipe_of(run.arguments, launch.REPOSITORY / "benchmarks/cv/recipes").model_dump(mode="json")
            result = dict.fromkeys(NEEDED) | {"config": config, "learners": run.learners}
            (output / "result.json").write_text(json.dumps(result))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(launch.subprocess, "run", run)
    return commands


def test_measurements_come_after_their_runs_and_are_kept(started, tmp_path):
    place = launch.Place(tmp_path / "runs", ("start",), keep=tmp_path / "kept")
    loaded = launch.run_all(JOBS, place)
    assert started == ["ssgd-seed0", "dpsgd-seed0", "mnist-contour-seed0"]
    assert [type(each) for each in (*loaded.runs, *loaded.measured)] == [Run, Run, Points]
    kept = {str(file.relative_to(place.keep)) for file in place.keep.glob("*/*")}
    files = {f"{job.name}/{file}" for job in RUNS for file in ("metrics.jsonl", "result.json")}
    assert kept == files | {"mnist-contour-seed0/contour.jsonl"}


def test_what_is_kept_is_enough_and_what_is_missing_needs_checkpoints_again(started, tmp_path):
    kept = tmp_path / "kept"
    launch.run_all(JOBS, launch.Place(tmp_path / "runs", ("start",), keep=kept))
    started.clear()
    elsewhere = launch.Place(tmp_path / "other", ("start",), keep=kept)
    launch.run_all(JOBS, elsewhere)
    assert started == []
    (kept / "mnist-contour-seed0/contour.jsonl").unlink()
    launch.run_all(JOBS, elsewhere)  # the runs' results are kept, their checkpoints are not
    assert started == ["ssgd-seed0", "dpsgd-seed0", "mnist-contour-seed0"]


def test_points_that_are_not_all_there_are_gone_on_with(started, tmp_path):
    place = launch.Place(tmp_path, ("start",))
    launch.run_all(JOBS, place)
    (tmp_path / "mnist-contour-seed0/contour.svg").unlink()  # as if it had been interrupted
    started.clear()
    launch.run_all(JOBS, place)
    assert started == ["mnist-contour-seed0"]


def test_what_is_measured_of_a_run_that_is_trained_anew_is_measured_anew(started, tmp_path):
    place = launch.Place(tmp_path, ("start",))
    launch.run_all(JOBS, place)
    (tmp_path / "dpsgd-seed0/result.json").unlink()
    started.clear()
    launch.run_all(RUNS, place)  # as if the queue had been interrupted behind it
    launch.run_all(JOBS, place)
    assert started == ["dpsgd-seed0", "mnist-contour-seed0"]


def test_points_are_read_back_with_their_setup(tmp_path):
    lines = [{"setup": {"samples": 5}}, {"point": {"x": 1}, "measured": {"loss": None}}]
    (tmp_path / "contour.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = points.load(tmp_path / "contour.jsonl")
    assert (read.name, read.setup) == ("contour", {"samples": 5})
    assert read.points[0]["x"] == 1 and read.points[0]["loss"] != read.points[0]["loss"]  # NaN
    with pytest.raises(UserError, match="holds no points"):
        points.load(tmp_path / "missing.jsonl")


# What is made of it


ALGORITHMS = {"ssgd": None, "ssgd-star": None, "dpsgd": "complete"}


def run_of(algo, seed):
    config = {"noise_std": 0.05 if algo == "ssgd-star" else 0.0}
    result = {
        "algo": algo, "topology": ALGORITHMS[algo], "learners": 5, "lr": 1.0, "data": "MNIST", "config": config,
        "heldout": {"loss": 0.1, "error_percent": 3.0 + seed},
    }  # fmt: skip
    measured = {"effective_lr": 0.5, "noise": 0.2, "noise_ssgd": 0.1, "noise_2": 0.1, "noise_2_hessian": 0.05}
    lines = [{"step": step} | (measured if algo == "dpsgd" else {"effective_lr": 0.9}) for step in (1, 11, 21)]
    return Run(Path(f"{algo}-seed{seed}"), result, lines)


def points_of(what, run, scale):
    """Of one run, all numbers of which grow with `scale`."""
    name = {"run": run.folder.name, "step": 1500, "checkpoint": "new"}
    if what == "contour":
        grid = [(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)]
        return [name | {"x": x, "y": y, "loss": scale * (0.1 + x * x + y * y)} for x, y in grid]
    if what == "curvature":
        grid = [(x, y) for x in (-1.0, 1.0) for y in (-1.0, 1.0)]
        return [name | {"x": x, "y": y, "negative_share": scale * 0.1} for x, y in grid]
    if what == "eigenvalues":
        end = {"loss": 0.1, "top": [10.0 * scale, 5.0], "smallest": -1.0, "negative_share": 0.1 / scale}
        return [name | {"of": "ends"} | end] + [name | {"of": "trace", "probe": i, "trace": 40 * scale} for i in (0, 1)]
    if what == "density":
        return [name | {"probe": 0, "values": [0.0, 10.0 * scale], "weights": [0.75, 0.25]}]
    smooth = {"lr": 1.0, "sigma": 0.1, "loss": 0.3, "smoothness": 8.0 * scale, "smoothed_smoothness": 2.0, "bound": 4.0}
    return [name | {"step": step} | smooth for step in (100, 200)]


def loaded(whats, kinds=ALGORITHMS, seeds=(0, 1, 2)):
    runs = [run_of(algo, seed) for seed in seeds for algo in kinds]
    measured = []
    for seed in seeds:
        of_seed = [run for run in runs if run.folder.name.endswith(f"seed{seed}")]
        for what in whats:
            found = [point for run in of_seed for point in points_of(what, run, 1 + seed)]
            stale = [point | {"checkpoint": "old", "loss": 99.0, "top": [99.0]} for point in found]  # of runs before
            measured.append(Points(what, {"samples": 2000}, [*found, *stale]))
    return launch.Loaded(runs, measured)


def report(name, seen, folder):
    text = landscapes.EXPERIMENTS[name].report("cpu", seen, folder)
    drawn = re.findall(r"!\[.*\]\((.*)\)", text)
    assert drawn and all((folder / file).stat().st_size > 5000 for file in drawn)
    return [cells_of(line) for line in text.splitlines() if line.startswith("| ")]


def test_contours_are_told_as_medians_over_seeds(tmp_path):
    header, _, *rows = report("landscape", loaded(["contour"]), tmp_path)
    assert header == ["algorithm", "runs", "held-out error %", "loss at the solution", "median loss at the rim"]
    assert [row[0] for row in rows] == ["SSGD", "SSGD* (std 0.05)", "DPSGD, complete"]
    # Of eight points at the rim four have 1.1 and four 2.1
    assert rows[2][1:] == ["3", "4.00 (3.00 - 5.00)", "0.2 (0.1 - 0.3)", "3.2 (1.6 - 4.8)"]


def test_runs_that_have_not_been_measured_yet_are_left_out(tmp_path):
    two, more = loaded(["contour"], ["ssgd", "dpsgd"]), loaded([], ["ssgd-star"])
    rows = report("landscape", launch.Loaded([*two.runs, *more.runs], two.measured), tmp_path)
    assert [row[0] for row in rows[2:]] == ["SSGD", "DPSGD, complete"]
    with pytest.raises(UserError, match="no run has been measured yet: eigenvalues, density, curvature"):
        report("hessian", two, tmp_path)


def test_a_single_seed_has_no_range(tmp_path):
    rows = report("landscape", loaded(["contour"], seeds=[0]), tmp_path)
    assert rows[2] == ["SSGD", "1", "3.00", "0.1", "1.6"]


def test_the_hessian_is_told_by_its_ends_its_trace_and_its_map(tmp_path):
    rows = report("hessian", loaded(["eigenvalues", "density", "curvature"]), tmp_path)
    assert rows[0][3:] == ["largest eigenvalue", "smallest", "abs(min/max)", "trace", "% above 0.01 of largest"]
    assert rows[2][3:] == ["20 (10 - 30)", "-1 (-1 - -1)", "0.05 (0.0333 - 0.1)", "80 (40 - 120)", "25 (25 - 25)"]
    assert rows[5][3:] == ["least abs(min/max)", "median abs(min/max)", "largest abs(min/max)"]
    assert rows[7][3:] == ["0.2 (0.1 - 0.3)"] * 3


def test_the_progression_is_told_step_by_step(tmp_path):
    told = report("progression", loaded(["smoothing"], ["ssgd", "dpsgd"]), tmp_path)
    dynamics, rows = told[:7], told[7:]
    assert dynamics[0][:4] == ["algorithm", "quantity", "steps 1 - 60", "steps 61 - 200"]
    assert dynamics[2] == ["SSGD", "alpha_e / peak alpha", "0.9 (0.9 - 0.9)", *["-"] * 4]
    assert [row[:3] for row in dynamics[4:]] == [
        ["DPSGD, complete", "Delta(2) / Delta_S", "1 (1 - 1)"],
        ["DPSGD, complete", "Delta_DP / (Delta_S + Delta(2))", "1 (1 - 1)"],
        ["DPSGD, complete", "right side of eq. 5 / Delta(2)", "0.5 (0.5 - 0.5)"],
    ]
    assert [row[:2] for row in rows[2:]] == [["SSGD", "100"], ["SSGD", "200"]] + [
        ["DPSGD, complete", step] for step in ("100", "200")
    ]
    assert rows[4][4:] == ["16 (8 - 24)", "2 (2 - 2)", "4 (4 - 4)"]
