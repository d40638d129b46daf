"""The step-time model against closed forms, simulations against formulas, and fits against made-up measurements."""

from __future__ import annotations

import argparse
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from benchmarks.runtime import __main__ as command
from benchmarks.runtime import costs, fit, mixing, predict, spread_of_delay, steps, validate, waiting
from benchmarks.runtime.costs import Cost
from benchmarks.runtime.steps import Cluster, Shared, Way, step_seconds
from benchmarks.runtime.waiting import Times
from horovod_dpsgd import topology
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.learners import Learners, start
from horovod_dpsgd.topology import TOPOLOGIES

RAW = REPOSITORY / "results" / "comm" / "raw"
MB = 1e6
IDEAL = Cluster(1, 1, Shared(Cost(0.0, 1e-10)), Shared(Cost(0.0, 1e-10)), "ring", Cost(1e-5, 1e-8), Cost(1e-5, 1e-8))
names = pytest.mark.parametrize("name", TOPOLOGIES)


# What moves


@pytest.mark.parametrize("n", [2, 3, 8, 64])
def test_a_ring_all_reduce_is_counted_hop_by_hop(n):
    """Each of n pieces goes round the ring twice, less one step each time."""
    cost = Cost(1e-5, 1e-9)
    hops = sum(cost.seconds(44 * MB / n) for _ in range(2 * (n - 1)))
    assert costs.all_reduce_seconds(cost, 44 * MB, n, "ring") == pytest.approx(hops)


def test_a_tree_beats_a_ring_where_messages_are_short_and_not_where_they_are_long():
    cost = Cost(1e-5, 1e-9)
    sizes = (1e3, 1e9)
    ring, tree = ([costs.all_reduce_seconds(cost, size, 1024, shape) for size in sizes] for shape in ("ring", "tree"))
    assert tree[0] < ring[0] / 50
    assert tree[1] == pytest.approx(ring[1], rel=0.02)


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if name not in ("complete", "hierarchical")])  # below
@pytest.mark.parametrize(("n", "per_node"), [(2, 1), (5, 1), (8, 1), (8, 2), (8, 8), (16, 4), (12, 4)])
def test_link_loads_are_those_of_the_topology_s_own_partners(name, n, per_node):
    node_of = [rank // per_node for rank in range(n)]
    made = topology.create(name, n, node_of=node_of)
    phases = len(costs.link_loads(name, n, per_node))
    every = 3000 if TOPOLOGIES[name].relabelled else phases
    sent = np.zeros(phases)
    for step in range(every):
        across = [node_of[k] != node_of[rank] for rank in range(n) for k in made.partners(step, rank)]
        sent[step % phases] += sum(across) / (node_of[-1] + 1)
    whole = name == "exponential" and n & (n - 1)  # learners without a partner: less than the model says
    measured, modelled = sent / (every / phases), np.array(costs.link_loads(name, n, per_node))
    assert (measured <= modelled + 1e-9).all() if whole else measured == pytest.approx(modelled, rel=0.03)


def test_nothing_crosses_a_node_that_holds_all_and_unknown_topologies_are_named():
    assert all(costs.link_loads(name, 8, 8) == [0.0] for name in TOPOLOGIES)
    assert costs.link_loads("hierarchical", 64, 8) == [1.0]
    assert costs.link_loads("complete", 64, 8) == [2 * 63 / 64]
    with pytest.raises(ValueError, match="'torus'"):
        costs.link_loads("torus", 8, 2)


# A step


def test_a_step_is_what_computing_and_moving_take_whichever_is_longer():
    size, way = 100 * MB, Way("dpsgd", "matching")
    mix = 1e-10 * size
    assert step_seconds(IDEAL, way, 5.0, size, 64) == pytest.approx(5.0 + mix)
    assert step_seconds(IDEAL, way, 0.1, size, 64) == pytest.approx(1e-5 + 1.0 + mix)
    assert step_seconds(IDEAL, Way("adpsgd", "matching"), 0.1, size, 64) == pytest.approx(0.1 + mix)
    exposed = 2 * 63 * 1e-5 + 2 * 63 / 64 - 2 / 3 * 0.1  # of the ring, beyond the backward pass
    assert step_seconds(IDEAL, Way("ssgd", "ring"), 0.1, size, 64) == pytest.approx(0.1 + exposed)


@pytest.mark.parametrize("way", steps.WAYS, ids=lambda way: way.name)
def test_one_learner_alone_waits_for_nobody(way):
    assert step_seconds(IDEAL, way, 0.25, MB, 1) == 0.25
    assert step_seconds(IDEAL, way, 0.25, MB, 1, jitter=0.2) == pytest.approx(0.3)


def test_pairs_cost_the_same_however_many_learners_and_rings_of_messages_do_not():
    ways = Way("dpsgd", "matching"), Way("ssgd", "ring")
    pair, ring = ([step_seconds(IDEAL, way, 0.1, MB, n) for n in (2, 64, 4096)] for way in ways)
    assert pair[0] == pytest.approx(pair[1]) == pytest.approx(pair[2])
    assert ring[2] > ring[0] + 4000 * 1e-5 - 0.1


def test_a_network_slower_than_the_steps_has_averages_skipped():
    way = Way("adpsgd", "matching")
    assert steps.averages_done(IDEAL, way, 2.0, 100 * MB, 64) == 1
    assert steps.averages_done(IDEAL, way, 0.25, 100 * MB, 64) == pytest.approx(0.25, rel=1e-3)
    assert steps.averages_done(IDEAL, Way("dpsgd", "matching"), 0.25, 100 * MB, 64) == 1


def test_learners_that_share_a_core_take_turns():
    shared = Shared(Cost(1e-4, 1e-9), exponent=1.5)
    assert shared.crowded(2, 2) == Cost(1e-4, 1e-9)
    assert shared.crowded(8, 2).start == pytest.approx(8e-4)
    assert shared.crowded(8, 2).per_byte == pytest.approx(4e-9)


# Waiting


def test_the_longest_of_n_exponentials_has_the_harmonic_number_as_its_mean():
    drawn = np.random.default_rng(0).exponential(size=(20_000, 16)).max(axis=1)
    assert waiting.slowest_of(16, 1.0) - 1 == pytest.approx(drawn.mean(), rel=0.02)


@names
def test_without_jitter_the_simulation_is_the_formula(name):
    times = Times(1.0, transfer=0.7, mix=0.05)
    assert waiting.mean_step(name, 8, 0.0, times, per_node=2, steps=20) == pytest.approx(1.05)
    late = Times(1.0, transfer=1.7, mix=0.05)
    assert waiting.mean_step(name, 8, 0.0, late, per_node=2, steps=20) == pytest.approx(1.75)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0])
