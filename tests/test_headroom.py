"""The search for the limit of stability, on ladders made up here and on a real one; and what counts as stable."""

import json
import math
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import REPOSITORY, environment
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import headroom_check
from benchmarks.experiments.launch import Loaded
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.headroom import __main__ as command
from horovod_dpsgd.headroom import probe as probes
from horovod_dpsgd.headroom import verdict
from horovod_dpsgd.headroom.judgement import end_loss, is_stable
from horovod_dpsgd.headroom.ladder import MAKERS, Recipe, Rung, ladder
from horovod_dpsgd.headroom.search import Boundary, find_boundary
from horovod_dpsgd.launching import mpirun
from horovod_dpsgd.report.runs import Run
from horovod_dpsgd.training import cli
from horovod_dpsgd.training import recipe as recipes

SEEDS = (0, 1, 2)


class Judge:
    """A ladder on which seed s is stable up to rung limits[s]; and what was asked of it."""

    def __init__(self, *limits, exceptions=()):
        self.limits, self.exceptions, self.asked = limits, set(exceptions), set()

    def __call__(self, rung, seed):
        self.asked.add((rung, seed))
        return (rung <= self.limits[seed]) != ((rung, seed) in self.exceptions)


@pytest.mark.parametrize("limit", range(-7, 7))
def test_a_sharp_limit_is_found_wherever_it_is(limit):
    judge = Judge(limit, limit, limit)
    found = find_boundary(judge, SEEDS, -6, 6)
    assert found == Boundary(limit if limit >= -6 else None, limit + 1 if limit < 6 else None)
    assert len({rung for rung, _ in judge.asked}) <= 6  # of 13


def test_where_seeds_disagree_the_limit_is_a_range():
    assert find_boundary(Judge(1, 3, 2), SEEDS, -6, 6) == Boundary(1, 4)
    assert find_boundary(Judge(3, 1, 2), SEEDS, -6, 6) == Boundary(1, 4)
    assert find_boundary(Judge(6, 0, -9), SEEDS, -6, 6) == Boundary(None, None)


def test_a_seed_that_fails_out_of_turn_widens_the_range():
    at_start = Judge(2, 2, 2, exceptions=[(0, 0)])  # where the search begins
    assert find_boundary(at_start, SEEDS, -6, 6) == Boundary(-1, 3)
    beyond = Judge(0, 0, 0, exceptions=[(1, 1), (2, 2)])  # stable where others fail
    assert find_boundary(beyond, SEEDS, -6, 6) == Boundary(0, 3)


@given(st.sets(st.tuples(st.integers(-4, 4), st.integers(0, 2))), st.integers(0, 4), st.integers(0, 4))
def test_whatever_the_outcomes_the_ends_are_what_they_are_said_to_be(stable_runs, down, up):
    """Also where stability ends more than once: no run that was made contradicts the two, and none is missing."""
    asked = {}

    def judge(rung, seed):
        assert -down <= rung <= up
        return asked.setdefault((rung, seed), (rung, seed) in stable_runs)

    found = find_boundary(judge, SEEDS, -down, up)
    low, high = -down - 1 if found.stable is None else found.stable, up + 1 if found.fails is None else found.fails
    assert low < high
    assert found.stable is None or all(asked[low, seed] for seed in SEEDS)
    assert found.fails is None or not any(asked[high, seed] for seed in SEEDS)
    assert all((rung, seed) in asked for rung in range(low + 1, high) for seed in SEEDS)
    assert all(is_good for (rung, _), is_good in asked.items() if rung < low)
    assert not any(is_good for (rung, _), is_good in asked.items() if rung > high)


# ---- what counts as stable ----


def run(losses, diverged=False, heldout=1.0, seed=0):
    """A run that logged these training losses, one every five steps; chance is ln 10."""
    metrics = [{"step": 5 * (number + 1), "train_loss": loss} for number, loss in enumerate(losses)]
    result = {
        "steps": 5 * len(losses),
        "diverged": diverged,
        "heldout": {"loss": heldout, "error_percent": 50.0},
        "seed": seed,
    }
    return Run(Path(), result | {"chance_loss": math.log(10)}, metrics)


def test_the_end_loss_is_the_median_of_the_last_fifth():
    assert end_loss(run([2.3] * 12 + [0.5, 300.0, 0.4])) == 0.5
    assert end_loss(run([2.3, 2.0, 1.5, None])) == math.inf
    assert end_loss(run([0.1] * 5, diverged=True)) == end_loss(run([0.1] * 5, heldout=None)) == math.inf


def test_a_run_that_has_learnt_nothing_is_not_stable():
    assert not is_stable(run([2.27] * 5), 0, {})
    assert is_stable(run([2.2] * 5), 0, {})


