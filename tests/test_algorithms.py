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


# Every learner's node: all on one, each on its own, and nodes of equal and of different sizes; by number of learners.
PLACEMENTS = [["0"], ["00", "01"], ["000", "012"], ["0000", "0123", "0011"], ["00000", "01101", "00122"]]
placements = pytest.mark.parametrize("placements", PLACEMENTS, ids="-".join)


@placements
def test_dpsgd_matches_equation_2(mpirun, placements):
    done = mpirun(len(placements[0]), PROGRAMS / "dpsgd_matches_reference.py", "--nodes", *placements)
    assert done.stdout.count("equal") == 18 * len(placements)


@pytest.mark.parametrize("placements", [["0"], ["000", "011"]], ids="-".join)
def test_dpsgd_mixes_moments_as_the_weights(mpirun, placements):
    done = mpirun(len(placements[0]), PROGRAMS / "moments_match_reference.py", "--nodes", *placements)
    assert done.stdout.count("equal") == 8 * len(placements)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_ssgd_matches_single_process_and_complete_dpsgd(mpirun, n):
    assert "equal" in mpirun(n, PROGRAMS / "ssgd_matches_single_process.py").stdout


@placements
def test_mixing_matches_the_matrix_and_keeps_the_mean(mpirun, placements):
    done = mpirun(len(placements[0]), PROGRAMS / "mixing_keeps_the_mean.py", "--nodes", *placements)
    assert done.stdout.count("kept") == len(placements)


@pytest.mark.parametrize("nodes", ["0", "000", "01", "0011", "00122"])
def test_bytes_are_those_of_the_matrix_and_the_nodes(mpirun, nodes):
    assert "counted" in mpirun(len(nodes), PROGRAMS / "bytes_are_counted.py", "--nodes", nodes).stdout


@placements
def test_adpsgd_keeps_the_mean_to_the_last_bit(mpirun, placements):
    done = mpirun(len(placements[0]), PROGRAMS / "adpsgd_keeps_the_mean.py", 12, 10_000, "--nodes", *placements)
    assert done.stdout.count("exact") == len(placements)


@pytest.mark.parametrize("nodes", ["000", "0011"])
def test_adpsgd_averages_long_vectors_as_a_whole(mpirun, nodes):
    """So long that two learners that averaged at once with a third would be seen."""
    done = mpirun(len(nodes), PROGRAMS / "adpsgd_keeps_the_mean.py", 12, 2_000_000, "--nodes", nodes)
    assert "exact" in done.stdout


def test_windows_may_be_larger_than_32_bits_can_say(mpirun):
    assert "right" in mpirun(2, PROGRAMS / "large_window.py").stdout


@pytest.mark.parametrize("n", [1, 4])
def test_dynamics_match_single_process(mpirun, n):
    assert "equal" in mpirun(n, PROGRAMS / "dynamics_match_single_process.py").stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "topology", "exchanges"), [(2, "matching", 1_000_000), (3, "matching", 34_000), (4, "ring", 34_000)]
)
def test_a_million_exchanges_in_place_are_never_stale(mpirun, n, topology, exchanges):
    """So short that a learner that is not waited for is several steps away."""
    assert "none torn" in mpirun(n, PROGRAMS / "no_torn_reads.py", exchanges, topology, 1031, timeout=1200).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("n", "topology"), [(2, "matching"), (3, "random-ring")])
def test_exchanges_of_32_mb_in_place_are_never_torn(mpirun, n, topology):
    """So long that a slot that is not waited for is written over while it is read."""
    assert "none torn" in mpirun(n, PROGRAMS / "no_torn_reads.py", 240, topology, 4_000_000, timeout=400).stdout


@pytest.mark.slow
@pytest.mark.parametrize("nodes", ["000", "0011", "00122"])
def test_exchanges_of_nodes_are_never_torn_or_stale(mpirun, nodes):
    arguments = [6000, "hierarchical", 10_031, "--nodes", nodes]
    assert "none torn" in mpirun(len(nodes), PROGRAMS / "no_torn_reads.py", *arguments, timeout=400).stdout


@pytest.mark.slow
@pytest.mark.parametrize(("exchanges", "numel"), [(3000, 1031), (120, 1_000_000)])
def test_exchanges_by_messages_are_never_torn_or_stale(mpirun, exchanges, numel):
    arguments = [exchanges, "random-ring", numel, "--nodes", "012"]
    assert "none torn" in mpirun(3, PROGRAMS / "no_torn_reads.py", *arguments, timeout=400).stdout
