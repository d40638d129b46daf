"""Directions, planes, points that are measured once, and `benchmarks/landscape.py` on runs made for it."""

from __future__ import annotations

import json
import math
import sys

import known_landscapes
import pytest
import torch
import yaml
from conftest import REPOSITORY
from known_landscapes import Quadratic, one_thread, symmetric  # noqa: F401
from torch import nn

from benchmarks import tasks
from benchmarks.cv.mnist_task import MnistTask
from benchmarks.instruments import solutions
from benchmarks.instruments.picture import Options
from benchmarks.instruments.pictures import PICTURES
from horovod_dpsgd import learners
from horovod_dpsgd.diagnostics import landscape, points
from horovod_dpsgd.diagnostics.objective import Objective
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.report import figures
from horovod_dpsgd.training import Recipe, checkpoint

SCRIPT = REPOSITORY / "benchmarks/landscape.py"


@pytest.fixture(scope="module")
def us():
    hook = sys.excepthook
    yield learners.start()
    sys.excepthook = hook


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


# Directions


def convolution():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(20, 7)).double()
    return Objective(net, lambda batch: net(batch[0]).square().mean(), [(torch.randn(2, 3, 4, 4).double(),)])


def test_every_filter_of_a_direction_is_as_long_as_that_of_the_weights():
    objective = convolution()
    w = objective.weights()
    direction = landscape.filter_normalized(objective, w, numbers())
    for name, d, p in zip(
        objective.parameters.names, objective.parameters.views(direction), objective.parameters.views(w), strict=True
    ):
        if p.dim() == 1:
            assert not d.any(), name
        else:
            torch.testing.assert_close(d.flatten(1).norm(dim=1), p.flatten(1).norm(dim=1), msg=name)
    assert float(direction @ w / (w @ w)) < 0.5


def test_a_dead_filter_stays_dead():
    objective = convolution()
    w = objective.weights()
    objective.parameters.views(w)[0][2].zero_()
    direction = landscape.filter_normalized(objective, w, numbers())
    assert not objective.parameters.views(direction)[0][2].any()
    assert direction.isfinite().all()