def test_a_run_is_to_learn_half_as_much_as_easier_ones_did():
    collapsed = run([2.0] * 5)
    assert not is_stable(collapsed, 0, {-1: [run([1.0] * 5)], 0: [collapsed]})
    assert not is_stable(collapsed, 0, {0: [collapsed, run([1.0] * 5)]})  # another seed
    assert is_stable(collapsed, 0, {0: [collapsed], 1: [run([1.0] * 5)]})  # slow, and no worse than that
    assert is_stable(collapsed, 0, {-1: [run([math.nan] * 5)], 0: [collapsed]})


@pytest.mark.parametrize(
    ("ssgd", "dpsgd", "answer"),
    [
        (Boundary(0, 1), Boundary(1, 2), "yes"),
        (Boundary(None, -6), Boundary(-3, -1), "yes"),
        (Boundary(0, 2), Boundary(1, 2), "perhaps"),
        (Boundary(0, 1), Boundary(0, None), "perhaps"),
        (Boundary(0, 1), Boundary(0, 1), "no"),
        (Boundary(None, None), Boundary(None, None), "no"),
        (Boundary(2, 3), Boundary(0, 1), "hurts"),
    ],
)
def test_would_dpsgd_help(ssgd, dpsgd, answer):
    assert verdict.helps(ssgd, dpsgd) == answer


def test_full_runs_that_end_otherwise_are_misses(monkeypatch, tmp_path):
    """SSGD is said to end at rung 0, DPSGD at rung 1; full runs of both end at rung 1, with an exception."""
    found = {"ssgd": Boundary(0, 1), "dpsgd": Boundary(1, 2)}
    rungs = {rung: Rung(2.0**rung, ("--lr", str(2**rung))) for rung in range(3)}
    probe = SimpleNamespace(found=found, ladder=rungs, recipe=SimpleNamespace(learners=16), seeds=[0, 1])

    def full(jobs, _place):
        lost = [job.name.startswith("dpsgd-lr2-seed1") or "-lr4-" in job.name for job in jobs]
        return Loaded([run([2.0, 1.0, 1.0, 1.0, 2.3 if bad else 1.0]) for bad in lost])

    monkeypatch.setattr(headroom_check, "look", lambda _request: probe)
    monkeypatch.setattr(headroom_check, "run_all", full)
    rows = headroom_check.check("cifar10-cpu", "DIR", tmp_path, 2)
    assert [[row[1], row[2], row[3], row[4], row[6]] for row in rows] == [
        ["1", "SSGD", "stable", "2 of 2", "hit"],
        ["2", "SSGD", "fails", "2 of 2", "miss"],
        ["4", "SSGD", "fails", "0 of 2", "hit"],
        ["1", "DPSGD", "stable", "2 of 2", "hit"],
        ["2", "DPSGD", "stable", "1 of 2", "miss"],
        ["4", "DPSGD", "fails", "0 of 2", "hit"],
    ]


# ---- ladders ----


# 19 steps an epoch, a peak rate of 0.4
OF_512 = {"batch_size": 512, "base_batch_size": 16, "base_lr": 0.0125, "warmup_from": 0.0125, "warmup_epochs": 1}


@pytest.fixture
def recipe():
    """As a pilot says it of cifar10-cpu at batch 512: 10,000 images, 16 learners, an epoch of warm-up."""
    config = recipes.load("cifar10-cpu", REPOSITORY / "benchmarks/cv/recipes", OF_512).model_dump(mode="json")
    result = {"config": config, "learners": 16, "steps": 3, "epochs": 3 / 19}
    return Recipe(SimpleNamespace(result=result))


def values(rungs):
    return [rungs[number].value for number in sorted(rungs)]


def test_ladders_end_where_their_values_do(recipe):
    assert (recipe.warmup, recipe.samples) == (19, 19 * 512)
    assert values(ladder("lr", recipe, 119, 2, 2)) == [0.1, 0.2, 0.4, 0.8, 1.6]
    assert values(ladder("batch", recipe, 119, 4, 6)) == [128, 512, 2048, 8192]  # at 32, warm-up has 304 steps
    assert values(ladder("warmup", recipe, 119, 2, 6)) == [76, 38, 19, 10, 5, 2, 1]


