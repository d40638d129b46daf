"""The communication benchmarks: what they print and write, on tiny sizes. Nothing here looks at how long anything took,
beyond that it took some time."""

from __future__ import annotations

import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, run

from benchmarks.comm import (
    arguments,
    decent_dp_peer,
    exchange,
    fused,
    jobs,
    loop_overhead,
    loops,
    measure,
    methods,
    osu_get_bw,
    osu_get_latency,
    output,
    progress,
    slow_learner,
    step_overhead,
    summary,
    tables,
    wire_bytes,
)
from benchmarks.comm import run as run_all
from benchmarks.nlp import speed
from benchmarks.two_hosts.netns import why_not
from horovod_dpsgd import gossip, learners
from horovod_dpsgd.launching import mpirun_on

COMM = REPOSITORY / "benchmarks" / "comm"


def lines(path, kind="row"):
    """The JSON lines of one kind in an output file."""
    return [line for line in map(json.loads, path.read_text().splitlines()) if line["kind"] == kind]


# Words and numbers


@pytest.mark.parametrize(("nbytes", "name"), [(1024, "1 KB"), (44 * 2**20, "44 MB"), (64, "64 B"), (4 * 2**20, "4 MB")])
def test_sizes_are_written_as_osu_does(nbytes, name):
    assert output.size_name(nbytes) == name


def test_durations():
    assert [output.duration(s) for s in (2.5, 0.9996, 0.0125, 3.4e-6)] == ["2.5 s", "1 s", "12.5 ms", "3.4 us"]


def test_ratios_are_taken_turn_by_turn_between_the_slowest_learners():
    """A machine that is three times slower in one turn is so for both contenders, and no ratio shows it."""
    weather = np.array([1.0, 3.0, 1.0])
    floor = measure.Times(np.array([1.0 * weather, 2.0 * weather]))  # two learners, three turns
    other = measure.Times(np.array([5.0 * weather, 4.0 * weather]))
    assert other.median == 5.0
    assert other.row(floor)["ratio_quartiles"] == [2.5, 2.5]


def test_contenders_take_turns():
    order: list[str] = []
    stopwatch = measure.Stopwatch(learners.start(), turns=3)
    times = stopwatch.compare({name: lambda name=name: order.append(name) for name in "ABC"}, calls=2, warm_up=1)
    assert "".join(order) == "ABC" + 3 * "AABBCC"
    assert all(found.each.shape == (1, 3) for found in times.values())


def test_a_spent_budget_leaves_three_turns():
    stopwatch = measure.Stopwatch(learners.start(), turns=100, budget=0.0)
    assert stopwatch.compare({"A": lambda: None})["A"].each.shape == (1, measure.LEAST_TURNS)


# Command lines

WRONG = [
    (exchange, "--sizes 1KB,foo", "argument --sizes: 'foo' is not a size such as 64, 16KB or 1.5GB"),
    (exchange, "--sizes 2", "argument --sizes: '2' is too small for a weight, which takes 4 bytes"),
    (exchange, "--turns 0", "argument --turns: '0' is not a whole number of 1 or more"),
    (exchange, "--budget nan", "argument --budget: 'nan' is not a number of 0 or more"),
    (exchange, "--topology torus", "argument --topology: invalid choice: 'torus' (choose from "),
    (
        exchange,
        "--topology complete --compression bfloat16",
        "--compression bfloat16: topology complete exchanges no compressed weights",
    ),
    (step_overhead, "--model nonsense", "argument --model: unknown model 'nonsense': gpt-small, or one of torchvision"),
    (step_overhead, "--compare --algos dpsgd,foo", "argument --algos: 'foo' is none of 'dpsgd', 'adpsgd', 'ssgd'"),
    (step_overhead, "--compare --algos dpsgd,dpsgd", "argument --algos: 'dpsgd,dpsgd' names one twice"),
    (step_overhead, "--num-iters -1", "argument --num-iters: '-1' is not a whole number of 1 or more"),
    (
        step_overhead,
        "--algo dpsgd --topology hierarchical --compression bfloat16",
        "--compression bfloat16: topology hierarchical exchanges no compressed weights",
    ),
    (
        step_overhead,
        "--algo adpsgd --compression bfloat16",
        "--compression bfloat16 is of dpsgd, which is not among adpsgd",
    ),
    (slow_learner, "--algos adpsgd,", "argument --algos: '' is none of 'dpsgd', 'adpsgd', 'ssgd'"),
    (slow_learner, "--compute -1", "argument --compute: '-1' is not a number of 0 or more"),
    (slow_learner, "", "this is about one learner and the others: start 2 or more"),
    (fused, "--optimizers Adam;Adagrad", "argument --optimizers: 'Adagrad' is none of 'SGD, momentum', 'Adam', "),
    (osu_get_bw, "-m 1", "argument -m/--message-size: '1' is no MIN:MAX with a power of two between, such as 1:4M"),
    (osu_get_bw, "-m 5:7", "argument -m/--message-size: '5:7' is no MIN:MAX with a power of two between"),
    (osu_get_bw, "-i 0", "argument -i/--iterations: '0' is not a whole number of 1 or more"),
    (osu_get_latency, "", "this measures between 2 learners, not 1"),
    (progress, "--seconds 0", "argument --seconds: '0' is not a number of 0.01 or more"),
    (progress, "", "this is about 2 learners on 2 nodes, not 1 on 1 (see --help)"),
    (wire_bytes, "--size big", "argument --size: 'big' is not a size"),
    (loop_overhead, "--steps 1.5", "argument --steps: '1.5' is not a whole number of 1 or more"),
    (loop_overhead, "--output /dev/null/a/b", "--output /dev/null/a/b: Not a directory"),
    (
        speed,
        "--recipe nonesuch",
        "recipe 'nonesuch' cannot be read (No such file or directory); known here: ",
    ),
    (speed, "--accumulate 3", "accumulate 3: the 16 samples of a learner cannot be cut so"),
    (decent_dp_peer, "--batch-size none", "argument --batch-size: 'none' is not a whole number of 1 or more"),
]


