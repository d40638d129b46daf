"""The paper's instruments against their formulas, by torch.autograd on a tiny network and one learner.

`StandIn` is an algorithm whose model is w_j, and which says that the mean of all learners, w_a, is elsewhere.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import known_landscapes
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from known_landscapes import one_thread  # noqa: F401
from torch import nn
from torch.nn import functional as F

from horovod_dpsgd import learners
from horovod_dpsgd.diagnostics import intervals
from horovod_dpsgd.diagnostics.dynamics import diversity, measure, noise
from horovod_dpsgd.parameters import FlatParameters
from horovod_dpsgd.training import Recipe, Score, Task
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.task import split

LR = 0.7
SHARD_SIZES = (5, 11, 1)  # unequal: a mean of batch means would be wrong


class Net(nn.Module):
    """No size is a multiple of a cache line; one parameter is tied, one frozen, one unused."""

    def __init__(self, seed, dtype):
        super().__init__()
        torch.manual_seed(seed)
        self.inner = nn.Linear(4, 5)
        self.outer = nn.Linear(5, 3)
        self.again = self.inner.weight
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.unused = nn.Parameter(torch.randn(2))
        self.to(dtype)

    def forward(self, x):
        return self.outer(torch.tanh(self.inner(x))) + self.frozen + self.again.sum()


class StandIn:
    """What `measure` asks of an algorithm, of a job of one learner."""

    def __init__(self, us, model, w_a):
        self.learners = us
        self.model = model
        self.parameters = FlatParameters(model)
        self.w_a = w_a

    @contextmanager
    def averaged(self):
        with self.parameters.holding(self.w_a):
            yield


@pytest.fixture(scope="module")
def us():
    hook = sys.excepthook
    yield learners.start()  # no mpirun: a job of one
    sys.excepthook = hook


def digits(seed, samples, dtype):
    numbers = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, 4, generator=numbers).to(dtype),
        torch.randint(0, 3, (samples,), generator=numbers),
    )


def gradient(model, batch):
    """All of a model's trainable parameters' gradients in a row, without padding, in double precision."""
    weights = [p for p in model.parameters() if p.requires_grad]
    value = F.cross_entropy(model(batch[0]), batch[1])
    parts = torch.autograd.grad(value, weights, allow_unused=True)
    parts = [torch.zeros_like(p) if d is None else d for p, d in zip(weights, parts, strict=True)]
    return torch.cat([d.flatten() for d in parts]).double()


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad]).double()


class Problem:
    """w_j, w_a, this step's batch and a training set, and what `measure` makes of them."""

    def __init__(self, us, dtype=torch.float64, same=False):
        self.at_w_j, self.at_w_a = Net(1, dtype), Net(1 if same else 2, dtype)
        self.at_w_a.frozen.data.copy_(self.at_w_j.frozen)
        self.batch = digits(3, 6, dtype)
        self.shard = [digits(4 + i, samples, dtype) for i, samples in enumerate(SHARD_SIZES)]
        self.train = tuple(torch.cat(column) for column in zip(*self.shard, strict=True))
        self.parts = 1
        self.model = copy.deepcopy(self.at_w_j)
        self.algorithm = StandIn(us, self.model, FlatParameters(self.at_w_a).gather())

    def measure(self, **how):
        def loss(batch):
            return F.cross_entropy(self.model(batch[0]), batch[1])

        return measure(self.algorithm, loss, split(self.batch, self.parts), self.shard, LR, **how)

    def by_hand(self):
        g = gradient(self.at_w_a, self.train)
        g_a, g_s = gradient(self.at_w_j, self.batch), gradient(self.at_w_a, self.batch)
        alpha_e, alpha_s = (LR * torch.dot(each, g) / torch.dot(g, g) for each in (g_a, g_s))
        distance = (flat(self.at_w_j) - flat(self.at_w_a)).norm()
        expected = {
            "effective_lr": alpha_e,
            "noise": LR**2 * g_a.norm() ** 2 - alpha_e**2 * g.norm() ** 2,  # eq. 4 in its other form
            "noise_ssgd": LR**2 * g_s.norm() ** 2 - alpha_s**2 * g.norm() ** 2,
            "noise_2": LR**2 * (g_a - g_s).norm() ** 2,
            "weight_variance": distance**2,
            "consensus_distance": distance,
            "gradient_diversity": 1.0,
            "full_loss": F.cross_entropy(self.at_w_a(self.train[0]), self.train[1]).detach(),
            "full_gradient_norm": g.norm(),
        }
        return {name: float(value) for name, value in expected.items()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-5)])
