"""Learners that would not train the same thing are told so before they train."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, environment, mpi_library

from horovod_dpsgd.errors import MachineError
from horovod_dpsgd.training import Recipe, alike


def test_a_digest_tells_names_and_contents(tmp_path):
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("x = 1\n")
    two.write_text("x = 2\n")
    digests = [alike.digest(files) for files in ({"a": one}, {"b": one}, {"a": two}, {"a": one, "b": one})]
    assert len(set(digests)) == 4
    two.write_text("x = 1\n")
    assert alike.digest({"a": two}) == digests[0], "wherever the file is"


def test_own_modules_are_neither_python_s_nor_installed():
    names = alike.own_modules().keys()
    assert "test_alike" in names
    assert not names & {"json", "torch", "pytest"}


def test_other_versions_are_named(monkeypatch):
    class Two:
        hosts = ("host1", "host2")

        def gather(self, mine):
            facts, modules = mine
            return [mine, (facts | {"torch": "2.8.0", "mpi_library": None}, modules)]

    monkeypatch.setattr(alike, "versions", lambda: {"torch": "2.9.1", "numpy": "2.2", "mpi_library": "Open MPI 5.0.11"})
    with pytest.raises(MachineError) as error:
        alike.check_alike(Two(), Recipe(task="t", model="m", lr=1, batch_size=1, max_steps=1))
    words = (
        "learner 1 on host2 runs something else than learner 0 on host1, which has torch 2.9.1, there 2.8.0; mpi_lib"
    )
    assert words in str(error.value)


@pytest.mark.mpi
@pytest.mark.parametrize("change", ["library", "script"])
def test_other_code_on_one_learner_is_named_before_anything_is_trained(tmp_path, change):
    """Two learners of one job, started from two copies of the repository that differ in a comment."""
    if shutil.which("mpirun") is None:
        pytest.skip(mpi_library())
    other = tmp_path / "other"
    for folder in ("horovod_dpsgd", "benchmarks"):
        shutil.copytree(REPOSITORY / folder, other / folder, ignore=shutil.ignore_patterns("__pycache__"))
    changed = other / ("horovod_dpsgd/lamb.py" if change == "library" else "benchmarks/cv/mnist_task.py")
    changed.write_text(changed.read_text() + "# a change\n")
    run = tmp_path / "run"
    options = ["--synthetic", "--max-steps", "2", "--output", str(run)]
    parts = []
    for root in (REPOSITORY, other):
        train = str(root / "benchmarks/cv/train.py")
        parts.append(["-np", "1", "env", f"PYTHONPATH={root}", sys.executable, train, *options])
    command = ["mpirun", "--oversubscribe", *parts[0], ":", *parts[1]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment())
    assert done.returncode == 2, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(said) == 1
    code = f"code of {'horovod_dpsgd' if change == 'library' else 'benchmarks.cv.mnist_task'}"
    assert re.search(f"learner 1 on .* runs something else than learner 0 .*{code} \\w+, there \\w+", said[0]), said
    assert not run.exists()
