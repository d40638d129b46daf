"""The algorithms over real MPI, each against a reference in one process (the comparisons are in tests/programs)."""

import pytest
import torch
from conftest import PROGRAMS

pytestmark = pytest.mark.mpi


def test_buckets_hold_every_parameter_once_in_backward_order():
    ssgd = pytest.importorskip("horovod_dpsgd.algorithms.ssgd")
    parameters = [torch.zeros(size) for size in (10, 300, 5, 5, 40)]
    groups = ssgd.buckets(parameters, nbytes=4 * 50)
    assert [[p.numel() for p in group] for group in groups] == [[40, 5, 5], [300], [10]]


@pytest.mark.parametrize("apart", [False, True], ids=["in-place", "by-rget"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_dpsgd_matches_equation_2(mpirun, n, apart):
    done = mpirun(n, PROGRAMS / "dpsgd_matches_reference.py", *["--apart"] * apart)
    assert done.stdout.count("equal") == 15


@pytest.mark.parametrize("n", [1, 2, 5])
def test_ssgd_matches_single_process_and_complete_dpsgd(mpirun, n):
    assert "equal" in mpirun(n, PROGRAMS / "ssgd_matches_single_process.py").stdout


@pytest.mark.parametrize("apart", [False, True], ids=["in-place", "by-rget"])
@pytest.mark.parametrize("n", [3, 4])
def test_mixing_matches_the_matrix_and_keeps_the_mean(mpirun, n, apart):
    assert "kept" in mpirun(n, PROGRAMS / "mixing_keeps_the_mean.py", *["--apart"] * apart).stdout


@pytest.mark.parametrize("n", [1, 4])
def test_dynamics_match_single_process(mpirun, n):
    assert "equal" in mpirun(n, PROGRAMS / "dynamics_match_single_process.py").stdout


@pytest.mark.slow
@pytest.mark.parametrize(("n", "topology"), [(2, "matching"), (3, "matching"), (4, "ring")])
def test_100000_exchanges_in_place_are_never_stale(mpirun, n, topology):
    """34,000 exchanges each; so short that a learner that is not waited for is several steps away."""
    assert "none torn" in mpirun(n, PROGRAMS / "no_torn_reads.py", 34_000, topology, 1031, timeout=400).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("n", "topology"), [(2, "matching"), (3, "random-ring")])
def test_exchanges_of_32_mb_in_place_are_never_torn(mpirun, n, topology):
    """So long that a slot that is not waited for is written over while it is read."""
    assert "none torn" in mpirun(n, PROGRAMS / "no_torn_reads.py", 240, topology, 4_000_000, timeout=400).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("exchanges", "numel"), [(3000, 1031), (120, 1_000_000)])
def test_exchanges_through_rget_are_never_torn_or_stale(mpirun, exchanges, numel):
    done = mpirun(3, PROGRAMS / "no_torn_reads.py", exchanges, "random-ring", numel, "--apart", timeout=400)
    assert "none torn" in done.stdout