def test_measure_matches_the_formulas(us, dtype, tolerance):
    problem = Problem(us, dtype)
    expected = problem.by_hand()
    assert min(abs(value) for value in expected.values()) > 1e-3  # nothing is compared with 0
    assert problem.measure() == pytest.approx(expected, rel=tolerance)


def test_a_batch_in_parts_is_measured_as_the_step_computes_it(us):
    """With BatchNorm the parts' gradients are not those of the whole, and more than a part may not fit in memory."""
    problem = Problem(us)
    whole = problem.measure(hessian=True)
    problem.parts = 3
    assert problem.measure(hessian=True) == pytest.approx(whole, rel=1e-11)
    sizes = []
    problem.model.register_forward_hook(lambda net, inputs, output: sizes.append(len(inputs[0])))
    problem.measure()
    assert sizes == [2, 2, 2] * 2 + list(SHARD_SIZES)


def test_at_the_mean_itself_weights_do_not_differ_and_noise_is_ssgd_s(us):
    measured = Problem(us, same=True).measure()
    assert measured["noise_2"] == measured["weight_variance"] == measured["consensus_distance"] == 0
    assert measured["noise"] == measured["noise_ssgd"] > 0


def test_on_the_whole_training_set_there_is_no_noise(us):
    problem = Problem(us, same=True)
    problem.batch = problem.train
    measured = problem.measure()
    assert measured["effective_lr"] == pytest.approx(LR, rel=1e-12)
    assert measured["noise"] == pytest.approx(0, abs=1e-24)


def test_measure_changes_neither_weights_nor_gradients_and_calls_no_hooks(us):
    problem = Problem(us)
    F.cross_entropy(problem.model(problem.batch[0]), problem.batch[1]).backward()
    called = []
    for p in problem.model.parameters():
        if p.requires_grad:  # the two places where Horovod listens
            p.register_post_accumulate_grad_hook(called.append)
            p.expand_as(p).grad_fn.next_functions[0][0].register_hook(lambda *_: called.append(1))
    weights = {name: value.clone() for name, value in problem.model.state_dict().items()}
    gradients = {name: (p.grad, p.grad.clone()) for name, p in problem.model.named_parameters() if p.grad is not None}
    problem.measure()
    assert not called and gradients
    assert all(torch.equal(value, weights[name]) for name, value in problem.model.state_dict().items())
    for name, p in problem.model.named_parameters():
        if name in gradients:
            assert p.grad is gradients[name][0] and torch.equal(p.grad, gradients[name][1])


def test_a_model_that_has_blown_up_is_measured_as_nan(us):
    problem = Problem(us)
    problem.algorithm.w_a.fill_(math.nan)
    measured = problem.measure()
    assert all(math.isnan(value) for name, value in measured.items() if name != "gradient_diversity")


class Dropping(Net):
    def forward(self, x):
        return super().forward(F.dropout(x, 0.5, self.training))


def test_dropout_is_no_difference_between_weights(us):
    """Delta(2) is of one loss at two places, and dropout's masks are part of that loss."""
    problem = Problem(us, same=True)
    problem.model = Dropping(1, torch.float64)
    problem.model.load_state_dict(problem.at_w_j.state_dict())
    problem.algorithm = StandIn(us, problem.model, problem.algorithm.w_a)
    before = torch.get_rng_state()
    measured = problem.measure(hessian=True)
    assert torch.equal(torch.get_rng_state(), before)
    assert measured["noise_2"] == 0 and measured["noise"] == measured["noise_ssgd"] > 0
    w_j = FlatParameters(problem.model).gather()
    problem.algorithm.w_a = w_j + 1e-3 * (FlatParameters(Problem(us).at_w_a).gather() - w_j)
    measured = problem.measure(hessian=True)
    assert measured["noise_2"] == pytest.approx(measured["noise_2_first_order"], rel=0.02)