@pytest.mark.parametrize(("script", "words", "error"), WRONG)
def test_what_cannot_be_measured_is_one_line_and_status_2(script, words, error, monkeypatch, capsys):
    name = f"{script.__name__.rpartition('.')[2]}.py"
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    with pytest.raises(SystemExit) as ended:
        script.main()
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert said.err.startswith(f"{name}: error: {error}")


@pytest.mark.mpi
@pytest.mark.parametrize("words", [["--algos", "dpsgd,foo"], ["--output", "/dev/null/out.jsonl"]])
def test_one_learner_says_it(mpirun, words):
    """What each finds before MPI starts, and what only learner 0 can find."""
    done = mpirun(2, COMM / "slow_learner.py", *words, status=2)
    assert done.stderr.count("slow_learner.py: error: ") == 1
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_every_option_of_gossip_is_that_of_the_exchange_that_is_timed():
    us, buffers = learners.start(), methods.Buffers(1024)
    for options, kind, name in (
        ({}, gossip.NeighbourExchange, "gossip exchange"),
        ({"topology_name": "ring"}, gossip.NeighbourExchange, "gossip exchange (ring)"),
        ({"compression": "bfloat16"}, gossip.NeighbourExchange, "gossip exchange (matching, bfloat16)"),
        ({"topology_name": "hierarchical"}, gossip.NodeExchange, "gossip exchange (hierarchical)"),
    ):
        method = methods.Gossip(us, buffers, True, **options)
        method()
        assert (type(method.exchange), method.name) == (kind, name)
        assert method.exchange.topology.name == options.get("topology_name", "matching")
        assert getattr(method.exchange, "compressed", False) == ("compression" in options)
        method.close()


# Programs


@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, 3])
def test_exchange_compares_all_methods_with_the_floor(tmp_path, mpirun, n):
    file = tmp_path / "out.jsonl"
    done = mpirun(n, COMM / "exchange.py", "--sizes", "1KB,64KB", "--turns", 3, "--no-horovod", "--output", file)
    assert [row["method"] for row in lines(file)] == 2 * [kind.name for kind in methods.WITHOUT_HOROVOD]
    for row in lines(file):
        assert row["seconds"] > 0
        assert row["turns"] == 3
        assert (row["ratio"] == 1) == (row["method"] == methods.Floor.name)
    (about,) = lines(file, "run")
    assert about["learners"] == n
    assert about["command"].startswith(f"mpirun -np {n} python benchmarks/comm/exchange.py --sizes 1KB,64KB")
    assert "| 64 KB | gossip exchange" in done.stdout


