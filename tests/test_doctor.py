"""The doctor: what it makes of what it finds, and that it finds it in real jobs."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import mpi_library

from benchmarks.two_hosts.netns import run_on_host1, why_not
from horovod_dpsgd.command_line import bytes_of
from horovod_dpsgd.doctor import __main__ as command
from horovod_dpsgd.doctor import judgement, probes
from horovod_dpsgd.doctor.judgement import Facts
from horovod_dpsgd.gossip import room
from horovod_dpsgd.launching import is_mpich

OPEN_MPI_5 = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11, repo rev: v5.0.11rc1\0"
OPEN_MPI_418 = "Open MPI v4.1.8, package: Open MPI user@localhost Distribution, ident: 4.1.8, repo rev: v4.1.8\0"
OPEN_MPI_414 = "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4, repo rev: v4.1.4, May 26, 2022\0"
MPICH = "MPICH Version:      4.3.2\nMPICH Release date: Mon Oct  6 11:14:20 AM CDT 2025\nMPICH ABI:          17:2:5\n"
MPICH_42 = "MPICH Version:      4.2.0\nMPICH Release date: Fri Feb  9 12:29:21 CST 2024\n"
INTEL = "Intel(R) MPI Library 2021.12 for Linux* OS\n"
CRAY = "MPI VERSION    : CRAY MPICH version 8.1.28.15 (ANL base 3.4a2)\nMPI BUILD INFO : Wed Nov 15 20:57 2023\n"

# Judging


@pytest.mark.parametrize(
    ("text", "family", "version"),
    [
        (OPEN_MPI_5, "Open MPI", "5.0.11"),
        (OPEN_MPI_414, "Open MPI", "4.1.4"),
        (MPICH, "MPICH", "4.3.2"),
        (INTEL, "Intel MPI", "2021.12"),
        (CRAY, "Cray MPICH", "8.1.28.15"),
        ("MVAPICH2 Version      :\t2.3.7\nMVAPICH2 Release date : x\n", "MVAPICH", "2.3.7"),
        ("Some MPI 1\nmore\n", "Some MPI 1", ""),
        ("", "unknown", ""),
    ],
)
def test_library_string_is_understood(text: str, family: str, version: str) -> None:
    assert judgement.parse_library(text) == (family, version)


@pytest.mark.parametrize(
    ("library", "nodes", "multiple", "osc", "rdma", "level"),
    [
        (OPEN_MPI_5, 2, True, None, False, "ok"),
        (OPEN_MPI_5, 2, True, "^ucx", False, "ok"),
        (OPEN_MPI_5, 2, True, "ucx", False, "FAIL"),  # no component for node-shared memory
        (OPEN_MPI_5, 1, True, "^sm", False, "FAIL"),
        (OPEN_MPI_418, 1, True, None, False, "ok"),
        (OPEN_MPI_418, 2, True, None, False, "warn"),  # DPSGD works, AD-PSGD does not
        (OPEN_MPI_418, 2, True, None, True, "ok"),  # UCX over InfiniBand
        (OPEN_MPI_418, 2, True, "sm,ucx", False, "ok"),  # the user chose: the window itself will tell
        (OPEN_MPI_418, 2, False, None, False, "ok"),
        (OPEN_MPI_414, 1, True, None, False, "warn"),  # corrupts data
        (OPEN_MPI_414, 2, True, None, False, "warn"),
        (MPICH, 2, True, None, False, "ok"),
        (MPICH, 2, True, "ucx", False, "ok"),  # Open MPI's variable means nothing to it
        (MPICH_42, 1, True, None, False, "warn"),
        (INTEL, 1, True, None, False, "warn"),
        ("", 1, True, None, False, "warn"),
    ],
)
def test_known_bad_libraries(library: str, nodes: int, multiple: bool, osc: str | None, rdma: bool, level: str) -> None:
    assert judgement.judge_library(library, nodes, multiple, osc, rdma).level == level


def test_the_window_over_nodes_is_not_tried_where_it_is_known_to_abort() -> None:
    cannot = judgement.cannot_make_world_window
    assert cannot(OPEN_MPI_418, 2, True, None, False)
    assert not cannot(OPEN_MPI_418, 1, True, None, False) and not cannot(OPEN_MPI_418, 2, True, "sm,ucx", False)
    assert not cannot(OPEN_MPI_5, 2, True, None, False) and not cannot(MPICH, 2, True, None, False)


@pytest.mark.parametrize(
    ("taken", "level"),
    [([[0, 2], [1, 3]], "ok"), ([[0, 1], [0, 1]], "warn"), ([[0, 1], [3, 4]], "warn"), ([[1, 2], [3, 4]], "warn")],
)
def test_every_number_of_the_counter_goes_to_one_learner(taken: list[list[int]], level: str) -> None:
    found = judgement.judge_counter(taken, 0.0021)
    assert found.level == level
    assert ("4 numbers, each taken by one learner, in 2.1 ms a number" in found.detail) == (level == "ok")
    assert ("no --algo adpsgd here" in found.detail) == (level == "warn")


def test_words_for_open_mpi_4_on_two_hosts() -> None:
    detail = judgement.judge_library(OPEN_MPI_418, 2, True, None, False).detail
    assert "4.1.8" in detail and "TCP" in detail and "MPI_THREAD_MULTIPLE" in detail and "Open MPI 5" in detail


@pytest.mark.parametrize(
    ("level", "nodes", "expected"), [("multiple", 2, "ok"), ("serialized", 2, "FAIL"), ("single", 1, "warn")]
)
def test_thread_level_matters_between_nodes(level: str, nodes: int, expected: str) -> None:
    assert judgement.judge_threads(level, nodes).level == expected


def on(host: str, cores: set[int], node: int = 0, gpus: int = 0, machine_cores: int = 4, **versions: str) -> Facts:
    versions = {"torch": "2.9.1", "MPI": "MPICH 4.3.2", **versions}
    return Facts(host, node, frozenset(cores), machine_cores, gpus, versions)


@pytest.mark.parametrize(
    ("environment", "n", "level"),
    [
        ({}, 1, "ok"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1, "ok"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 1, "FAIL"),  # mpirun of one library, mpi4py with another
        ({"PMI_SIZE": "2"}, 1, "FAIL"),
        ({"PMI_SIZE": "2"}, 2, "ok"),
        # mpirun under Slurm starts its daemons by srun: one a node
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "2"}, 1, "ok"),
    ],
)
def test_a_launcher_of_another_mpi_is_noticed(environment: dict[str, str], n: int, level: str) -> None:
    assert judgement.judge_launch([on("a", {0})] * n, environment).level == level


def test_learners_are_counted_by_host_and_node() -> None:
    found = judgement.judge_launch([on("a", {0}), on("a", {1}), on("b", {0}, node=1)], {})
    assert (found.level, found.detail) == ("ok", "3 on 2 hosts (a:2,b:1), 2 nodes")
    assert judgement.judge_launch([on("a", {0}), on("a", {1}, node=1)], {}).level == "warn"


@pytest.mark.parametrize(
    ("everyone", "level", "words"),
    [
        ([on("a", {0, 1, 2, 3})] * 2, "ok", "2 a learner"),
        ([on("a", {0, 1}), on("a", {2, 3})], "ok", "2 a learner"),
        ([on("a", {0}), on("a", {1})], "warn", "bound to 2 of 4 cores"),
        ([on("a", {0, 1, 2, 3})] * 5, "warn", "over-subscribed, 5 learners on 4 cores"),
        ([on("a", {0, 1, 2, 3}), *[on("b", {0, 1, 2, 3})] * 8], "warn", "0.5 a learner; b is over-subscribed"),
    ],
)
def test_cores(everyone: list[Facts], level: str, words: str) -> None:
    found = judgement.judge_cores(everyone)
    assert found.level == level and words in found.detail


def test_gpus_are_compared_with_the_learners_of_their_host() -> None:
    assert "CPU" in judgement.judge_gpus([on("a", {0})]).detail
    assert judgement.judge_gpus([on("a", {0}, gpus=2)] * 2).level == "ok"
    short = judgement.judge_gpus([on("a", {0}, gpus=2)] * 2 + [on("b", {0}, node=1, gpus=1)] * 2)
    assert (short.level, short.detail) == ("warn", "1 a host; fewer than learners on b")


def test_versions_are_compared_between_hosts() -> None:
    assert judgement.judge_versions([on("a", {0}), on("b", {0})]).level == "ok"
    torch = judgement.judge_versions([on("a", {0}), on("b", {0}, torch="2.8.0")])
    assert (torch.level, torch.detail) == ("warn", "not the same everywhere: torch is 2.9.1 on a, 2.8.0 on b")
    assert judgement.judge_versions([on("a", {0}), on("b", {0}, MPI="Open MPI 5.0.11")]).level == "FAIL"
    horovod = judgement.judge_versions([on("a", {0}), on("b", {0}, horovod="0.28.1")])
    assert "horovod is none on a, 0.28.1 on b" in horovod.detail


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7 B"), (507 * 2**20, "507 MB"), (1014 * 2**20, "0.99 GB"), (1400 * 2**40, "1400 TB")]
)
def test_sizes_for_people(count: int, text: str) -> None:
    assert judgement.human(count) == text


def test_shared_memory_holds_two_slots_a_learner() -> None:
    exactly = 2 * 98 * 2**20 * 8
    enough = judgement.judge_memory(98 * 2**20, True, 8, "/dev/shm", exactly)
    assert (enough.level, enough.detail) == ("ok", "2 slots x 98 MB x 8 = 1.53 GB a node; 1.53 GB free in /dev/shm")
    too_little = judgement.judge_memory(98 * 2**20, True, 8, "/dev/shm", exactly - 1)
    assert too_little.level == "FAIL" and "enlarge /dev/shm" in too_little.detail
    assert judgement.judge_memory(98 * 2**20, False, 8, "/dev/shm", exactly - 1).level == "warn", (
        "a size nobody asked for"
    )
    assert "enlarge" not in judgement.judge_memory(98 * 2**20, True, 1, "", 0).detail, "private memory has no folder"


def test_the_folder_behind_a_window() -> None:
    maps = (
        "7f6e508ff000-7f6e50a00000 rw-p 00000000 00:00 0 \n"
        "7fb4e93fe000-7fb4e95ff000 rw-s 00000000 00:1b 556          /dev/shm/osc_sm.vm.f4520001.0.3 (deleted)\n"
        "7fb4f0000000-7fb4f0001000 rw-s 00000000 00:1b 557          /tmp/a folder/b\n"
    )
    assert room.backing_folder(0x7FB4E93FE000, maps) == "/dev/shm"
    assert room.backing_folder(0x7FB4E95FEFFF, maps) == "/dev/shm"
    assert room.backing_folder(0x7FB4F0000800, maps) == "/tmp/a folder"
    assert room.backing_folder(0x7F6E508FF000, maps) == ""
    assert room.backing_folder(0x1, maps) == ""


@pytest.mark.parametrize(
    ("alone", "driven", "level", "words"),
    [(2.7, 0.015, "ok", "needed: yes"), (0.002, 0.002, "ok", "needed: no"), (2.7, 2.6, "warn", "does not help")],
)
def test_whether_the_progress_engine_is_needed(alone: float, driven: float, level: str, words: str) -> None:
    get, engine = judgement.judge_message(0.01, alone, driven, 3.0)
    assert get.level == engine.level == level and words in engine.detail
    assert f"{1e3 * alone:.1f} ms without" in get.detail and f"{1e3 * driven:.1f} ms with it" in get.detail


HOSTS = ["host1"] * 2 + ["host2"] * 2


def test_flags_on_one_host() -> None:
    assert judgement.flags(OPEN_MPI_5, ["vm"] * 3, 2, ["PATH"], False, False) == (
        "\nFlags to use on this cluster:\n"
        "  mpirun -np 3 -H localhost:3 --bind-to none --map-by slot python TRAIN.py\n"
        "  horovodrun -np 3 -H localhost:3 python TRAIN.py\n"
        "  srun --mpi=pmix -N 1 -n 3 --cpus-per-task=2 python TRAIN.py\n"
        "srun: only with an MPI built for Slurm, not one from PyPI; there use mpirun in the batch script."
    )


def test_flags_on_two_hosts_over_tcp() -> None:
    mpirun, horovodrun, srun, *hints = judgement.flags(OPEN_MPI_5, HOSTS, 2, ["PATH"], False, True).splitlines()[2:]
    mca = "--mca pml ob1 --mca osc ^ucx"
    where = "-np 4 -H host1:2,host2:2"
    assert mpirun == f"  mpirun {where} --bind-to none --map-by slot --allow-run-as-root {mca} -x PATH python TRAIN.py"
    assert horovodrun == f'  horovodrun {where} --mpi-args="{mca}" python TRAIN.py'
    assert srun.startswith("  OMPI_MCA_pml=ob1 OMPI_MCA_osc=^ucx srun --mpi=pmix -N 2 -n 4 ")
    assert any("btl_tcp_if_include" in line for line in hints)


def test_flags_with_rdma_leave_the_choice_to_the_library() -> None:
    assert "--mca" not in judgement.flags(OPEN_MPI_5, HOSTS, 2, [], True, False)


def test_flags_for_open_mpi_4_talk_ucx_into_tcp() -> None:
    text = judgement.flags(OPEN_MPI_418, HOSTS, 2, [], False, False)
    assert "--mca osc sm,ucx --mca opal_common_ucx_tls any --mca opal_common_ucx_devices any" in text


def test_flags_for_mpich() -> None:
    lines = judgement.flags(MPICH, HOSTS, 2, ["PATH"], False, True).splitlines()[2:]
    assert lines[0] == "  mpirun -np 4 -hosts host1:2,host2:2 python TRAIN.py"
    assert lines[2] == "  srun --mpi=pmi2 -N 2 -n 4 --cpus-per-task=2 python TRAIN.py"


def test_what_a_check_raises_is_a_finding() -> None:
    """On one of two learners; the other's work went well."""
    problem = "learner 1: Exception: MPI_ERR_WIN: invalid window"
    us = SimpleNamespace(rank=0, size=2, gather=lambda own: [own, problem])
    for level in ("FAIL", "warn"):
        (found,) = probes.attempt(us, "window", lambda: [], level=level)  # type: ignore[arg-type]
        assert (found.level, found.title) == (level, "window")
        assert found.detail == problem + " (1 of 2 learners)"