# Eq. 5, by the whole Hessian


def hessian_at(model, batch):
    return known_landscapes.hessian(FlatParameters(model), F.cross_entropy(model(batch[0]), batch[1])).detach()


def test_eq_5_matches_the_exact_hessian(us):
    problem = Problem(us)
    measured = problem.measure(hessian=True)
    deviation = flat(problem.at_w_j) - flat(problem.at_w_a)
    eq_5 = LR**2 * (hessian_at(problem.at_w_a, problem.train) @ deviation).square().sum()
    first_order = LR**2 * (hessian_at(problem.at_w_a, problem.batch) @ deviation).square().sum()
    assert measured["noise_2_hessian"] == pytest.approx(float(eq_5), rel=1e-10)
    assert measured["noise_2_first_order"] == pytest.approx(float(first_order), rel=1e-10)
    plain = problem.measure()
    assert plain == {name: measured[name] for name in plain}


@pytest.mark.parametrize("small", [1e-2, 1e-3])
def test_noise_2_goes_to_its_first_order_as_the_weights_come_together(us, small):
    problem = Problem(us)
    w_j = FlatParameters(problem.at_w_j).gather()
    problem.algorithm.w_a = w_j + small * (problem.algorithm.w_a - w_j)
    measured = problem.measure(hessian=True)
    assert measured["noise_2"] == pytest.approx(measured["noise_2_first_order"], rel=20 * small)


# On samples


def test_a_sample_that_is_everything_has_the_exact_value_inside_its_interval(us):
    problem = Problem(us)
    problem.shard = [digits(seed, 40, torch.float64) for seed in range(20)]
    exact, estimated = problem.measure(hessian=True), problem.measure(sampled=True, hessian=True)
    for name in ("effective_lr", "noise", "noise_ssgd", "full_loss", "full_gradient_norm", "noise_2_hessian"):
        low, high = estimated[f"{name}_low"], estimated[f"{name}_high"]
        assert low < estimated[name] < high
        assert low < exact[name] < high
    without_interval = ("noise_2", "noise_2_first_order", "weight_variance", "gradient_diversity")
    assert all(estimated[name] == exact[name] for name in without_interval)


N = 3


class Together:
    """Learners of one process, a thread each: what `measure` asks of `Learners`."""

    def __init__(self, rank, table, barrier):
        self.rank, self.size, self._table, self._barrier = rank, N, table, barrier

    def gather(self, thing):
        self._table[self.rank] = thing
        self._barrier.wait()
        everyone = list(self._table)
        self._barrier.wait()
        return everyone

    def sum(self, tensor):
        return sum(self.gather(tensor.clone()))

    def mean(self, tensor):
        return self.sum(tensor) / N

    def mean_of(self, number):
        return sum(self.gather(number)) / N

    def broadcast_(self, tensor, root):
        tensor.copy_(self.gather(tensor.clone())[root])