@pytest.mark.mpi
@pytest.mark.parametrize("compression", ["none", "bfloat16"])
def test_exchange_takes_any_topology(tmp_path, mpirun, compression):
    file = tmp_path / "out.jsonl"
    short = ["--sizes", "64KB", "--turns", 3, "--no-horovod", "--output", file]
    mpirun(3, COMM / "exchange.py", "--topology", "ring", "--compression", compression, *short)
    (row,) = [row for row in lines(file) if row["method"].startswith(methods.Gossip.name)]
    assert row["method"] == arguments.exchange_name(methods.Gossip.name, "ring", compression)
    assert (row["topology"], row["compression"]) == ("ring", compression)


@pytest.mark.mpi
def test_exchange_leaves_out_what_does_not_fit(tmp_path, mpirun):
    file = tmp_path / "out.jsonl"
    mpirun(2, COMM / "exchange.py", "--sizes", "1KB,100000GB", "--turns", 3, "--no-horovod", "--output", file)
    assert {row["bytes"] for row in lines(file)} == {1024}
    assert lines(file, "skipped")[0]["what"] == "100000 GB"


@pytest.mark.mpi
def test_horovod_is_measured_last(tmp_path, mpirun):
    pytest.importorskip("horovod")
    file = tmp_path / "out.jsonl"
    mpirun(2, COMM / "exchange.py", "--sizes", "1KB", "--turns", 3, "--output", file)
    assert [row["method"] for row in lines(file)][-2:] == [methods.Floor.name, methods.Horovod.name]


@pytest.mark.mpi
@pytest.mark.parametrize("n", [1, 2])
def test_fused_compares_three_ways(tmp_path, mpirun, n):
    file = tmp_path / "out.jsonl"
    small = ["--model", "squeezenet1_1", "--optimizers", "Adam", "--turns", 3]
    mpirun(n, COMM / "fused.py", *small, "--output", file)
    one_thread = [row for row in lines(file) if row["threads"] == 1]
    assert [row["way"] for row in one_thread] == ["mix, then step()", "mix, then step(), fused=True", "by blocks"]
    assert all(row["x_default"] > 0 and row["x_fused"] > 0 for row in one_thread)


@pytest.mark.mpi
@pytest.mark.parametrize(("program", "test", "column"), [
    ("osu_get_latency.py", "Latency", "Latency (us)"),
    ("osu_get_bw.py", "Bandwidth", "Bandwidth (MB/s)"),
])  # fmt: skip
def test_osu_output_has_the_form_its_users_know(mpirun, program, test, column):
    done = mpirun(2, COMM / program, "-m", "1:1K", "-i", 5, "-x", 1, "--turns", 3)
    blocks = re.findall(
        rf"^# horovod_dpsgd MPI_Get {test} Test\n# Window creation: (.+)\n# Synchronization: .+\n"
        rf"# Size +{re.escape(column)}\n"
        r"((?:\d+ +\d+\.\d\d\n)+)",
        done.stdout,
        re.MULTILINE,
    )
    assert [window.split(",")[0] for window, _ in blocks] == ["horovod_dpsgd.gossip.Window", "MPI_Win_allocate"]
    for _, block in blocks:
        sizes, values = zip(*(line.split() for line in block.splitlines()), strict=True)
        assert list(map(int, sizes)) == [2**k for k in range(11)]
        assert all(float(value) > 0 for value in values)


@pytest.mark.mpi
def test_osu_wants_two_learners(mpirun):
    done = mpirun(3, COMM / "osu_get_bw.py", status=2)
    assert "error: this measures between 2 learners, not 3" in done.stderr


SHORT_STEPS = ["--batch-size", 2, "--num-warmup-batches", 1, "--num-batches-per-iter", 1, "--num-iters", 3]


@pytest.mark.mpi
@pytest.mark.parametrize("algo", ["local", "dpsgd"])
def test_steps_are_reported_in_the_lines_of_horovods_benchmark(mpirun, algo):
    model = ["--model", "squeezenet1_1", "--image-size", 64]
    text = mpirun(2, COMM / "step_overhead.py", *model, "--algo", algo, *SHORT_STEPS).stdout
    for line in (
        r"Model: squeezenet1_1",
        r"Batch size: 2",
        r"Number of CPUs: 2",
        r"Iter #2: \d+\.\d img/sec per CPU",
        r"Img/sec per CPU: \d+\.\d \+-\d+\.\d",
        r"Total img/sec on 2 CPU\(s\): \d+\.\d \+-\d+\.\d",
    ):
        assert re.search(f"^{line}$", text, re.MULTILINE), text