@pytest.mark.parametrize("over", MAKERS)
@pytest.mark.parametrize("algo", probes.ALGORITHMS)
def test_every_command_is_one_that_training_takes(over, algo, recipe, tmp_path):
    given = {"compression": "bfloat16", "decay": "cosine", "decay_epochs": [], "epochs": 8, "diagnostics": True}
    pilot = recipes.load("cifar10-cpu", REPOSITORY / "benchmarks/cv/recipes", OF_512 | given)
    (tmp_path / "pilot").mkdir()
    (tmp_path / "pilot/config.yaml").write_text(pilot.text())
    request = probes.Request("train.py", (), "mpirun -np 16", tmp_path)
    for rung in ladder(over, recipe, 119, 2, 6).values():
        words = request.probe("name", algo, rung.words, 3, 119)
        parsed = cli.parser("", "").parse_args(words[words.index("train.py") + 1 :])
        parsed.resume = None  # of the run itself, which is not there
        asked = cli._recipe(parsed, tmp_path, "")
        schedule = asked.schedule(10_000)
        assert (asked.algo, asked.seed, asked.total_steps(10_000)) == (algo, 3, 119)
        assert asked.compression == ("bfloat16" if algo == "dpsgd" else "none")
        assert schedule(118) == asked.lr and not asked.diagnostics
        value = {"lr": asked.lr, "batch": asked.batch_size, "warmup": asked.warmup_steps(10_000)}[over]
        assert value == pytest.approx(rung.value)


# ---- the command ----


@pytest.fixture
def headroom(tmp_path, monkeypatch):
    """headroom(words...): the status of `python -m horovod_dpsgd.headroom words...`, started in the test's folder."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["headroom", *map(str, words)])
        return command.main()

    return run


TRAIN = REPOSITORY / "benchmarks/cv/train.py"


def test_commands_are_printed_and_nothing_is_written(tmp_path):
    words = ["--launcher", "srun -n 4", "--dry-run", str(TRAIN), "--", "--recipe", "mnist"]
    program = [sys.executable, "-m", "horovod_dpsgd.headroom", *words]
    done = subprocess.run(program, capture_output=True, text=True, env=environment(), check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert not list(tmp_path.iterdir())
    assert [line.startswith("srun -n 4 ") for line in lines] == [True, False, True, True]
    assert f"{TRAIN} --recipe mnist --algo dpsgd --max-steps 3 " in lines[0]
    assert "--algo ssgd " in lines[2] and "--lr VALUE --seed SEED --max-steps STEPS" in lines[3]


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--seeds", "0", TRAIN], "--seeds 0"),
        (["--factor", "1", TRAIN], "--factor 1"),
        (["nothing.py"], "nothing.py: no such script"),
        (["--launcher", "no-such-launcher", TRAIN], "no-such-launcher cannot be started"),
        (["--launcher", "", TRAIN, "--", "--recipe", "nothing"], "recipe 'nothing' cannot be read"),
    ],
)
def test_what_is_wrong_is_said(words, complaint, headroom, capsys):
    with pytest.raises(SystemExit) as ended:
        headroom("--launcher", "", *words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert complaint in said and "Traceback" not in said


def test_what_a_failed_run_said_last_is_shown_as_it_is(headroom, capsys):
    with pytest.raises(SystemExit) as ended:
        headroom("--launcher", "sh -c 'echo one; echo two; exit 3'", TRAIN)
    assert ended.value.code == 2
    *said, reason = capsys.readouterr().err.splitlines()
    assert said == ["one", "two"]
    assert "a run ended with status 3; above is the end of " in reason


@pytest.mark.mpi
@pytest.mark.slow
def test_a_real_ladder(tmp_path):
    """A rate that learns, and one a million times as large; then the same command once more."""
    settings = ("model_options.hidden=[300]", "model_options.standardize=true", "momentum=0.9")
    words = [word for setting in settings for word in ("--set", setting)]
    arguments = ("--synthetic", "--lr", "0.03", "--batch-size", "400", *words)
    request = probes.Request(
        str(TRAIN), arguments, shlex.join(mpirun(2)), tmp_path / "probe", steps=40, seeds=1, factor=1e6, rungs=1
    )
    probe = probes.Probe(request)
    assert probe.found == dict.fromkeys(probes.ALGORITHMS, Boundary(0, 1))
    verdict.write(probe)
    written = json.loads((request.output / verdict.HEADROOM).read_text())
    assert written["dpsgd_helps"] == "no" and written["learners"] == 2
    assert [written["algorithms"]["dpsgd"][key] for key in ("stable", "fails")] == [0.03, 3e4]
    assert [rung["stable"] for rung in written["algorithms"]["dpsgd"]["rungs"]] == [[True], [False]]
    assert "0.03 (30000 fails) under SSGD" in written["verdict"]
    assert not list(request.output.glob("*/checkpoints"))

    again = probes.Probe(request)
    assert again.found == probe.found and not again.seconds
    with pytest.raises(UserError, match="give another --output"):
        probes.Probe(probes.Request(str(TRAIN), ("--synthetic",), request.launcher, request.output, steps=40))