def test_groups_of_all_learners_are_left_out_in_turn():
    """Three learners, of four batches each."""
    models = [Net(seed, torch.float64) for seed in range(N)]
    for model in models:
        model.frozen.data.copy_(models[0].frozen)
    at_mean = copy.deepcopy(models[0])
    w_a = sum(FlatParameters(model).gather() for model in models) / N
    FlatParameters(at_mean).point_to(FlatParameters(at_mean).views(w_a))
    batches = [digits(10 + rank, 6, torch.float64) for rank in range(N)]
    shards = [[digits(20 + 4 * rank + i, 7, torch.float64) for i in range(4)] for rank in range(N)]
    table, barrier = [None] * N, threading.Barrier(N, timeout=60)

    def measured_by(rank):
        algorithm = StandIn(Together(rank, table, barrier), models[rank], w_a)

        def loss(batch):
            return F.cross_entropy(models[rank](batch[0]), batch[1])

        return measure(algorithm, loss, [batches[rank]], shards[rank], LR, sampled=True, hessian=True)

    with ThreadPoolExecutor(N) as pool:
        measured, *others = pool.map(measured_by, range(N))
    assert others == [measured, measured]

    g_a = sum(gradient(model, batch) for model, batch in zip(models, batches, strict=True)) / N
    deviations = [flat(model) - flat(at_mean) for model in models]

    def by_hand(groups):
        train = tuple(torch.cat(column) for column in zip(*groups, strict=True))
        g, h = gradient(at_mean, train), hessian_at(at_mean, train)
        return [float(LR * g_a @ g / (g @ g)), LR**2 / N**2 * float(sum((h @ d).square().sum() for d in deviations))]

    groups = [batch for shard in shards for batch in shard]
    without = [by_hand(groups[:i] + groups[i + 1 :]) for i in range(len(groups))]
    rate, eq_5 = intervals.jackknife(by_hand(groups), without)
    for name, expected in (("effective_lr", rate), ("noise_2_hessian", eq_5)):
        found = [measured[name], measured[f"{name}_low"], measured[f"{name}_high"]]
        assert found == pytest.approx(list(expected), rel=1e-8)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """|mean|^2 of ten groups of five, a quantity that is biased on a sample: by 3 / 50 at 3 dimensions."""
    numbers = torch.Generator().manual_seed(0)
    truth = torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64)
    held, values = 0, []
    for _ in range(400):
        mean = intervals.SampleMean(10, 3, torch.device("cpu"))
        for group in torch.randn(10, 5, 3, generator=numbers, dtype=torch.float64) + truth:
            mean.add(group.mean(0), 5)
        whole = float(mean.gather(Alone()).square().sum())
        without = [[float(rest.square().sum())] for rest in mean.without_each_group()]
        [(value, low, high)] = intervals.jackknife([whole], without)
        held += low <= float(truth @ truth) <= high
        values.append(value)
    assert 0.91 <= held / 400 <= 0.98
    average, error = intervals.mean_and_error(values)
    assert abs(average - float(truth @ truth)) < 3 * error < 0.06


class Alone:
    def sum(self, tensor):
        return tensor.clone()


def test_of_a_mean_the_jackknife_is_the_usual_interval():
    values = [3.0, 5.0, 4.0, 8.0]
    without = [[(sum(values) - value) / 3] for value in values]
    [(middle, low, high)] = intervals.jackknife([5.0], without)
    average, error = intervals.mean_and_error(values)
    assert middle == pytest.approx(average)
    assert (high - low) / 2 == pytest.approx(intervals.student_t(3) * error)


@pytest.mark.parametrize(
    ("freedom", "quantile"), [(1, 12.706), (2, 4.303), (3, 3.182), (6, 2.447), (9, 2.262), (30, 2.042), (10**6, 1.960)]
)
def test_student_s_quantiles_match_the_table(freedom, quantile):
    assert intervals.student_t(freedom) == pytest.approx(quantile, rel=0.02 if freedom == 3 else 1e-3)


def test_without_groups_there_is_a_value_and_no_interval():
    [(value, low, high)] = intervals.jackknife([2.0], [])
    assert value == 2 and math.isnan(low) and math.isnan(high)


# Gradient diversity


def test_gradient_diversity_is_1_over_n_for_equal_and_1_for_orthogonal_gradients():
    equal, orthogonal = torch.ones(4, 3), torch.eye(4)
    for gradients, expected in ((equal, 0.25), (orthogonal, 1.0)):
        squares = float(gradients.square().sum(1).mean())
        assert diversity(squares, gradients.mean(0), 4) == pytest.approx(expected)
    assert diversity(1.0, torch.zeros(3), 4) == math.inf
    assert math.isnan(diversity(0.0, torch.zeros(3), 4))


# noise(), the identities

vectors = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=6, max_size=6).map(
    lambda numbers: torch.tensor(numbers, dtype=torch.float64)
)
nonzero = vectors.filter(lambda v: v.norm() > 1)
fuzz = settings(max_examples=100, deadline=None, derandomize=True)