@pytest.mark.mpi
def test_steps_of_every_algorithm_are_compared_with_local_ones(tmp_path, mpirun):
    file = tmp_path / "out.jsonl"
    model = ["--model", "squeezenet1_1", "--image-size", 64]
    command = ["--compare", *model, "--algos", "dpsgd,adpsgd", *SHORT_STEPS, "--output", file]
    mpirun(2, COMM / "step_overhead.py", *command)
    for row, algo in zip(lines(file), ["dpsgd", "adpsgd"], strict=True):
        assert row["algo"] == algo
        assert min(row["seconds"], row["ratio"], row["ratio_to_alone"], row["background_cost"]) > 0
        assert row["exposed"] >= 0


@pytest.mark.mpi
def test_steps_take_any_topology_and_compression(tmp_path, mpirun):
    file = tmp_path / "out.jsonl"
    options = ["--topology", "ring", "--compression", "bfloat16", "--algos", "dpsgd,adpsgd"]
    command = ["--compare", "--model", "squeezenet1_1", "--image-size", 64, *options, *SHORT_STEPS, "--output", file]
    done = mpirun(2, COMM / "step_overhead.py", *command)
    exchanged = [(row["algo"], row["topology"], row["compression"]) for row in lines(file)]
    assert exchanged == [("dpsgd", "ring", "bfloat16"), ("adpsgd", "ring", "none")]
    assert "| dpsgd (ring, bfloat16) " in done.stdout
    assert "| adpsgd (ring) " in done.stdout


@pytest.mark.parametrize(
    ("script", "unit", "a_step", "words"),
    [
        ("comm/loop_overhead.py", "samples", 100, "--batch-size 100 --steps 5"),
        ("nlp/speed.py", "tokens", 4 * 32, "--batch-size 4 --steps 1 --accumulate 2 --amp"),
        (
            "asr/speed.py",
            "frames",
            4 * 21,
            "--batch-size 4 --steps 2 --set model_options.layers=1 --set model_options.states=9",
        ),
    ],
)
def test_the_loop_is_compared_with_a_bare_one(tmp_path, script, unit, a_step, words):
    file = tmp_path / "out.jsonl"
    script = REPOSITORY / "benchmarks" / script
    done = run([sys.executable, str(script), *words.split(), "--turns", "3", "--output", str(file)], 120, 0)
    assert [row["loop"] for row in lines(file)] == ["bare PyTorch loop", "horovod_dpsgd's loop"]
    for row in lines(file):
        assert row["seconds"] > 0
        assert row[f"{unit}_per_second"] == pytest.approx(a_step / row["seconds"], rel=1e-3)
    assert f"| {unit}/s (quartiles) " in done.stdout


def test_making_batches_is_told_from_the_rest_of_a_step(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loops.time, "perf_counter", lambda: clock[0])

    def batches(indices):
        for chosen in indices:
            clock[0] += 1
            yield (chosen,)

    timed = loops.Timed(SimpleNamespace(train_batches=batches))
    for _ in timed.task.train_batches(torch.arange(12).split(2)):
        clock[0] += 3
    assert timed.seconds == [4.0] * 4
    assert timed.data_share == 0.25


def test_turns_are_fewer_where_time_is_short():
    calls = iter(range(100))
    contenders = {"a": lambda: float(next(calls)), "b": lambda: 1.0}
    assert loops.in_turns(contenders, turns=9, budget=0.0) == {"a": [1.0, 2.0, 3.0], "b": [1.0] * 3}
    assert len(loops.in_turns(contenders, turns=9, budget=60.0)["a"]) == 9


@pytest.mark.mpi
def test_a_slow_learner_is_compared_with_full_speed(tmp_path, mpirun):
    file = tmp_path / "out.jsonl"
    short = ["--model", "squeezenet1_1", "--compute", 0.01, "--steps", 2, "--turns", 3]
    mpirun(2, COMM / "slow_learner.py", *short, "--algos", "dpsgd,adpsgd", "--output", file)
    for row, algo in zip(lines(file), ["dpsgd", "adpsgd"], strict=True):
        assert (row["algo"], row["factor"]) == (algo, 4)
        assert min(row["seconds"], row["seconds_slowed"], row["steps_per_second"]) > 0


@pytest.mark.mpi
def test_the_peer_is_optional(tmp_path, mpirun):
    file = tmp_path / "out.jsonl"
    short = ["--model", "squeezenet1_1", "--steps", 2, "--turns", 3, "--batch-size", 2]
    mpirun(2, COMM / "decent_dp_peer.py", *short, "--output", file)
    skipped = lines(file, "skipped")
    assert skipped[0]["reason"] == "not installed: pip install decent-dp" if skipped else len(lines(file)) == 6


# Between hosts