def test_a_missing_mpi_library_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def start() -> None:
        raise RuntimeError("cannot load MPI library\nlibmpi.so: cannot open shared object file")

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(sys, "argv", ["doctor"])
    assert command.main() == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FAIL  MPI library") and "cannot load MPI library; libmpi.so" in line


# Real jobs

DOCTOR = ("-m", "horovod_dpsgd.doctor")
REPOSITORY = Path(__file__).resolve().parents[1]


def findings(stdout: str) -> dict[str, tuple[str, str]]:
    """Title -> (level, detail), of the lines that are findings."""
    lines = re.findall(r"^(ok|warn|FAIL|skip) +(\S.{15}) (.+)$", stdout, re.MULTILINE)
    return {title.strip(): (level, detail) for level, title, detail in lines}


def message_seconds(found: dict[str, tuple[str, str]]) -> tuple[float, float]:
    """Of the message whose sender computes: without and with the progress engine."""
    match = re.match(r"4 MB in ([\d.]+) ms without the progress engine, ([\d.]+) ms with it", found["message"][1])
    assert match, found["message"]
    return float(match[1]) / 1e3, float(match[2]) / 1e3


@pytest.mark.mpi
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_host(mpirun, n: int) -> None:
    done = mpirun(n, *DOCTOR)
    found = findings(done.stdout)
    assert not [line for line in found.items() if line[1][0] == "FAIL"]
    assert found["learners"][1].startswith(f"{n} on 1 host") and found["learners"][1].endswith(", 1 node")
    assert found["window"][0] == found["AD-PSGD window"][0] == "ok"
    assert f" {10 * n} numbers, each taken by one learner" in found["AD-PSGD window"][1]
    assert found["in-place reading"] == (
        ("skip", "each learner is alone on its node")
        if n == 1
        else ("ok", f"{n} of {n} learners see what their partners wrote")
    )
    assert found["shared memory"][1].startswith(f"2 slots x 507 MB x {n} = ")
    if n > 1:  # the folder is read off the memory itself; what is free there is the system's word
        match = re.search(r"; ([\d.]+ [KMGT]B) free in (.+?)(:|$)", found["shared memory"][1])
        assert match and bytes_of(match[1]) <= 1.1 * shutil.disk_usage(match[2]).free
    if importlib.util.find_spec("horovod") is None:
        assert found["Horovod"][0] == "warn" and "not installed" in found["Horovod"][1]
    else:
        built = r"built with(out)? MPI, with(out)? Gloo, with(out)? NCCL"
        assert re.search(f"{built}|cannot be imported", found["Horovod"][1])
    assert found["message"][0] == "skip" and found["progress engine"][1].startswith("needed: no")
    assert f"\n  mpirun -np {n} " in done.stdout and f"\n  horovodrun -np {n} -H localhost:{n} python" in done.stdout
    assert done.stdout.count("MPI library") == 1, "one learner speaks"


