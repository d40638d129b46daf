"""What `benchmarks/reproduce.py` would run is possible, and what it makes of runs is what they hold."""

import csv
import functools
import io
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import REPOSITORY

from benchmarks import landscape, model_costs, reproduce
from benchmarks.asr import speech_task
from benchmarks.cv import image_task, models
from benchmarks.cv.datasets import DATA_SETS
from benchmarks.experiments import asr, cifar10, cv, figure_2, launch, mnist_adpsgd, mnist_recipes, nlp, tables
from benchmarks.experiments.cells import SSGD
from benchmarks.nlp import language_task
from benchmarks.nlp import models as language_models
from benchmarks.options import parse
from horovod_dpsgd.launching import mpirun
from horovod_dpsgd.report import runs
from horovod_dpsgd.training import cli
from horovod_dpsgd.training import recipe as recipes

SCALES = ("cpu", "paper")


EXPERIMENTS = reproduce.EXPERIMENTS
PLACE = launch.Place(Path("runs"), ("mpirun", "-np", "{np}"), ("--data-dir", "somewhere"))
LADDERS = {"cv": cv, "asr": asr, "nlp": nlp, "cifar10": cifar10}


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_command_is_one_that_the_script_takes(name, scale, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    everyone = EXPERIMENTS[name].jobs(scale, [0, 1])
    assert everyone and len({job.name for job in everyone}) == len(everyone)
    jobs = EXPERIMENTS[name].jobs(scale, [0])  # others differ in the seed alone
    for job in jobs:
        if job.script == "benchmarks/landscape.py":
            check_landscape(job, jobs)
        elif job.script == "benchmarks/model_costs.py":
            given = model_costs.parser().parse_args(job.words(PLACE))
            assert (given.output, given.scale) == (Path("runs/costs"), scale)
        else:
            check_training(job)


def check_training(job):
    given = cli.parser("", "mnist").parse_args(job.words(PLACE))
    recipe = cli._recipe(given, REPOSITORY / Path(job.script).parent / "recipes", "mnist")
    recipe.check_learners(job.learners)
    assert given.output == Path("runs") / job.name
    kind = Path(job.script).parent.name
    if kind == "asr":
        parse(speech_task.DataOptions, "data_options", recipe.data_options)
    if kind == "nlp":
        parse(language_task.DataOptions, "data_options", recipe.data_options)
        language_models.find(recipe.model, 300, 256, recipe.model_options)
    if recipe.task in DATA_SETS:
        image_task.DataOptions.of(recipe)
        check_model(recipe.task, recipe.model, json.dumps(recipe.model_options))


@functools.cache
def check_model(task, model, options):
    data_set = DATA_SETS[task]
    models.check(model, data_set.classes, image_size=data_set.size, **json.loads(options))


def check_landscape(job, jobs):
    """It comes after the runs that it is about, and leaves what it is said to."""
    given = landscape._parser().parse_args(job.words(PLACE))
    landscape._options(given)
    before = {Path("runs") / each.name for each in jobs[: jobs.index(job)]}
    assert given.folders and set(given.folders) <= before
    assert given.output == Path("runs") / job.name
    assert (job.files, job.ended) == ((f"{given.what}.jsonl",), f"{given.what}.svg")


def test_every_numbered_table_and_figure_that_the_paper_names_has_its_command():
    figures_ = {f"figure-{name}" for name in ("1a", "1b", "1c", 2, 3, 4, 9, 10)}
    tables = {f"table-{number}" for number in (1, 2, 3, 4, 5, 6, 9, 10)}
    others = {"cifar10", "noise-injection", "runtime", "lamb", "landscape", "hessian", "progression"}
    assert figures_ | tables | others <= set(reproduce.EXPERIMENTS)


def test_runs_of_the_same_name_are_the_same_run():
    """Experiments share run folders by name."""
    for scale in SCALES:
        by_name = {}
        for experiment in EXPERIMENTS.values():
            for job in experiment.jobs(scale, [0]):
                assert by_name.setdefault((experiment.runs, job.name), job) == job


def test_the_paper_s_rates_are_those_of_its_tables():
    """Section 4.1: AlexNet at batch 8192 and 32x has 0.32; Table 1: a batch of 2048 has 8x, of 4096 16x."""
    table_1 = {(cell.net, dict(cell.row)["batch"]): cell.x for cell in cv.table_1("paper")}
    assert [table_1[cv.ALEXNET, batch] for batch in ("256", "2048", "4096", "8192")] == [1, 8, 16, 32]
    given = cli.parser("", "mnist").parse_args(list(cv.table_3("paper")[0].job(0).arguments))
    recipe = recipes.load(given.recipe, REPOSITORY / "benchmarks/cv/recipes", {"lr_scale": given.lr_scale})
    assert (recipe.lr, recipe.batch_size, recipe.warmup_from) == (pytest.approx(0.32), 8192, 0.01)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", ["layer-norm-init", "mixed-moments"])
def test_language_ablations_change_one_key_of_runs_that_table_5_has(name, scale):
    shared = {job.name for job in nlp.EXPERIMENTS["table-5"].jobs(scale, [0])}
    jobs = nlp.EXPERIMENTS[name].jobs(scale, [0])
    own = [job for job in jobs if job.name not in shared]
    assert len(own) == len(jobs) / 2
    for job in own:
        given = cli.parser("", "").parse_args(list(job.arguments))
        changed = cli._recipe(given, REPOSITORY / "benchmarks/nlp/recipes", "").model_dump()
        given.set = []
        plain = cli._recipe(given, REPOSITORY / "benchmarks/nlp/recipes", "").model_dump()
        other = {"ones": "normal", "normal": "ones"}[plain["model_options"]["layer_norm_init"]]
        gains = {"model_options": plain["model_options"] | {"layer_norm_init": other}}
        expected = gains if name == "layer-norm-init" else {"mix_moments": True}
        assert {key: value for key, value in changed.items() if plain[key] != value} == expected


def write_run(folder, cell, seed, error, diverged=False):
    job = cell.job(seed)
    config = cli.recipe_of(job.arguments, (REPOSITORY / job.script).parent / "recipes").model_dump(mode="json")
    folder = folder / job.name
    folder.mkdir(parents=True)
    algo = "dpsgd" if cell.method.style.startswith("dpsgd") else cell.method.style.removesuffix("-lamb")
    result = {
        "algo": algo, "topology": "matching" if algo == "dpsgd" else None, "learners": cell.learners, "seed": seed,
        "global_batch": 512, "lr": 0.0125 * cell.x, "data": "CIFAR-10", "chance_loss": math.log(10),
        "heldout": {"loss": None if error is None else 1.0, "error_percent": error}, "diverged": diverged,
        "optimizer": "sgd", "git": "abc", "versions": {"torch": "2"}, "config": config,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    lines = [{"step": step, "heldout_error_percent": 90 - step, "heldout_loss": 2 - step / 20} for step in (10, 20)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return runs.load(folder)


def cells_of(line):
    return [cell.strip() for cell in line.strip("| ").split("|")]


@pytest.fixture
def outcomes(tmp_path):
    """SSGD collapses from 16x on, in one seed of two there; DPSGD nowhere; 4x and 64x were never run."""
    cells = cv.table_3("cpu")
    loaded = []
    for cell in cells:
        if cell.net == cv.PLAIN and 4 < cell.x <= 32:
            for seed in (0, 1):
                lost = cell.method == SSGD and cell.x >= 16 and (seed == 0 or cell.x == 32)
                loaded.append(write_run(tmp_path, cell, seed, None if lost else 40.0 + seed, lost))
    return tables.Outcomes(cells, loaded)


def test_the_table_shows_medians_ranges_and_collapses(outcomes):
    rows = [cells_of(line) for line in tables.results_table(outcomes, tables.ACCURACY).splitlines()]
    assert rows[0] == ["network", "batch", "rate", "alpha", "SSGD", "DPSGD"]
    by_rate = {row[2]: row[3:] for row in rows[2:] if row[0] == cv.PLAIN.label}
    assert by_rate["32x"] == ["0.4", "10.00 (10.00 - 10.00), 2 of 2 collapsed", "59.50 (59.00 - 60.00)"]
    assert by_rate["16x"] == ["0.2", "34.50 (10.00 - 59.00), 1 of 2 collapsed", "59.50 (59.00 - 60.00)"]
    assert by_rate["4x"] == ["-", "-", "-"]


def test_the_largest_stable_rate_is_below_the_first_collapse(tmp_path):
    cells = cv.table_3("cpu")
    of_plain = [cell for cell in cells if cell.net == cv.PLAIN and cell.x <= 32]
    loaded = [write_run(tmp_path, cell, 0, 40.0, cell.method == SSGD and cell.x == 16) for cell in of_plain]
    rows = [
        cells_of(line) for line in tables.limits_table(tables.Outcomes(of_plain, loaded), tables.ACCURACY).splitlines()
    ]
    assert rows[2:] == [[cv.PLAIN.label, "8x (not 16x)", "32x, the last tried"]]  # though 32x did not collapse


def test_a_run_that_learns_little_has_failed_too(tmp_path):
    """Accuracy 60 % at best, 10 % by guessing: less than 35 % is less than half of the way."""
    cells = [cell for cell in cv.table_3("cpu") if cell.net == cv.PLAIN]
    errors = {8: 40.0, 16: 64.0, 32: 66.0}
    loaded = [write_run(tmp_path, cell, 0, errors.get(cell.x, 50.0)) for cell in cells if cell.method == SSGD]
    row = cells_of(tables.limits_table(tables.Outcomes(cells, loaded), tables.ACCURACY).splitlines()[2])
    assert row == [cv.PLAIN.label, "16x (not 32x)", "-"]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in LADDERS for name in LADDERS[kind].EXPERIMENTS])
def test_reports_are_made_of_whatever_runs_there_are(kind, name, tmp_path):
    of = {"figure-9": "table-1", "figure-10": "table-2"}.get(name, name)  # whose runs they show
    cells = getattr(LADDERS[kind], of.replace("-", "_"))("cpu")
    loaded = [write_run(tmp_path, cell, seed, 30.0 + seed) for cell in cells for seed in (0, 1)]
    text = LADDERS[kind].EXPERIMENTS[name].report("cpu", launch.Loaded(loaded), tmp_path)
    drawn = re.findall(r"!\[.*\]\((.*)\)", text)
    assert drawn and all((tmp_path / file).stat().st_size > 5000 for file in drawn)
    assert ("69.50 (69.00 - 70.00)" if kind in ("cv", "cifar10") else "1.00 (1.00 - 1.00)") in text


@pytest.mark.parametrize(
    ("lines", "number", "some"),
    [
        (
            cv.EXPERIMENTS["table-1"].paper,
            3 * 7,
            {"network": "AlexNet", "batch": "256", "rate": "1x", "method": "SSGD"},
        ),
        (
            cv.EXPERIMENTS["table-3"].paper,
            3 * 8,
            {"network": "VGG11", "batch": "8192", "rate": "16x", "method": "DPSGD"},
        ),
        (asr.EXPERIMENTS["table-2"].paper, 2 * 6, {"network": "SWB-2000", "batch": "4096", "method": "DPSGD"}),
        (asr.EXPERIMENTS["table-4"].paper, 8 + 2 * 8, {"network": "SWB-300", "batch": "8192", "lr": "0.8"}),
        (nlp.EXPERIMENTS["table-5"].paper, 2 * 6, {"warm-up": "75", "method": "DPSGD"}),
        (figure_2.FIGURE_2.paper, 3, {"algo": "ssgd-star"}),
    ],
)
def test_the_paper_s_numbers_are_lines_too(lines, number, some):
    assert len(lines) == number
    found = [line for line in lines if all(line.get(key) == value for key, value in some.items())]
    numbers = {tuple(some.values()): [line.get("heldout_loss", line.get("heldout_error_percent")) for line in found]}
    assert numbers[tuple(some.values())] == {
        "AlexNet": [43.69], "VGG11": [37.954], "SWB-2000": [1.47], "SWB-300": [10.37, 1.80], "75": [3.06],
        "ssgd-star": ["5.7"],
    }[next(iter(some.values()))]  # fmt: skip


def test_the_csv_has_a_line_for_each_run_and_each_number_of_the_paper_s(outcomes):
    loaded = [run for runs in outcomes.runs.values() for run in runs]
    experiment = cv.EXPERIMENTS["table-3"]
    lines = list(csv.DictReader(io.StringIO(experiment.csv("cpu", loaded))))
    assert len(lines) == len(loaded) + len(experiment.paper) == 12 + 24
    lost = next(line for line in lines if line["source"] == loaded[0].folder.name)
    assert list(lost)[:5] == ["source", "network", "batch", "rate", "method"]
    assert [lost[key] for key in ("network", "batch", "rate", "method", "seed", "learners", "diverged")] == [
        "VGG11, narrow", "1024", "32x", "SSGD", "0", "16", "True",
    ]  # fmt: skip
    assert lost["heldout_loss"] == lost["heldout_error_percent"] == ""
    held = next(line for line in lines if line["source"] == loaded[-1].folder.name)
    assert (held["heldout_error_percent"], held["lr"], held["steps"]) == ("41.0", "0.1", "")


def test_reproduce_writes_the_table_and_the_csv_of_runs_that_were_kept(tmp_path, monkeypatch):
    cells = cv.table_3("cpu")
    for cell in cells:
        write_run(tmp_path / "kept", cell, 0, 40.0)
    words = ["table-3", "--seeds", "1", "--data-dir", "DIR", "--keep", str(tmp_path / "kept")]
    words += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
    reproduce.main()
    assert "| VGG11, narrow    | 1024  | 32x  | 0.4   | 60.00 | 60.00 |" in (tmp_path / "table-3.md").read_text()
    lines = list(csv.DictReader((tmp_path / "table-3.csv").open()))
    assert len([line for line in lines if line["source"] != "paper" and line["seed"] == "0"]) == len(cells)


def test_a_report_can_be_made_of_what_has_been_run_so_far(tmp_path, monkeypatch, capsys):
    words = ["table-3", "--seeds", "2", "--report-only", "--keep", str(tmp_path / "kept"), "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *words, "--runs", str(tmp_path / "runs")])
    with pytest.raises(SystemExit):
        reproduce.main()
    assert re.search(r"no run of table-3 has a result in .*kept", capsys.readouterr().err)
    write_run(tmp_path / "kept", cv.table_3("cpu")[0], 1, 40.0)
    reproduce.main()
    text = (tmp_path / "table-3.md").read_text()
    rows = [cells_of(line) for line in text.splitlines()]
    assert ["VGG11, narrow", "1024", "64x", "0.8", "60.00", "-"] in rows
    assert ["VGG11, narrow", "1024", "32x", "-", "-", "-"] in rows
    # what a reader is told to run makes the runs as well
    assert "Command: `python benchmarks/reproduce.py table-3 --seeds 2 --keep " in text and "--report-only" not in text


@pytest.mark.parametrize("name", ["mnist-recipes", "mnist-adpsgd"])
def test_lines_of_a_csv_are_called_as_those_of_the_table(name, tmp_path):
    experiment = reproduce.EXPERIMENTS[name]
    given = {"algo": "dpsgd", "topology": None, "config": {"noise_std": 0}, "model": "mlp"}
    called = [experiment.about("cpu", runs.Run(tmp_path / job.name, given, [])) for job in experiment.jobs("cpu", [0])]
    kinds = mnist_recipes.VARIANTS if name == "mnist-recipes" else mnist_adpsgd.KINDS
    assert list(dict.fromkeys(line.get("recipe", line["method"]) for line in called)) == list(kinds)


def test_shorter_warm_ups_are_harder(tmp_path):
    cells = [cell for cell in nlp.table_5("cpu") if cell.method == SSGD]
    loaded = [write_run(tmp_path, cell, 0, 40.0, cell.x == 10) for cell in cells]
    outcomes = tables.Outcomes(cells, loaded)
    assert (
        cells_of(tables.limits_table(outcomes, tables.LOSS, harder_upwards=False).splitlines()[2])[1] == "25 (not 10)"
    )


def test_the_best_noise_is_that_of_the_highest_median(tmp_path):
    cells = cv.noise_injection("cpu")
    noisy = [cell for cell in cells if cell.method.style == "ssgd-star"]
    by_cell = {cell: [write_run(tmp_path, cell, 0, 80.0 - 5 * (cell is noisy[2]))] for cell in cells}
    assert tables.ACCURACY.best({cell: runs for cell, runs in by_cell.items() if cell in noisy}) == noisy[2]
    assert tables.LOSS.best({}) is None


@pytest.fixture
def reproduced(tmp_path, monkeypatch, capsys):
    """reproduced(words...): what `reproduce.py words...` prints, started in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *words])
        reproduce.main()
        return capsys.readouterr().out

    return run


def test_reproduce_lists_every_experiment_and_prints_commands(reproduced, tmp_path):
    listed = reproduced("list").splitlines()
    assert set(reproduce.EXPERIMENTS) <= {line.split(" ")[0] for line in listed}
    assert max(map(len, listed)) <= 120
    script = [sys.executable, str(REPOSITORY / "benchmarks/reproduce.py"), "list"]
    done = subprocess.run(script, capture_output=True, text=True, check=True, cwd=tmp_path)  # with no PYTHONPATH
    assert done.stdout.splitlines() == listed
    (line,) = (line for line in listed if line.startswith("table-3 "))
    assert line.split()[3:6] == [str(len(cv.table_3("cpu"))), "/", "24"]
    (line,) = (line for line in listed if line.startswith("figure-2 "))
    assert "  figure-2  " in line  # where its result is
    lines = reproduced("figure-2", "--dry-run", "--seeds", "2").splitlines()
    assert len(lines) == 2 * (2 + len(figure_2.NOISE_GRID))
    assert all(" -np 5 " in line for line in lines)
    assert not list(tmp_path.iterdir())


def test_reproduce_prints_what_a_cluster_is_to_run(reproduced):
    words = ["table-3", "--scale", "paper", "--dry-run", "--data-dir", "imagenet", "--seeds", "1"]
    lines = reproduced(*words, "--launcher", "srun -n {np}", "--", "--device", "cuda").splitlines()
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
        (["figure-2", "table-3"], "table-3 needs --data-dir"),  # and figure-2 is not begun
        (["table-2"], "what it may hold: benchmarks/asr/README.md"),
        (["figure-2", "--seeds", "0"], "argument --seeds: '0'"),
        (["figure-2", "--launcher", "srun 'x"], "--launcher srun 'x: No closing quotation"),
    ],
)
def test_reproduce_says_what_is_wrong(words, complaint, reproduced, capsys):
    with pytest.raises(SystemExit) as ended:
        reproduced(*words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said and said.count("\n") == 1


@pytest.mark.mpi
def test_several_runs_in_one_launch_are_those_of_launches_of_their_own(tmp_path):
    common = (
        "--recipe",
        "mnist",
        "--synthetic",
        "--max-steps",
        "3",
        "--batch-size",
        "40",
        "--log-every",
        "1",
        "--checkpoint-every",
        "0",
    )
    jobs = [
        launch.Job(algo, "benchmarks/cv/train.py", 2, ("--algo", algo, *common)) for algo in ("ssgd", "dpsgd", "adpsgd")
    ]
    launcher = tuple(mpirun("{np}"))
    together = launch.run_all(jobs, launch.Place(tmp_path / "together", launcher, together=3)).runs
    alone = launch.run_all(jobs[1:2], launch.Place(tmp_path / "alone", launcher)).runs
    assert [run.result["algo"] for run in together] == ["ssgd", "dpsgd", "adpsgd"]
    assert together[1].result["heldout"] == alone[0].result["heldout"]
    np.testing.assert_array_equal(together[1].curve("train_loss"), alone[0].curve("train_loss"))