def test_matchings_wait_more_than_nobody_less_than_all_and_less_than_the_bound(sigma):
    for n in (2, 16, 256):
        simulated = waiting.mean_step("matching", n, sigma, Times(1.0), steps=400)
        assert (1 + sigma) * 0.97 < simulated < min(waiting.slowest_of(n, sigma), waiting.matching_bound(sigma))
    assert simulated < waiting.mean_step("complete", 256, sigma, Times(1.0), steps=400)


def test_a_lasting_delay_sets_the_pace_of_all_who_mix():
    computing = np.ones(8)
    computing[3] = 4.0
    waits = waiting.WAITS["matching"](8, 1, np.random.default_rng(0))
    ends = list(waiting.ends_of_steps(waits, Times(1.0), iter([computing] * 200)))
    assert np.mean(ends[-1] - ends[100]) / 99 == pytest.approx(4.0, rel=0.02)


def test_a_delay_reaches_others_one_computation_weaker_and_a_short_one_reaches_nobody():
    late = spread_of_delay.simulated("matching", 16, 0.9, steps=12, runs=3)
    assert np.sum(late > 1e-9, axis=2) == pytest.approx(1)
    late = spread_of_delay.simulated("matching", 16, 3.0, steps=12, runs=3)
    assert {round(each, 6) for each in late.ravel()} == {0.0, 1.0, 2.0, 3.0}


def test_the_mean_field_formula_is_what_the_simulation_shows():
    shares = spread_of_delay.mean_field(64, 3, 16)
    late = spread_of_delay.simulated("matching", 64, 4.0, 16, runs=150)
    for wave in (1, 2, 3):
        assert spread_of_delay.share_late(late, 4.0 - wave) == pytest.approx(shares[wave], abs=0.06)