@pytest.mark.mpi
def test_a_message_between_nodes_that_are_pretended(mpirun) -> None:
    """On one host the library may copy it out of the sender's memory, so that it needs no progress there."""
    done = mpirun(2, *DOCTOR, "--pretend-nodes")
    found = findings(done.stdout)
    message_seconds(found)
    assert found["AD-PSGD window"][0] == "ok"
    assert found["message"][0] == found["progress engine"][0] == "ok"


@pytest.mark.mpi
def test_a_model_that_does_not_fit_fails(mpirun) -> None:
    done = mpirun(2, *DOCTOR, "--model-size", "100TB", status=1)
    level, detail = findings(done.stdout)["shared memory"]
    assert level == "FAIL" and "2 slots x 100 TB x 2 = 400 TB" in detail
    assert "Flags to use on this cluster" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_threads_are_asked_for_between_nodes(mpirun) -> None:
    done = mpirun(2, *DOCTOR, "--pretend-nodes", status=1, env={"MPI4PY_RC_THREAD_LEVEL": "funneled"})
    found = findings(done.stdout)
    assert found["thread level"][0] == "FAIL" and found["window"][0] == "skip"
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
def test_an_argument_that_is_not_understood_is_one_line(mpirun) -> None:
    done = mpirun(2, *DOCTOR, "--model-size", "big", status=2)
    assert done.stdout == ""
    assert [line for line in done.stderr.splitlines() if "horovod_dpsgd" in line] == [
        "python -m horovod_dpsgd.doctor: error: argument --model-size: 'big' is not a size such as 64, 16KB or 1.5GB"
    ]


