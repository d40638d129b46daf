"""What the exchanges promise, with weights on a GPU; several learners may share one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from horovod_dpsgd.learners import use_device

PROGRAMS = Path(__file__).parent / "programs"

NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason=f"PyTorch {torch.__version__} finds no GPU")


def on_gpu(test):
    return pytest.mark.slow(NO_GPU(test))


def test_learners_of_a_host_take_its_gpus_in_turn(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    for local_rank in range(6):
        use_device(SimpleNamespace(local_rank=local_rank), "cuda")
        use_device(SimpleNamespace(local_rank=local_rank), "cpu")
    assert taken == [0, 1, 2, 3, 0, 1]


@on_gpu
@pytest.mark.parametrize("nodes", ["0000", "0011"])
@pytest.mark.parametrize("program", ["mixing_keeps_the_mean.py", "dpsgd_matches_reference.py"])
def test_weights_on_a_gpu_are_mixed_as_the_matrix_says(mpirun, program, nodes):
    mpirun(4, PROGRAMS / program, "--device", "cuda", "--nodes", nodes)


@on_gpu
def test_moments_on_a_gpu_are_mixed_as_the_matrix_says(mpirun):
    mpirun(3, PROGRAMS / "moments_match_reference.py", "--device", "cuda")


@on_gpu
def test_ssgd_on_a_gpu_is_sgd_on_the_global_batch(mpirun):
    mpirun(2, PROGRAMS / "ssgd_matches_single_process.py", "--device", "cuda")


@on_gpu
@pytest.mark.parametrize("nodes", ["000", "011"])
@pytest.mark.parametrize("topology", ["matching", "ring"])
def test_no_read_of_weights_on_a_gpu_is_torn_or_stale(mpirun, topology, nodes):
    mpirun(3, PROGRAMS / "no_torn_reads.py", 3_000, topology, 1_000_000, "--device", "cuda", "--nodes", nodes)


@on_gpu
@pytest.mark.parametrize("nodes", ["000", "011"])
def test_averages_of_weights_on_a_gpu_keep_their_sum(mpirun, nodes):
    mpirun(3, PROGRAMS / "adpsgd_keeps_the_mean.py", 12, 100_000, "--device", "cuda", "--nodes", nodes)
