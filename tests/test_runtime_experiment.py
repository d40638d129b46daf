"""Training against the clock: the commands it gives, and what it makes of the runs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from benchmarks.experiments import launch, runtime
from benchmarks.experiments.launch import Loaded, Place
from benchmarks.experiments.runtime import METHODS, Setting
from horovod_dpsgd.report import runs
from horovod_dpsgd.training.cli import recipe_of

PLACE = Place(Path("runs"), ("mpirun", "-np", "{np}"))


def write_run(folder, job, samples_per_second, losses):
    """A run of that job, as its result and its curve; losses: by the step at which they were logged."""
    recipe = recipe_of(job.arguments, REPOSITORY / "benchmarks/cv/recipes")
    topology = recipe.topology if recipe.algo != "ssgd" else None
    result = {"algo": recipe.algo, "topology": topology, "learners": job.learners, "lr": 0.2, "data": "some"}
    result |= {"global_batch": 200, "samples_per_second": samples_per_second, "diverged": False}
    result |= {"heldout": {"error_percent": 3.0, "loss": 0.1}, "exposed_communication_seconds_median": 0.0125}
    result["config"] = recipe.model_dump(mode="json")
    (folder / job.name).mkdir(parents=True)
    (folder / job.name / "result.json").write_text(json.dumps(result))
    lines = [json.dumps({"step": step, "train_loss": loss}) + "\n" for step, loss in losses.items()]
    (folder / job.name / "metrics.jsonl").write_text("".join(lines))
    return runs.load(folder / job.name)


def test_every_algorithm_runs_everywhere_and_half_of_the_learners_on_each_emulated_host():
    jobs = {job.name: job for job in runtime.jobs("cpu", [0])}
    assert len(jobs) == len(METHODS) * len(runtime.settings("cpu"))
    late = jobs["one-host-n4-adpsgd-matching-jitter-seed0"]
    assert late.arguments[-4:] == ("--jitter", "0.5", "--seed", "0")
    assert late.start(PLACE)[:3] == ["mpirun", "-np", "4"]
    words = jobs["two-hosts-1gbit-n4-dpsgd-ring-seed0"].start(PLACE)
    assert words[words.index("--rate") :][:2] == ["--rate", "1gbit"] and "host1:2,host2:2" in words
    assert "--rate" not in jobs["two-hosts-unlimited-n2-ssgd-seed0"].start(PLACE)
    # on a cluster links are what they are
    assert {(job.learners, type(job)) for job in runtime.jobs("paper", [0])} == {(16, launch.Job)}


def test_a_run_s_seconds_to_a_loss_are_its_steps_times_their_mean(tmp_path):
    curve = {10 * k: 1 / k for k in range(1, 11)}
    run = write_run(tmp_path, Setting(2).job("cpu", "ssgd", 0), 1000.0, curve)
    assert runtime.seconds_to(run, 0.25) == pytest.approx(40 * 0.2)
    assert np.isnan(runtime.seconds_to(run, 0.01))


def test_an_algorithm_is_compared_with_ssgd_of_the_same_place_and_seed(tmp_path):
    setting, speeds = Setting(4, "1gbit"), {"ssgd": (1000, 800), "dpsgd-ring": (1500, 1600, 9000)}
    jobs = {(m, seed): setting.job("cpu", m, seed) for m, of in speeds.items() for seed in range(len(of))}
    loaded = [write_run(tmp_path, job, speeds[m][seed], {50: 0.2}) for (m, seed), job in jobs.items()]
    loaded.append(write_run(tmp_path, Setting(4).job("cpu", "ssgd", 0), 1.0, {50: 0.2}))  # elsewhere
    text = runtime.report("cpu", Loaded(loaded), tmp_path)
    (row,) = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if "DPSGD, ring" in line]
    assert row[1] == "two emulated hosts, link of 1gbit"
    assert row[5:9] == ["3", "1600 (1500 - 9000)", "1.75 (1.50 - 2.00)", "6.2 (1.1 - 6.7)"]
    assert f"Not run: {len(runtime.jobs('cpu', [0])) - 3} of " in text
    assert (tmp_path / "runtime.png").exists()


def test_runs_that_this_machine_cannot_make_are_left_out_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runtime.netns, "why_not", lambda: "no namespaces here")
    started = []

    def start(command, **_):
        started.append(command)
        write_run(tmp_path / "runs", here, 1000.0, {50: 0.2})
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(launch.subprocess, "run", start)
    here, away = (setting.job("cpu", "ssgd", 0) for setting in (Setting(2), Setting(2, "200mbit")))
    found = launch.run_all([away, here], Place(tmp_path / "runs", ("start",), keep=tmp_path / "kept"))
    assert len(started) == len(found.runs) == 1
    assert f"{away.name}: left out, no namespaces here" in capsys.readouterr().out
    assert [folder.name for folder in (tmp_path / "kept").iterdir()] == [here.name]