two_hosts = pytest.mark.skipif(why_not() is not None, reason=why_not() or "")


@pytest.mark.mpi
@two_hosts
@pytest.mark.parametrize(
    ("script", "options", "expected"),
    [
        ("progress.py", ["--size", "64KB", "--seconds", "0.1", "--turns", "2"], ["nothing", "progress engine"]),
        ("wire_bytes.py", ["--size", "1MB"], ["MPI_Get", "MPI_Put"]),
        (
            "exchange.py",
            ["--sizes", "1KB", "--turns", "3", "--no-horovod"],
            [methods.Floor.name, methods.Gossip.name],
        ),
    ],
)
def test_measurements_between_two_hosts(tmp_path, script, options, expected):
    file = tmp_path / "out.jsonl"
    world = [sys.executable, "-m", "benchmarks.two_hosts", "--rate", "1gbit", "--timeout", "150"]
    program = [sys.executable, str(COMM / script), *options, "--output", str(file)]
    run([*world, *mpirun_on(jobs.EMULATED, 2), *program], 200, 0)
    (about,) = lines(file, "run")
    assert (about["nodes"], about["emulated_hosts"], about["threads"]) == (2, True, 1)
    names = [next(row[key] for key in ("progress", "method", "operation") if key in row) for row in lines(file)]
    assert names[:2] == expected
    for row in lines(file):  # of wire_bytes.py: what is data has crossed the network, and was counted
        for counted, data in zip((row.get("sent"), row.get("received")), row.get("data", []), strict=False):
            assert counted >= data, row


@pytest.mark.mpi
def test_progress_wants_two_nodes(mpirun):
    assert "error: this is about 2 learners on 2 nodes" in mpirun(2, COMM / "progress.py", status=2).stderr


# All of them


def test_every_job_has_a_name_of_its_own_and_a_table():
    everything = jobs.all_jobs()
    assert len({job.name for job in everything}) == len(everything)
    in_tables = {group for _, groups, _ in tables.FILES.values() for group in groups}
    assert {job.group for job in everything} == in_tables
    assert all(str(REPOSITORY) not in job.shown() for job in everything)


@pytest.mark.mpi
def test_run_measures_what_is_missing_and_writes_tables_and_plots(tmp_path):
    command = [sys.executable, str(COMM / "run.py"), "--quick", "--runs", str(tmp_path), "--only", "exchange-n2"]
    assert "benchmarks/comm/exchange.py" in run(command, 300, 0).stdout
    results = tmp_path / "comm-quick" / "results"
    text = (results / "exchange.md").read_text()
    assert "| 1 MB" in text
    assert "Machine: " in text
    assert f"Code: {lines(tmp_path / 'comm-quick' / 'exchange-n2.jsonl', 'run')[0]['git']}" in text
    assert str(REPOSITORY) not in text
    for plot in ("exchange-time", "exchange-ratio"):
        assert (results / f"{plot}.png").stat().st_size > 1000
        assert (results / f"{plot}.svg").read_text().startswith("<?xml")
    assert (results / "summary.md").read_text().count("not measured") == len(summary.GOALS)  # 44 MB was not
    assert "exchange-n2: done before" in run(command, 60, 0).stdout


@pytest.mark.mpi
@two_hosts
def test_run_measures_between_the_hosts_it_is_given(tmp_path):
    """Emulated ones, but as if they were real: run.py itself is started on one of them."""
    world = [sys.executable, "-m", "benchmarks.two_hosts", "--timeout", "280"]
    command = ["--hosts", "host1:1,host2:1", "--quick", "--runs", str(tmp_path), "--only", "exchange-two-hosts"]
    run([*world, sys.executable, str(COMM / "run.py"), *command], 300, 0)
    folder = tmp_path / "comm-hosts-quick"
    (about,) = lines(folder / "exchange-two-hosts.jsonl", "run")
    assert (about["learners"], about["nodes"]) == (2, 2)
    text = (folder / "results" / "two-hosts.md").read_text()
    assert "## 2 learners; hosts host1:1,host2:1; " in text
    assert "emulated" not in text
    assert (folder / "results" / "two-hosts-time.png").exists()


def test_real_hosts_are_for_what_is_measured_between_hosts_and_have_no_limit():
    here = [job for job in jobs.all_jobs() if job.link == "unlimited"]
    there = jobs.jobs_between("node1:1,node2:1")
    assert [job.script for job in there] == [job.script for job in here]
    for job in there:
        command = job.command()
        assert command[command.index("-np") :][:4:3] == ["-np", "node1:1,node2:1"]
        assert not {"benchmarks.two_hosts", "--rate"} & set(command)
    assert len({job.name for job in there}) == len(there)