@fuzz
@given(g=nonzero, factor=st.floats(-3, 3), lr=st.floats(0.01, 5))
def test_a_gradient_along_g_has_no_noise(g, factor, lr):
    alpha_e, delta = noise(factor * g, g, lr)
    assert alpha_e == pytest.approx(factor * lr, abs=1e-12)
    assert delta == pytest.approx(0, abs=1e-20 * float(g @ g))


@fuzz
@given(g_a=vectors, g=nonzero, lr=st.floats(0.01, 5))
def test_the_noise_is_orthogonal_to_g_and_pythagoras_holds(g_a, g, lr):
    alpha_e, delta = noise(g_a, g, lr)
    remainder = lr * g_a - alpha_e * g
    scale = lr**2 * float(g_a @ g_a) + 1
    assert float(remainder @ g) == pytest.approx(0, abs=1e-12 * math.sqrt(scale) * float(g.norm()))
    assert delta + alpha_e**2 * float(g @ g) == pytest.approx(lr**2 * float(g_a @ g_a), abs=1e-12 * scale)
    assert 0 <= delta <= scale


@fuzz
@given(g_a=vectors, g=nonzero, lr=st.floats(0.01, 5), factor=st.floats(0.1, 9))
def test_noise_scales_with_the_square_of_the_rate_and_not_with_g(g_a, g, lr, factor):
    alpha_e, delta = noise(g_a, g, lr)
    assert noise(g_a, g, factor * lr) == pytest.approx((factor * alpha_e, factor**2 * delta), rel=1e-9, abs=1e-9)
    assert noise(g_a, factor * g, lr) == pytest.approx((alpha_e / factor, delta), rel=1e-9, abs=1e-9)


def test_a_gradient_across_g_is_all_noise():
    g, g_a = torch.tensor([3.0, 4.0]), torch.tensor([-8.0, 6.0])
    assert noise(g_a, g, 0.5) == (0, 25)


def test_where_the_full_gradient_vanishes_the_effective_rate_is_nan():
    alpha_e, _ = noise(torch.ones(3), torch.zeros(3), 0.5)
    assert math.isnan(alpha_e)


# In the loop


class Augmented(Task):
    """A classification whose inputs training sees with their sign changed, whatever the samples are."""

    samples, classes, data = 60, 3, "random numbers"

    def __init__(self):
        self.whole = digits(0, self.samples, torch.float32)
        self.sizes = []

    def make_model(self):
        return nn.Linear(4, 3)

    def train_batches(self, indices):
        for chosen in indices:
            self.sizes.append(len(chosen))
            yield -self.whole[0][chosen], self.whole[1][chosen]

    def shard_batches(self, part, shard, shards):
        yield tuple(each[shard::shards] for each in self.whole)

    def loss(self, model, batch):
        return F.cross_entropy(model(batch[0]), batch[1])

    def score(self, model, batch):
        return Score(float(self.loss(model, batch)), 0.0, len(batch[0]))


@pytest.mark.parametrize(("samples", "at_once"), [(None, 10), (60, 6)])
def test_the_full_gradient_is_of_what_is_trained_on(us, tmp_path, samples, at_once):
    """Augmented as a step is: a step of the whole training set has the full loss, and no noise."""
    keys = {"task": "own", "model": "linear", "lr": LR, "batch_size": 60, "accumulate": 6, "max_steps": 2}
    keys |= {"diagnostics": True, "diagnostics_every": 1, "diagnostics_samples": samples}
    recipe = Recipe(**keys, log_every=1, checkpoint_every=0)
    task = Augmented()
    trainer = Trainer(recipe, task, us, tmp_path)
    try:
        trainer.train()
    finally:
        trainer.close()
    assert set(task.sizes) == {60, at_once}  # a step, and what is computed at once
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train_loss"] for line in lines if "train_loss" in line]
    measured = [line for line in lines if "full_loss" in line]
    assert [line["full_loss"] for line in measured] == pytest.approx(losses, rel=1e-5)
    if samples is None:
        assert [line["effective_lr"] for line in measured] == pytest.approx([LR, LR], rel=1e-4)
