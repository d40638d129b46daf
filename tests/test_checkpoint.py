"""Checkpoints: whole or not there, checked before they are used, and enough to go on bit for bit."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, environment, mpi_library

from horovod_dpsgd import launching
from horovod_dpsgd.errors import DataError, UserError
from horovod_dpsgd.export import save
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.checkpoint import CheckpointError, Manifest

TRAIN = REPOSITORY / "benchmarks/cv/train.py"
FAULTY = REPOSITORY / "benchmarks/reliability/faulty_train.py"
SHORT = ["--synthetic", "--batch-size", 300, "--log-every", 4]


class Alone:
    """The learners of a job of one."""

    rank, size = 0, 1

    def barrier(self, what: str = "") -> None: ...

    def gather(self, thing):
        return [thing]

    def broadcast(self, thing, root=0):
        return thing


def state(number: float) -> dict:
    return {"algorithm": {"model": {"w": torch.full((3,), number)}, "optimizer": {"state": {}}}, "seconds": 1.0}


def written(folder: Path, *steps: int, keep: int = 0) -> list[str]:
    for step in steps:
        checkpoint.save(folder, step, state(step), Alone(), keep)
    return sorted(path.name for path in folder.iterdir())


def test_what_was_saved_is_loaded(tmp_path):
    torch.manual_seed(3)
    written(tmp_path, 5)
    drawn = torch.rand(4)
    manifest = checkpoint.newest(tmp_path, pytest.fail)
    loaded = checkpoint.load(manifest, Alone())
    assert (manifest.step, manifest.learners) == (5, 1)
    assert torch.equal(loaded["algorithm"]["model"]["w"], torch.full((3,), 5.0))
    assert torch.equal(torch.rand(4), drawn), "the random state is restored too"


def test_only_the_newest_are_kept(tmp_path):
    assert written(tmp_path, 1, 2, 3, 10, keep=2) == ["step-00000003", "step-00000010"]
    assert written(tmp_path, 11, 12) == [f"step-{step:08d}" for step in (3, 10, 11, 12)], "0 keeps all"


def test_the_same_step_can_be_saved_again(tmp_path):
    written(tmp_path, 4)
    checkpoint.save(tmp_path, 4, state(7.0), Alone())
    manifest = checkpoint.newest(tmp_path, pytest.fail)
    assert float(checkpoint.load(manifest, Alone())["algorithm"]["model"]["w"][0]) == 7.0


def truncate(folder: Path) -> None:
    file = folder / "learner-000.pt"
    os.truncate(file, file.stat().st_size // 2)


def flip(folder: Path) -> None:
    content = bytearray((folder / "learner-000.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "learner-000.pt").write_bytes(content)


def lose_a_file(folder: Path) -> None:
    (folder / "learner-000.pt").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def forget_a_learner(folder: Path) -> None:
    about = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(about | {"learners": 2}))


def scribble(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1, 2")


DAMAGE = {
    truncate: r"learner-000.pt has \d+ bytes and not \d+",
    flip: "another SHA-256",
    lose_a_file: "learner-000.pt: No such file",
    lose_the_manifest: "manifest.json cannot be read",
    forget_a_learner: "does not name the files of 2 learners",
    scribble: "manifest.json cannot be read",
}


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_passed_over_with_a_line(tmp_path, damage):
    written(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    said: list[str] = []
    assert checkpoint.newest(tmp_path, said.append).step == 1
    assert len(said) == 1
    assert "step-00000002 is damaged and passed over" in said[0] and re.search(DAMAGE[damage], said[0])
    damage(tmp_path / "step-00000001")
    with pytest.raises(DataError, match="none of the 2 checkpoints"):
        checkpoint.newest(tmp_path, said.append)


def test_damaged_checkpoints_beyond_do_not_count_among_those_kept(tmp_path):
    written(tmp_path, 1, 2, 3)
    truncate(tmp_path / "step-00000003")
    (tmp_path / "step-00000001-best").mkdir()  # a user's own
    assert checkpoint.newest(tmp_path, [].append).step == 2
    assert written(tmp_path, 2, keep=1) == ["step-00000001-best", "step-00000002", "step-00000003"]
    assert checkpoint.newest(tmp_path, [].append).step == 2
    written(tmp_path, 3, keep=1)
    assert checkpoint.newest(tmp_path, pytest.fail).step == 3, "written anew"


def test_without_checkpoints_there_is_none(tmp_path):
    assert checkpoint.newest(tmp_path / "none", pytest.fail) is None


def test_what_a_killed_run_left_half_written_is_no_checkpoint_and_goes_away(tmp_path):
    written(tmp_path, 1)
    half = tmp_path / ".step-00000002.partial"
    half.mkdir()
    (half / "learner-000.pt").write_bytes(b"half")
    assert checkpoint.newest(tmp_path, pytest.fail).step == 1
    assert written(tmp_path, 3) == ["step-00000001", "step-00000003"]


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    written(tmp_path, 1)
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(CheckpointError, match=r"cannot write .*learner-000.pt .*No space left on device"):
        checkpoint.save(tmp_path, 2, state(2), Alone())
    assert checkpoint.newest(tmp_path, pytest.fail).step == 1


def test_the_mean_of_a_checkpoint_is_that_of_weights_and_moments(tmp_path):
    folder = tmp_path / "step-00000009"
    folder.mkdir()
    files, numbers = {}, [1.0, 4.0, 10.0]
    for rank, number in enumerate(numbers):
        moments = {0: {"step": torch.tensor(9.0), "exp_avg": torch.tensor([number, -number])}}
        model = {
            "w": torch.tensor([number]),
            "seen": torch.tensor(9),
            "half": torch.tensor([number], dtype=torch.float16),
        }
        algorithm = {
            "algorithm": "dpsgd",
            "step": 9,
            "model": model,
            "optimizer": {"state": moments, "param_groups": []},
        }
        path = folder / checkpoint.file_name(rank)
        torch.save({"algorithm": algorithm, "random": {"python": ()}, "seconds": 2.0}, path)
        files[path.name] = (path.stat().st_size, checkpoint.sha256(path))
    (folder / "manifest.json").write_text(json.dumps({"step": 9, "learners": 3, "files": files}))
    manifest = Manifest.read(folder)
    mean = checkpoint.load_mean(manifest)
    assert mean.keys() == {"algorithm", "seconds"}
    assert mean["algorithm"]["model"]["w"].item() == pytest.approx(5.0)
    assert torch.equal(checkpoint.mean_model(manifest)["w"], mean["algorithm"]["model"]["w"])
    assert mean["algorithm"]["model"]["half"].dtype == torch.float16
    assert (mean["algorithm"]["model"]["seen"].item(), mean["algorithm"]["step"]) == (9, 9)
    torch.testing.assert_close(mean["algorithm"]["optimizer"]["state"][0]["exp_avg"], torch.tensor([5.0, -5.0]))

    from safetensors.torch import load_file

    exported = checkpoint.mean_model(manifest)
    for name, read in (("m.safetensors", load_file), ("m.pt", torch.load)):
        save(exported, tmp_path / name)
        for key, value in read(tmp_path / name).items():
            assert torch.equal(value, exported[key])
    with pytest.raises(UserError, match="the suffix"):
        save(exported, tmp_path / "m.h5")
    for name in ("m.pt", "m.safetensors"):
        with pytest.raises(UserError, match="cannot write"):
            save(exported, tmp_path / "no/such/folder" / name)


def test_learners_without_state_for_a_parameter_take_no_part_in_its_mean():
    """As under AD-PSGD, where a slow learner may not have taken a step yet."""
    one, two = {"state": {}, "a": None}, {"state": {0: torch.tensor([2.0])}, "a": torch.tensor([3.0])}
    for first, second in ((one, two), (two, one)):
        assert checkpoint._moved(first, second, 0.5) == two


# Real jobs

KINDS = {
    "ssgd": ["--algo", "ssgd"],
    "ssgd-star": ["--algo", "ssgd-star", "--noise-std", 0.02],
    "dpsgd": ["--algo", "dpsgd", "--topology", "matching"],
    "dpsgd-complete": ["--algo", "dpsgd", "--topology", "complete"],
    "dpsgd-compressed": ["--algo", "dpsgd", "--topology", "ring", "--set", "compression=bfloat16"],
}


def weights(folder: Path, step: int, rank: int) -> dict:
    manifest = Manifest.read(checkpoint.folder_of(folder / "checkpoints", step))
    return checkpoint.read(manifest, rank)["algorithm"]["model"]


def assert_equal(one: Path, other: Path, step: int, learners: int) -> None:
    for rank in range(learners):
        for (name, first), second in zip(
            weights(one, step, rank).items(), weights(other, step, rank).values(), strict=True
        ):
            assert torch.equal(first, second), f"learner {rank}, {name}"


@pytest.mark.mpi
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_at_a_random_step_goes_on_bit_for_bit(mpirun, tmp_path, kind):
    step, rank = random.randrange(9, 30), random.randrange(3)
    print(f"learner {rank} is killed in step {step}")
    run = [*KINDS[kind], *SHORT, "--checkpoint-every", 8, "--max-steps", 30]
    mpirun(3, TRAIN, *run, "--output", tmp_path / "whole")
    killed = mpirun(
        3, FAULTY, *run, "--output", tmp_path / "parts", status=None, env={"FAULT": f"kill-forward:{rank}:{step}"}
    )
    assert killed.returncode != 0
    assert not (tmp_path / "parts/result.json").exists()
    resumed = mpirun(3, TRAIN, "--output", tmp_path / "parts", "--resume", "auto")
    assert f"going on after step {step // 8 * 8}" in resumed.stdout + resumed.stderr
    assert_equal(tmp_path / "whole", tmp_path / "parts", 30, 3)
    whole, parts = (json.loads((tmp_path / run / "result.json").read_text()) for run in ("whole", "parts"))
    assert whole["heldout"] == parts["heldout"]
    lines = (tmp_path / "parts/metrics.jsonl").read_text().splitlines()
    logged = [line["step"] for line in map(json.loads, lines) if "train_loss" in line]
    assert logged == sorted(set(logged)), "no step twice"


@pytest.mark.mpi
def test_resume_passes_over_a_damaged_checkpoint(mpirun, tmp_path):
    run = [*KINDS["dpsgd"], *SHORT, "--checkpoint-every", 8]
    mpirun(2, TRAIN, *run, "--max-steps", 20, "--output", tmp_path / "whole")
    mpirun(2, TRAIN, *run, "--max-steps", 16, "--output", tmp_path / "parts")
    truncate(tmp_path / "parts/checkpoints/step-00000016")
    resumed = mpirun(2, TRAIN, "--max-steps", 20, "--output", tmp_path / "parts", "--resume")
    assert "step-00000016 is damaged and passed over" in resumed.stderr
    assert "going on after step 8" in resumed.stdout + resumed.stderr
    assert_equal(tmp_path / "whole", tmp_path / "parts", 20, 2)


@pytest.mark.mpi
def test_resume_auto_starts_what_is_not_there_and_does_nothing_when_all_is_done(mpirun, tmp_path):
    run = [*KINDS["dpsgd"], *SHORT, "--max-steps", 4, "--output", tmp_path, "--resume", "auto"]
    assert "starting at step 0" in mpirun(2, TRAIN, *run).stdout
    assert "nothing is left to do" in mpirun(2, TRAIN, *run).stdout


@pytest.mark.mpi
def test_minutes_between_checkpoints_are_kept_to(mpirun, tmp_path):
    run = [*KINDS["dpsgd"], *SHORT, "--checkpoint-every", 0, "--checkpoint-minutes", 1e-4, "--keep", 0]
    mpirun(2, TRAIN, *run, "--max-steps", 60, "--output", tmp_path)
    steps = sorted(int(path.name[5:]) for path in (tmp_path / "checkpoints").iterdir())
    assert steps[-1] == 60 and len(steps) > 3, steps
    assert min(later - earlier for earlier, later in pairwise(steps[:-1])) > 1, "none twice"


@pytest.mark.mpi
def test_another_number_of_learners_goes_on_from_the_mean(mpirun, tmp_path):
    """One learner after three: its first step is plain SGD from the mean of their weights, on the whole batch."""
    run = [*KINDS["dpsgd"], *SHORT, "--lr", 0.2, "--checkpoint-every", 8, "--output", tmp_path]
    mpirun(3, TRAIN, *run, "--max-steps", 8)
    refused = mpirun(1, TRAIN, "--max-steps", 9, "--output", tmp_path, "--resume", status=2)
    assert "is of 3 learners, but there are 1: --resume-average" in refused.stderr
    alone = mpirun(1, TRAIN, "--max-steps", 9, "--output", tmp_path, "--resume", "--resume-average")
    assert "going on after step 8, from the mean of 3 learners" in alone.stdout + alone.stderr

    sys.path.insert(0, str(REPOSITORY))
    from benchmarks.cv.mnist_task import MnistTask
    from horovod_dpsgd.training import recipe as recipes
    from horovod_dpsgd.training.task import Part, Sampler

    recipe = recipes.load(str(tmp_path / "config.yaml"), tmp_path, {})
    task = MnistTask(recipe)
    model = task.make_model()
    model.load_state_dict(checkpoint.mean_model(Manifest.read(tmp_path / "checkpoints/step-00000008")))
    indices = Sampler(task.samples, 300, 1, recipe.seed).indices(Part(8, 0))
    task.loss(model, next(iter(task.train_batches([indices])))).backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.2 * p.grad
    for name, value in weights(tmp_path, 9, 0).items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-5, atol=1e-6)


@pytest.mark.mpi
@pytest.mark.parametrize("algo", ["dpsgd", "ssgd", "adpsgd"])
def test_signals_save_and_end_a_run_that_goes_on_as_if_nothing_had_been(tmp_path, algo):
    """To mpirun, which passes them on: SIGUSR1 saves, SIGUSR2 saves and ends; horovodrun becomes mpirun."""
    if "Open MPI" not in mpi_library() and "open-mpi" not in mpi_library():
        pytest.skip(f"{mpi_library()}: mpirun dies of SIGUSR2")
    run = ["--algo", algo, *map(str, SHORT), "--checkpoint-every", "0", "--slow-learner", "1:20"]
    launcher = ["horovodrun", "-np", "2", "-H", "localhost:2"] if algo == "ssgd" else launching.mpirun(2)
    job = start(launcher, *run, "--max-steps", "100000", "--output", tmp_path / "parts")
    wait_for(lambda: learners_of(tmp_path) == 2)
    time.sleep(1)
    job.send_signal(signal.SIGUSR1)  # there is nothing to save yet, and nothing happens
    metrics = tmp_path / "parts/metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_text())
    job.send_signal(signal.SIGUSR1)
    wait_for(lambda: list(tmp_path.glob("parts/checkpoints/step-*")))
    assert job.poll() is None
    job.send_signal(signal.SIGUSR2)
    out, err = job.communicate(timeout=60)
    assert job.returncode == 143, out + err
    step = int(re.search(r"interrupted by SIGUSR2 after step (\d+) of 100000", out)[1])
    assert json.loads((tmp_path / "parts/interrupted.json").read_text()) == {"step": step, "by": "SIGUSR2"}
    assert not (tmp_path / "parts/result.json").exists()
    assert checkpoint.newest(tmp_path / "parts/checkpoints", pytest.fail).step == step
    ended = start(launching.mpirun(2), *run, "--max-steps", str(step + 6), "--output", tmp_path / "parts", "--resume")
    out, err = ended.communicate(timeout=120)
    assert ended.returncode == 0, out + err
    assert not (tmp_path / "parts/interrupted.json").exists()
    assert json.loads((tmp_path / "parts/result.json").read_text())["ended"] == "completed"
    if algo != "adpsgd":  # which cannot be repeated bit for bit
        whole = start(launching.mpirun(2), *run, "--max-steps", str(step + 6), "--output", tmp_path / "whole")
        out, err = whole.communicate(timeout=120)
        assert whole.returncode == 0, out + err
        assert_equal(tmp_path / "whole", tmp_path / "parts", step + 6, 2)


def learners_of(folder: Path) -> int:
    pattern = f"^[^ ]*python [^ ]*train.py .*{folder}"
    return int(subprocess.run(["pgrep", "-fc", pattern], capture_output=True, text=True, check=False).stdout)


def start(launcher: list[str], *words: object) -> subprocess.Popen:
    command = [*launcher, sys.executable, str(TRAIN), *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=REPOSITORY
    )


def wait_for(condition, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)
