"""Every fault ends the whole job soon, with a reason that names the learner, and leaves the last checkpoint alone.

The faults and how they are injected: benchmarks/reliability. What is left behind is looked for in a /dev/shm and a
folder for temporary files of the job's own.
"""

import json
import math
import shutil

import pytest
from conftest import REPOSITORY, mpi_library

from benchmarks.reliability import faults
from benchmarks.reliability.faults import AT_STEP, EVERY, FAULTS, STALL_SECONDS

pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(not faults.can_make_worlds(), reason="no mount namespaces here: unshare --mount is refused"),
    pytest.mark.skipif("open-mpi" not in mpi_library().lower() and "open mpi" not in mpi_library().lower(),
                       reason=f"{mpi_library()}: the reasons expected are Open MPI's"),
]  # fmt: skip
SOON = 30.0  # seconds
SOAK = REPOSITORY / "benchmarks/reliability/soak.py"
UNDER_HOROVODRUN = [fault for fault in FAULTS if fault.kind in ("kill-exchange", "stop", "exception") or fault.disk]


def check(fault: faults.Fault, outcome: faults.Outcome) -> None:
    assert outcome.said, f"no reason is given: {outcome.output[-3000:]}"
    assert outcome.status == fault.status or (fault.status is None and outcome.status != 0), outcome.output[-3000:]
    assert not outcome.left
    if fault.kind != "none" and fault.starts:
        assert not math.isnan(outcome.seconds), "the fault did not happen"
        assert outcome.seconds < SOON
    if fault.starts and not fault.disk:
        last = AT_STEP // EVERY * EVERY
        # Under AD-PSGD learners do not keep step: the others may have done more global batches, or fewer.
        near = (last - EVERY, last, last + EVERY)
        assert outcome.intact == last or (fault.algo == faults.ADPSGD and outcome.intact in near)
    if fault.disk:
        assert outcome.intact is not None
    if not fault.starts:
        assert outcome.intact is None
        assert outcome.output.count(".py: error: ") == 1
        assert "Traceback" not in outcome.output


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_under_mpirun(tmp_path, fault):
    check(fault, faults.inject(fault, tmp_path))


@pytest.mark.parametrize("fault", UNDER_HOROVODRUN, ids=lambda fault: fault.name)
def test_under_horovodrun(tmp_path, fault):
    if shutil.which("horovodrun") is None:
        pytest.skip("no horovodrun on PATH")
    check(fault, faults.inject(fault, tmp_path, horovodrun=True))


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["dpsgd", "adpsgd"])
def test_sixteen_learners_on_few_cores_neither_stall_nor_grow(mpirun, tmp_path, algo):
    """Half a minute of what results/reliability/soak.md has twenty of."""
    mpirun(16, SOAK, "--minutes", 0.4, "--delay", 0.01, "--algo", algo, "--output", tmp_path / "soak.json", timeout=300)
    soaked = json.loads((tmp_path / "soak.json").read_text())
    assert (soaked["learners"], soaked["stalls"]) == (16, 0)
    assert soaked["steps"] >= 16 * 100


def test_stopped_learners_end_with_their_launcher(tmp_path):
    """mpirun is killed while a learner is stopped, which nothing but the kernel can end."""
    fault = next(fault for fault in FAULTS if fault.kind == "stop")
    killed = faults.inject(fault, tmp_path, kill_launcher=True)
    assert not [each for each in killed.left if each.startswith("process")]
    assert killed.seconds < STALL_SECONDS


def test_without_a_fault_the_same_job_ends_well(tmp_path):
    """Else the tests above would show nothing."""
    outcome = faults.inject(faults.Fault("none", "none", faults.DPSGD, "held-out error"), tmp_path)
    assert (outcome.status, outcome.left, outcome.intact) == (0, [], 60)