def test_committed_lines_are_begun_with_and_the_tables_made_of_them(tmp_path, monkeypatch, capsys):
    """A run with nothing of its own, beside tables whose lines lie in raw/."""
    raw = tmp_path / "tables" / "raw"
    raw.mkdir(parents=True)
    about = {"kind": "run", "machine": "a machine", "date": "-", "git": "-", "versions": {}, "learners": 1}
    row = {"kind": "row", "loop": "bare", "batch": 400, "seconds": 0.0123, "ratio": 1, "ratio_quartiles": [1, 1]}
    (raw / "loop-400.jsonl").write_text(f"{json.dumps(about)}\n{json.dumps(row)}\n")
    command = ["run.py", "--runs", str(tmp_path / "runs"), "--results", str(raw.parent)]
    monkeypatch.setattr(sys, "argv", [*command, "--only", "loop-400"])
    run_all.main()
    assert "loop-400: done before" in capsys.readouterr().out
    assert "| 12.3 ms" in (raw.parent / "step-overhead.md").read_text()
    own = tmp_path / "runs" / "comm" / "loop-400.jsonl"
    own.write_text(own.read_text().replace("0.0123", "0.0456"))  # measured again: what is here counts
    monkeypatch.setattr(sys, "argv", [*command, "--report"])
    run_all.main()
    assert "| 45.6 ms" in (raw.parent / "step-overhead.md").read_text()
    assert (raw / "loop-400.jsonl").read_text() == own.read_text()


def test_a_measurement_that_fails_leaves_what_was_measured_before_and_is_made_again(tmp_path, monkeypatch, capsys):
    """A job that writes a row, dies, and later does not."""
    row = {"kind": "row", "loop": "bare", "batch": 400, "seconds": 0.0123, "ratio": 1, "ratio_quartiles": [1, 1]}
    about = {"kind": "run", "machine": "a machine", "date": "-", "git": "-", "versions": {}, "learners": 1}
    status = 0

    def measure(command, env, check):
        with open(command[command.index("--output") + 1], "w") as file:
            file.writelines(f"{json.dumps(line)}\n" for line in (about, row | {"seconds": 0.0123 * (1 + status)}))
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(run_all, "subprocess", SimpleNamespace(run=measure))
    command = ["run.py", "--runs", str(tmp_path), "--only", "loop-400"]
    kept, raw = (tmp_path / "comm" / place / "loop-400.jsonl" for place in (".", "results/raw"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", [*command, *words])
        run_all.main()

    status = 9
    with pytest.raises(SystemExit, match="these failed: loop-400"):
        run()
    assert '"kind": "row"' not in kept.read_text() and "failed with status 9" in kept.read_text()
    status = 0
    run()
    good = kept.read_text()
    assert "done before" not in capsys.readouterr().out and good.count('"kind": "row"') == 1
    status = 9
    with pytest.raises(SystemExit, match="these failed: loop-400"):
        run("--again")
    assert kept.read_text() == raw.read_text() == good


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ("--hosts node1:2,node2:2", "argument --hosts: 'node1:2,node2:2' are not two hosts with a learner each"),
        ("--hosts node1", "argument --hosts: 'node1' are not two hosts"),
        ("--only nothing", "no measurement is called nothing (--list names them)"),
    ],
)
def test_run_says_what_it_cannot_do_in_one_line(words, error, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", *words.split()])
    with pytest.raises(SystemExit) as ended:
        run_all.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"run.py: error: {error}")


def test_the_summary_says_by_how_much_a_goal_is_missed(tmp_path):
    job = next(job for job in jobs.all_jobs() if job.name == "exchange-n2")
    gossip = {"method": methods.Gossip.name, "bytes": summary.MODEL_BYTES, "seconds": 1.26, "ratio": 1.26}
    shared = {"method": methods.SharedFloor.name, "bytes": summary.MODEL_BYTES, "seconds": 1.26, "ratio": 1.26}
    about = {"machine": "-", "date": "-", "git": "-", "versions": {}}
    text = summary.write([jobs.Measured(job, about, [gossip, shared])], tmp_path).read_text()
    assert re.search(r"lerp in private memory +\| <= 1.05 \| 1.260 +\| no, by 20%", text)
    assert re.search(r"the same / lerp in shared memory +\| <= 1.05 \| 1.000 +\| yes", text)