@pytest.mark.mpi
def test_a_window_that_mpi_refuses_is_a_finding(mpirun) -> None:
    """Open MPI without its component for shared memory: the check before is told to let it pass."""
    program = (
        "import sys; from horovod_dpsgd.doctor import __main__ as command\n"
        "command.judge_library = lambda *_: command.Finding('ok', 'MPI library', '')\n"
        "sys.exit(command.main())"
    )
    if is_mpich():
        pytest.skip("MPICH has no component that could be left out")
    done = mpirun(2, "-c", program, status=None, env={"OMPI_MCA_osc": "^sm"})
    found = findings(done.stdout)
    assert done.returncode == 1 and found["window"][0] == "FAIL" and "MPI_ERR" in found["window"][1]
    assert "Flags to use on this cluster" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.mpi
@pytest.mark.parametrize("problem", ["1 / 0", "1 / us.rank"])
def test_a_window_of_all_that_mpi_refuses_is_a_warning(mpirun, problem: str) -> None:
    """On all learners, or on one while the other comes through; between nodes, so that engines run meanwhile."""
    program = (
        "import sys; from horovod_dpsgd.doctor import __main__ as command, probes\n"
        f"probes.check_counter = lambda us: [] if {problem} else []\n"
        "sys.exit(command.main())"
    )
    done = mpirun(2, "-c", program, "--pretend-nodes", status=0)
    level, detail = findings(done.stdout)["AD-PSGD window"]
    assert level == "warn" and "learner 0: ZeroDivisionError" in detail
    assert f"({1 if 'rank' in problem else 2} of 2 learners)" in detail
    assert "Flags to use on this cluster" in done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize(("work", "words"), [("time.sleep(100)", "no end after 2 s"), ("1 / 0", "ZeroDivisionError")])