# Mixing


@names
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 16, 24])
def test_contractions_are_those_of_the_topology_s_matrices(name, n):
    for per_node in (1, 4):
        made = topology.create(name, n, node_of=[rank // per_node for rank in range(n)])
        assert mixing.contraction(name, n, per_node) == pytest.approx(made.consensus_contraction(), abs=1e-9)


@names
def test_noise_spreads_as_far_as_it_is_seen_to(name):
    made = topology.create(name, 16, seed=1, node_of=[rank // 4 for rank in range(16)])
    seen = mixing.simulated_spread(made, steps=200, coordinates=256)
    assert mixing.spread(name, 16, per_node=4) == pytest.approx(seen, rel=0.06)


def test_thousands_of_learners_need_no_matrix():
    assert mixing.contraction("matching", 4096) == pytest.approx(0.5 - 0.5 / 4095)
    assert mixing.spectral_gap("ring", 4096) == pytest.approx(1 - (1 + 2 * np.cos(2 * np.pi / 4096)) / 3)
    assert mixing.spread("ring", 4096) > 100 * mixing.spread("matching", 4096) / 2
    with pytest.raises(ValueError, match="no closed form for exponential of 3000 learners"):
        mixing.contraction("exponential", 3000)


# Fitting


def lines_of(rows, name="exchange-n2", **about):
    said = {"bench": "exchange", "machine": "CPU, 2 cores, 1 GiB", "learners": 2, "nodes": 1}
    return fit.Lines(name, said | about, rows)


def made_up(method, start, per_byte, n, exponent=1.0, hops=1.0, times=1.0):
    crowd = max(1.0, n / 2)
    first, each = hops * start * crowd**exponent, times * crowd * per_byte
    sizes = (2**10, 2**16, 2**20, 2**24)
    return [{"method": method, "learners": n, "bytes": size, "seconds": first + size * each} for size in sizes]


def test_a_fit_gives_back_the_numbers_that_made_the_measurements():
    rows = [row for n in (2, 4, 16) for row in made_up(fit.GOSSIP, 1e-4, 2e-10, n, exponent=1.5)]
    shared = fit.on_one_node(rows, cores=2)
    assert (shared.cost.start, shared.cost.per_byte, shared.exponent) == pytest.approx((1e-4, 2e-10, 1.5))
    rows = [row for n in (2, 4, 16) for row in made_up(fit.HOROVOD, 1e-4, 2e-10, n, 1.0, *costs.tree(n))]
    shared, shape = fit.all_reduce_on_one_node(rows, cores=2)
    assert shape == "tree"
    assert (shared.cost.start, shared.cost.per_byte) == pytest.approx((1e-4, 2e-10))


def test_costs_are_never_negative():
    times = np.array([3e-3, 2e-3, 1e-3])
    assert min(fit.least_squares(np.ones(3), np.array([1e3, 1e4, 1e5]), times)) >= 0
    assert min(fit.least_squares(np.ones(3), np.array([1e3, 1e4, 1e5]), np.array([1e-9, 1e-3, 1.0]))) >= 0


def test_a_cluster_is_fitted_and_says_what_it_assumes():
    inside = lines_of(made_up(fit.GOSSIP, 1e-4, 2e-10, 2) + made_up(fit.MPI_ALL_REDUCE, 1e-4, 4e-10, 2, hops=2.0))
    away = lines_of(made_up(fit.GOSSIP, 2e-4, 8e-9, 2) + made_up(fit.MPI_ALL_REDUCE, 5e-5, 8e-9, 2, hops=2.0),
                    "exchange-two-hosts-1gbit", nodes=2)  # fmt: skip
    fitted = fit.cluster([inside, away], per_node=4)
    assert fitted.cluster.link.per_byte == pytest.approx(8e-9)
    assert fitted.cluster.link_all_reduce.start == pytest.approx(5e-5)
    assert any("Horovod was not measured" in each for each in fitted.assumed)
    with pytest.raises(UserError, match="no exchange over a link 'infiniband' was measured; there is '1gbit'"):
        fit.cluster([inside, away], 4, "infiniband")
    with pytest.raises(UserError, match="no exchange between nodes was measured"):
        fit.cluster([inside], 4)


def test_what_was_measured_here_is_predicted():
    """Loose bounds: they are to notice a wrong formula, not a slow machine."""
    compared = validate.compare(fit.read(RAW))
    gossip = [each for each in compared if each.group == f"{fit.GOSSIP}, one node" and each.nbytes >= MB]
    assert np.median([abs(each.errors[0]) for each in gossip]) < 0.25
    slow = [each for each in compared if each.group == "one slow learner of n"]
    assert len(slow) == 8
    assert max(abs(each.errors[0]) for each in slow) < 0.25


# The command


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("predict --compute 0.2", "the following arguments are required: --measurements"),
        ("predict --measurements {empty} --compute 0.2", "holds no measurements"),
        ("predict --measurements {raw} --compute 0", "argument --compute: '0' must be above 0"),
        ("predict --measurements {raw} --compute 0.2 --learners 64..2", "'64..2' is not numbers of learners"),
        ("predict --measurements {raw} --compute 0.2 --learners 1,2", "'1,2' is not numbers of learners"),
        ("predict --measurements {raw} --compute 0.2 --link fast", "no exchange over a link 'fast' was measured"),
        ("mixing --learners 3000", "no closed form"),
    ],
)
def test_what_cannot_be_asked_is_one_line(words, line, tmp_path, monkeypatch, capsys):
    words = words.format(empty=tmp_path, raw=RAW).split()
    monkeypatch.setattr(sys, "argv", ["benchmarks.runtime", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert line in said and said.count("\n") == 1


def test_a_prediction_is_a_table_a_csv_and_a_plot(tmp_path, monkeypatch, capsys):
    words = f"predict --measurements {RAW} --compute 0.3 --learners 2,64 --link 25gbit --jitter 0.2 --per-node 8"
    monkeypatch.setattr(sys, "argv", ["benchmarks.runtime", *words.split(), "--output", str(tmp_path)])
    command.main()
    assert "assumed: a link of 25gbit" in capsys.readouterr().out
    rows = (tmp_path / "prediction.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * len(steps.WAYS)
    assert rows[0] == "algorithm,learners,nodes,jitter,step_seconds,efficiency,averages"
    for file in ("prediction.png", "prediction.svg"):
        assert (tmp_path / file).stat().st_size > 10_000


def test_learners_are_powers_of_two_or_named():
    assert command.numbers_of_learners("2..64") == (2, 4, 8, 16, 32, 64)
    assert command.numbers_of_learners("24,6") == (6, 24)
    with pytest.raises(argparse.ArgumentTypeError):
        command.numbers_of_learners("many")


def test_predictions_of_one_learner_more_or_less_than_a_node_agree():
    """A node's border is a jump in cost, never a gain."""
    question = predict.Question(0.1, 10**7, (4, 8))
    inside, across = (predict.predict(steps.replace(IDEAL, per_node=each, cores=8), question) for each in (8, 4))
    assert all(a.step_seconds <= b.step_seconds + 1e-12 for a, b in zip(inside, across, strict=True))


def test_a_file_that_holds_no_measurements_is_one_line(tmp_path):
    for text, line in (("[1]\n", "holds no measurements"), ("{\n", "is damaged")):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(UserError, match=line):
            fit.read(tmp_path)


@pytest.mark.parametrize(
    ("learners", "words", "line"),
    [(1, [], "start 2 or more"), (2, ["--lr", "-1"], "lr"), (2, ["--data-dir", "/nowhere"], "/nowhere")],
)
def test_consensus_says_in_a_line_what_it_cannot_do(monkeypatch, capsys, learners, words, line):
    from benchmarks.runtime import consensus

    class SoMany(Learners):
        size = property(lambda self: learners)

    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # which start() changes
    us = SoMany(**vars(start()))
    monkeypatch.setattr(consensus.learners, "start", lambda: us)
    monkeypatch.setattr(sys, "argv", ["consensus.py", *words])
    with pytest.raises(SystemExit) as ended:
        consensus.main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and line in said and said.count("\n") == 1
