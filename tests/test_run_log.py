"""A run's folder, read back with what its readers would use: json, TensorBoard, the recipe loader."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.run_log import RunLog, SilentRunLog

RECIPE = Recipe(task="mnist", model="mlp", lr=0.5, batch_size=100, max_steps=40, data_dir="/data", betas=(0.8, 0.9))


def write(folder, steps, done=0, **more):
    """A run of 40 steps that logs at `steps`, the first `done` of them already made by an earlier one."""
    log = RunLog(folder, RECIPE, done, 40)
    for step in steps:
        log.metrics(step, {"train_loss": step / 8} | more, advanced=10)
    log.close()


def strict_json(text):
    """What a parser gives that knows JSON and nothing else."""

    def refuse(word):
        raise ValueError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def lines(folder):
    return [strict_json(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def scalars(folder, name):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_metrics_are_the_numbers_given(tmp_path):
    write(tmp_path, [10, 20], noise=1e-30)
    assert lines(tmp_path) == [
        {"step": 10, "train_loss": 1.25, "noise": 1e-30},
        {"step": 20, "train_loss": 2.5, "noise": 1e-30},
    ]


def test_a_line_is_on_disk_before_the_run_ends(tmp_path):
    log = RunLog(tmp_path, RECIPE, 0, 40)
    log.metrics(10, {"train_loss": 1.25}, advanced=10)
    assert lines(tmp_path) == [{"step": 10, "train_loss": 1.25}]
    log.close()


def test_tensorboard_holds_the_same_numbers(tmp_path):
    write(tmp_path, [10, 20, 30])
    assert scalars(tmp_path, "train_loss") == [(line["step"], line["train_loss"]) for line in lines(tmp_path)]


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_json_has_no_number_for_is_null(tmp_path, number):
    log = RunLog(tmp_path, RECIPE, 0, 40)
    log.metrics(10, {"train_loss": number, "lr": 0.5}, advanced=10)
    log.result({"heldout": {"loss": number, "error_percent": 90.0}, "by_learner": [1.0, number], "diverged": True})
    log.close()
    assert lines(tmp_path) == [{"step": 10, "train_loss": None, "lr": 0.5}]
    assert strict_json((tmp_path / "result.json").read_text()) == {
        "heldout": {"loss": None, "error_percent": 90.0},
        "by_learner": [1.0, None],
        "diverged": True,
    }


def test_a_resumed_run_drops_what_comes_after_its_checkpoint(tmp_path):
    write(tmp_path, [10, 20, 30])
    write(tmp_path, [30, 40], done=20)
    whole = tmp_path / "in one go"
    whole.mkdir()
    write(whole, [10, 20, 30, 40])
    assert (tmp_path / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()


def test_a_run_resumed_at_its_start_begins_anew(tmp_path):
    write(tmp_path, [10, 20])
    write(tmp_path, [10], done=0)
    assert [line["step"] for line in lines(tmp_path)] == [10]


def test_tensorboard_of_a_resumed_run_holds_what_metrics_hold(tmp_path):
    write(tmp_path, [10, 20, 30])
    write(tmp_path, [30, 40], done=20)
    assert sorted(scalars(tmp_path, "train_loss")) == [(line["step"], line["train_loss"]) for line in lines(tmp_path)]


def test_a_line_cut_short_by_a_crash_does_not_stop_a_resumed_run(tmp_path):
    write(tmp_path, [10, 20])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 30, "train_l')
    write(tmp_path, [30], done=20)
    assert [line["step"] for line in lines(tmp_path)] == [10, 20, 30]


def test_config_reloads_as_the_same_recipe(tmp_path):
    write(tmp_path, [])
    assert recipes.load(str(tmp_path / "config.yaml"), Path("/nowhere"), {}) == RECIPE


def test_result_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    log = RunLog(tmp_path, RECIPE, 0, 40)
    log.result({"steps": 10})

    def full_disk(path, text, **options):
        path.open("w").write(text[: len(text) // 2])
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full_disk)
        with pytest.raises(OSError, match="No space"):
            log.result({"steps": 20})
    assert strict_json((tmp_path / "result.json").read_text()) == {"steps": 10}
    log.result({"steps": 30})
    assert strict_json((tmp_path / "result.json").read_text()) == {"steps": 30}
    assert not list(tmp_path.glob("*result*partial*")) and len(list(tmp_path.glob("*result*"))) == 1
    log.close()


def test_the_bar_shows_what_was_done_before_and_now(tmp_path):
    log = RunLog(tmp_path, RECIPE, 20, 40)
    assert (log._bar.n, log._bar.total) == (20, 40)
    log.metrics(30, {"train_loss": 1.0}, advanced=10)
    log.metrics(30, {"heldout_loss": 1.0})
    assert log._bar.n == 30
    log.close()


def test_the_silent_log_answers_to_the_same_calls_and_writes_nothing(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)

    def calls(kind):
        public = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.signature(call) for name, call in public if not name.startswith("_")}

    assert calls(SilentRunLog) == calls(RunLog)
    silent = SilentRunLog()
    silent.metrics(1, {"train_loss": 1.0}, advanced=1)
    silent.say("a line")
    silent.result({})
    silent.close()
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")