def test_of_a_network_whose_layers_are_rescaled_the_picture_is_the_same():
    """Scaling a ReLU layer up and the next down changes nothing but the weights' sizes."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    batch = (torch.randn(10, 6, dtype=torch.float64),)
    objective = Objective(net, lambda b: net(b[0]).square().mean(), [batch])
    losses = []
    for _ in range(2):
        w = objective.weights()
        losses.append(objective.loss(w + 0.5 * landscape.filter_normalized(objective, w, numbers(4))))
        with torch.no_grad():
            net[0].weight.mul_(10)
            net[2].weight.div_(10)
    assert losses[0] == pytest.approx(losses[1])
    assert losses[0] != pytest.approx(objective.loss(w))


def test_a_plane_goes_through_its_points_with_orthogonal_axes_of_one_length():
    one, two, three, spare = torch.randn(4, 50, generator=numbers(), dtype=torch.float64)
    for solutions_there in ([one, two, three], [one, two]):
        x, y, places = landscape.plane(solutions_there, spare)
        assert float(x @ y) == pytest.approx(0, abs=1e-9)
        assert float(x.norm()) == pytest.approx(float(y.norm()))
        for solution, (across, up) in zip(solutions_there, places, strict=True):
            torch.testing.assert_close(one + across * x + up * y, solution)
        assert places[1] == pytest.approx((1, 0))
    with pytest.raises(ValueError, match="on one line"):
        landscape.plane([one, two, (one + two) / 2], spare)
    with pytest.raises(ValueError, match="on one line"):
        landscape.plane([one, one], spare)


def test_the_loss_of_a_quadratic_on_a_plane_is_the_quadratic():
    matrix = symmetric([3.0, 2.0, 1.0, 0.5, 0.2, 0.1, -1.0])
    objective = known_landscapes.objective(Quadratic(matrix))
    w, x, y = objective.weights(), objective.gaussian(numbers(1)), objective.gaussian(numbers(2))
    for a, b in ((0.0, 0.0), (0.7, -1.3)):
        dense = known_landscapes.dense(objective.parameters, w + a * x + b * y)
        assert objective.loss(w + a * x + b * y) == pytest.approx(float(dense @ matrix @ dense / 2))


# Points


def squares(us, path, wanted, measured, setup=None):
    def measure(point):
        measured.append(point["x"])
        return {"square": point["x"] ** 2 if point["x"] < 9 else math.inf}

    return points.measure_all([{"x": x} for x in wanted], measure, path, setup or {"samples": 5}, us)


def test_points_are_measured_once_and_those_that_are_missing_later(us, tmp_path):
    path, measured = tmp_path / "deep" / "squares.jsonl", []
    assert squares(us, path, [1, 2], measured) == [{"x": 1, "square": 1}, {"x": 2, "square": 4}]
    again = squares(us, path, [3, 2, 9], measured)
    assert measured == [1, 2, 3, 9]
    assert [line["x"] for line in again] == [3, 2, 9] and math.isnan(again[2]["square"])
    head, *lines = map(json.loads, path.read_text().splitlines())
    assert head == {"setup": {"samples": 5}}
    assert [line["point"]["x"] for line in lines] == [3, 2, 9, 1]
    assert lines[2]["measured"] == {"square": None}
    assert [file.name for file in path.parent.iterdir()] == ["squares.jsonl"]


def test_an_interrupted_measurement_goes_on_with_what_any_learner_had_finished(us, tmp_path):
    path, measured = tmp_path / "squares.jsonl", []
    squares(us, path, [], measured)
    for rank, x in ((0, 4), (3, 6)):
        line = json.dumps({"point": {"x": x}, "measured": {"square": x * x}})
        path.with_name(f"{path.name}.part-{rank:03d}").write_text(f"{line}\n" + line[:20])  # the last was cut short
    assert [line["square"] for line in squares(us, path, [4, 5, 6], measured)] == [16, 25, 36]
    assert measured == [5]


def test_points_of_another_set_up_are_not_taken_for_these(us, tmp_path):
    squares(us, tmp_path / "a.jsonl", [1], [])
    with pytest.raises(UserError, match=r"a\.jsonl was measured with samples 5: give another --output"):
        squares(us, tmp_path / "a.jsonl", [1], [], {"samples": 6})


@pytest.mark.parametrize(("text", "line"), [("{no json}\n", "is damaged"), ("3\n", "holds no points")])
def test_a_file_that_is_none_of_points_is_one_line(us, tmp_path, text, line):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(UserError, match=rf"a\.jsonl {line}.*give another --output"):
        squares(us, tmp_path / "a.jsonl", [1], [])
    assert (tmp_path / "a.jsonl").read_text() == text


def test_an_output_that_cannot_be_written_is_one_line(us, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to"):
        squares(us, tmp_path / "file" / "a.jsonl", [1], [])


def test_a_file_that_is_damaged_meanwhile_is_an_error_that_all_learners_hear_of(us, tmp_path, monkeypatch):
    told, broadcast = [], learners.Learners.broadcast
    monkeypatch.setattr(learners.Learners, "broadcast", lambda us, thing: told.append(thing) or broadcast(us, thing))

    def damage(_point):
        (tmp_path / "a.jsonl").write_text("{no json}\n")
        return {"square": 1}

    with pytest.raises(UserError, match="is damaged"):
        points.measure_all([{"x": 1}], damage, tmp_path / "a.jsonl", {}, us)
    assert isinstance(told[-1], UserError)


# Pictures of runs


@pytest.fixture(scope="module")
def runs(us, tmp_path_factory):
    """Two runs of a small network on synthetic digits, with two checkpoints each, as if trained."""
    return [make_run(us, tmp_path_factory.mktemp("runs") / name, seed) for seed, name in enumerate(("one", "two"))]


def make_run(us, folder, seed, size=0.05):
    network = {"model": "mlp", "model_options": {"hidden": [6], "activation": "tanh"}}  # no kinks: it has a Hessian
    recipe = Recipe(task="mnist", synthetic=True, topology="complete", lr=0.5, batch_size=2000, max_steps=20, **network)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(recipe.text())
    torch.manual_seed(seed)
    model = MnistTask(recipe).make_model()
    for step in (10, 20):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(size * torch.randn_like(p))
        checkpoint.save(folder / "checkpoints", step, {"algorithm": {"model": model.state_dict()}}, us)
    return folder


@pytest.mark.parametrize("what", PICTURES)
def test_every_picture_is_measured_drawn_and_told(us, runs, tmp_path, what):
    scene = solutions.open_runs(runs, 100, None, None, us)
    options = Options(points=3, top=2, probes=2, lanczos_steps=10, sigma=0.05, pairs=2)
    picture = PICTURES[what](scene, options)
    wanted = picture.points()
    path = tmp_path / f"{what}.jsonl"
    measured = points.measure_all(wanted, picture.measure, path, picture.setup, us)
    assert [{key: line[key] for key in point} for point, line in zip(wanted, measured, strict=True)] == wanted
    text = picture.table(measured)
    assert "nan" not in text and len(text.splitlines()) > 2
    files = figures.save(picture.draw(measured), tmp_path / what)
    assert all(file.stat().st_size > 1000 for file in files)

    def never(point):
        raise AssertionError(f"{point} was measured before")

    assert points.measure_all(wanted, never, path, picture.setup, us) == measured


@pytest.mark.parametrize("what", PICTURES)
@pytest.mark.filterwarnings("ignore:All-NaN", "ignore:No artists", "ignore:.*no.* positive values")
def test_a_run_that_has_blown_up_has_its_pictures_too(us, runs, tmp_path, what):
    blown = make_run(us, tmp_path / "blown", 0, size=math.nan)
    scene = solutions.open_runs([runs[0], blown], 100, None, None, us)
    options = Options(points=2, top=2, probes=2, lanczos_steps=5, sigma=0.05, pairs=2)
    if what == "plane":
        with pytest.raises(UserError, match="has blown up"):
            PICTURES[what](scene, options)
        return
    picture = PICTURES[what](scene, options)
    measured = points.measure_all(picture.points(), picture.measure, tmp_path / "a.jsonl", picture.setup, us)
    assert len(picture.table(measured).splitlines()) > 2
    figures.save(picture.draw(measured), tmp_path / what)


def test_a_plane_that_is_none_is_refused_before_learners_begin(us, runs, tmp_path):
    """Some learners may have no points to find it out by, and would wait for the others."""
    same = make_run(us, tmp_path / "same", 0)
    with pytest.raises(UserError, match="is a run among these twice"):
        PICTURES["plane"](solutions.open_runs([runs[0], same], 100, None, None, us), Options())


def test_samples_are_no_more_than_asked_for_and_foreign_folders_no_checkpoints(us, runs, tmp_path):
    run = make_run(us, tmp_path / "run", 0)
    (run / "checkpoints" / "step-by-step").mkdir()
    scene = solutions.open_runs([run], 40_000, None, None, us)
    assert scene.objective.samples == 30_000  # of 60,000
    assert [manifest.step for manifest in scene.runs[0].checkpoints()] == [10, 20]


def test_numbers_of_a_solution_match_the_model_itself(us, runs):
    scene = solutions.open_runs(runs, 300, None, None, us)
    assert scene.objective.samples == 300
    measured = {}
    for what in ("contour", "line", "plane", "eigenvalues", "smoothing"):
        picture = PICTURES[what](scene, Options(points=3, top=1, probes=1, lanczos_steps=60))
        measured[what] = [point | picture.measure(point) for point in picture.points()]
    task = MnistTask(Recipe(**yaml.safe_load((runs[1] / "config.yaml").read_text())))
    model = task.make_model()
    model.load_state_dict(checkpoint.read(scene.runs[1].newest, 0)["algorithm"]["model"])
    batch = next(task.shard_batches("train", 0, 200))
    loss = task.loss(model, batch).item()
    middle = [point for point in measured["contour"] if point["run"] == "two" and point["x"] == point["y"] == 0]
    assert middle[0]["loss"] == pytest.approx(loss, rel=1e-5)
    line = scene.enter(scene.runs[0].newest), scene.enter(scene.runs[1].newest)
    halfway = next(point["loss"] for point in measured["line"] if point["x"] == 0.5)
    assert halfway == pytest.approx(scene.objective.loss(sum(line) / 2), rel=1e-6) and abs(halfway - loss) > 1e-5
    ends = {point["run"]: point for point in measured["eigenvalues"] if point["of"] == "ends"}
    assert ends["two"]["loss"] == pytest.approx(loss, rel=1e-5)
    rough = [point for point in measured["smoothing"] if point["run"] == "two"]
    assert [point["step"] for point in rough] == [10, 20]
    steepest = max(ends["two"]["top"][0], -ends["two"]["smallest"])
    assert rough[1]["smoothness"] == pytest.approx(steepest, rel=0.05)
    assert rough[1]["spread"] == 0 and "bound" not in rough[1]


def test_runs_that_share_no_landscape_are_told_apart(us, runs, tmp_path):
    other = make_run(us, tmp_path / "other", 2)
    recipe = yaml.safe_load((other / "config.yaml").read_text())
    (other / "config.yaml").write_text(yaml.safe_dump(recipe | {"model_options": {"hidden": [7]}}))
    with pytest.raises(UserError, match="one and other share no landscape: model_options"):
        solutions.open_runs([runs[0], other], 100, None, None, us)
    with pytest.raises(UserError, match="have the same name"):
        solutions.open_runs([runs[0], runs[0]], 100, None, None, us)
    with pytest.raises(UserError, match=r"holds no run: config\.yaml is missing"):
        solutions.open_runs([tmp_path], 100, None, None, us)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.yaml").write_text((runs[0] / "config.yaml").read_text())
    with pytest.raises(UserError, match="holds no checkpoint"):
        solutions.open_runs([tmp_path / "empty"], 100, None, None, us)


@pytest.mark.mpi
def test_learners_divide_the_points_and_agree_with_one(us, mpirun, runs, tmp_path):
    output = tmp_path / "out"
    words = ["--what", "contour", "--points", 3, "--samples", 100, "--output", output]
    done = mpirun(2, SCRIPT, *runs, *words)
    assert "| dpsgd, complete: two |" in done.stdout
    assert {file.name for file in output.iterdir()} == {"contour.jsonl", "contour.png", "contour.svg"}
    head, *lines = map(json.loads, (output / "contour.jsonl").read_text().splitlines())
    scene = solutions.open_runs(runs, 100, None, None, us)
    picture = PICTURES["contour"](scene, Options(points=3))
    assert head["setup"] == picture.setup
    assert [line["point"] for line in lines] == picture.points()
    for line in lines:
        assert line["measured"]["loss"] == pytest.approx(picture.measure(line["point"])["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--what", "contour", "--points", "1"], "--points 1: it must be at least 2"),
        (["--what", "contour", "--extent", "-1"], "--extent -1.0: it must be above 0, and finite"),
        (["--what", "spectrum"], "invalid choice: 'spectrum'"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, words, message):
    from benchmarks import landscape as command

    monkeypatch.setattr(sys, "argv", ["landscape.py", str(tmp_path), *words])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert message in said and len(said.splitlines()) == 1


OTHER_TASKS = {
    "speech": ("bilstm", {"layers": 1, "cells": 4, "bottleneck": None, "input": 3, "states": 5}, {"unroll": 4}),
    "novels": (
        "transformer",
        {"width": 8, "hidden": 8, "heads": 2, "layers": 1, "dropout": 0.0},
        {"block_size": 8, "vocabulary": 300},
    ),
}


@pytest.mark.parametrize("task", OTHER_TASKS)
def test_runs_of_speech_and_language_have_a_landscape_too(us, tmp_path, task):
    model, model_options, data_options = OTHER_TASKS[task]
    recipe = Recipe(
        task=task, model=model, model_options=model_options, data_options=data_options, synthetic=True, lr=0.5,
        batch_size=8, max_steps=20,
    )  # fmt: skip
    (tmp_path / "config.yaml").write_text(recipe.text())
    torch.manual_seed(0)
    network = tasks.find(task)(recipe, False).make_model()
    checkpoint.save(tmp_path / "checkpoints", 20, {"algorithm": {"model": network.state_dict()}}, us)
    scene = solutions.open_runs([tmp_path], 16, None, None, us)
    assert scene.objective.samples == 16
    w, one, other = scene.enter(scene.runs[0].newest), *(scene.objective.gaussian(numbers(seed)) for seed in (1, 2))
    product = scene.objective.hessian_vector(w, one)
    assert float(product @ other) == pytest.approx(float(scene.objective.hessian_vector(w, other) @ one), rel=1e-3)
    ahead, behind = (scene.objective.gradient(w + step * one) for step in (2e-4, -2e-4))
    assert float(((ahead - behind) / 4e-4 - product).norm()) < 0.3 * float(product.norm())  # a few ReLUs have switched


def test_a_task_that_no_benchmark_has_is_one_line():
    with pytest.raises(UserError, match=r"unknown task 'sudoku'; known: mnist, .*speech.*wikitext103"):
        tasks.find("sudoku")