def test_a_check_in_which_learners_hang_ends_in_words(mpirun, work: str, words: str) -> None:
    """Learner 1 sleeps, or fails while learner 0 waits for it."""
    program = (
        "import time; from horovod_dpsgd import learners; from horovod_dpsgd.doctor import probes\n"
        "us = learners.start()\n"
        f"probes.attempt(us, 'window', lambda: [{work}] if us.rank else us.barrier() or [], 2)"
    )
    done = mpirun(2, "-c", program, status=None, timeout=60)
    assert done.returncode != 0
    assert "ends the job: window: " in done.stderr and words in done.stderr


@pytest.mark.mpi
@pytest.mark.skipif(why_not() is not None, reason=why_not() or "")
def test_two_hosts_and_the_flags_given_for_them() -> None:
    """The doctor over a real network, started plainly, and then once more by the line that it recommends."""
    if "Open MPI) 4" in mpi_library():
        pytest.skip(f"{mpi_library()} cannot make a window over TCP (said in words: test_known_bad_libraries)")
    where = ["-hosts", "host1:2,host2:2"] if is_mpich() else ["-H", "host1:2,host2:2"]
    run = ["mpirun", "-np", "4", *where, "python", *DOCTOR, "--seconds", "1"]
    for _ in range(2):
        done = run_on_host1(run, timeout=120, env={"PYTHONPATH": str(REPOSITORY)}, cwd=REPOSITORY)
        found = findings(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr
        assert found["learners"][1] == "4 on 2 hosts (host1:2,host2:2), 2 nodes"
        assert found["in-place reading"][0] == found["window"][0] == found["AD-PSGD window"][0] == "ok"
        without, driven = message_seconds(found)
        assert without > 3 * driven
        recommended = next(line for line in done.stdout.splitlines() if line.startswith("  mpirun "))
        run = [*recommended.removesuffix(" TRAIN.py").split(), *DOCTOR, "--seconds", "1"]
    assert "--mca" in recommended or "-hosts" in recommended
