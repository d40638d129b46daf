"""The library without the training loop: what importing it starts, and the README's script."""

import re
import subprocess
import sys

import pytest
from conftest import PROGRAMS, REPOSITORY, environment


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)


def test_importing_starts_neither_mpi_nor_horovod():
    done = python(
        "import sys, horovod_dpsgd.optimizer, horovod_dpsgd.gossip, horovod_dpsgd.topology\n"
        "loaded = [m for m in ('mpi4py.MPI', 'horovod', 'yaml', 'pydantic', 'torchvision') if m in sys.modules]\n"
        "sys.exit(str(loaded) if loaded else 0)"
    )
    assert done.returncode == 0, done.stderr


def test_starting_a_job_again_needs_no_pytorch():
    """It stays in memory for as long as the job."""
    done = python("import sys, horovod_dpsgd.restart; sys.exit('torch' in sys.modules)")
    assert done.returncode == 0, done.stderr


def test_public_names_are_there():
    done = python("import horovod_dpsgd as d; assert set(d.__all__) <= set(dir(d)); [getattr(d, n) for n in d.__all__]")
    assert done.returncode == 0, done.stderr
    assert "has no attribute 'nothing'" in python("import horovod_dpsgd; horovod_dpsgd.nothing").stderr


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("nodes", "topology"),
    [("0", "matching"), ("000", "matching"), ("012", "matching"), ("011", "matching"), ("0011", "hierarchical")],
)
def test_decentralized_optimizer_in_a_script_of_ones_own(mpirun, nodes, topology):
    done = mpirun(len(nodes), PROGRAMS / "drop_in.py", "--nodes", nodes, "--topology", topology)
    assert "drop-in works" in done.stdout


@pytest.mark.mpi
def test_the_script_in_the_readme_runs(mpirun, tmp_path):
    scripts = re.findall(r"```python\n(.*?)```", (REPOSITORY / "README.md").read_text(), re.DOTALL)
    whole = [script for script in scripts if "DecentralizedOptimizer" in script and "for epoch" in script]
    assert len(whole) == 1
    (tmp_path / "train.py").write_text(whole[0])
    done = mpirun(2, tmp_path / "train.py")
    accuracy = float(re.search(r"accuracy ([\d.]+) %", done.stdout).group(1))
    assert accuracy > 90
