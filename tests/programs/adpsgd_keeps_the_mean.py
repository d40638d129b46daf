"""AD-PSGD's averages with injected delays: whole vectors, whose sum is exactly what began plus what was added.

Every learner's weights are one number repeated, so a vector with two values in it is one that two learners averaged at
once. All numbers are multiples of a power of two large enough that no sum, half or difference rounds: the sum over
learners must be right to the last bit.

usage: adpsgd_keeps_the_mean.py STEPS NUMEL [--nodes 011 ...] [--device cuda]
"""

import random
import time
from fractions import Fraction

import problems
import torch
from torch import nn

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms.adpsgd import initiates
from horovod_dpsgd.gossip import PairAveraging
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters


class Add:
    """An update that adds a number, in blocks, slowly."""

    def __init__(self, numel: int, delays: random.Random) -> None:
        self.sizes = [numel // 3, numel - numel // 3]
        self.number = 0.0
        self.delays = delays

    def __call__(self, index: int, weights: torch.Tensor) -> None:
        weights.add_(self.number)
        if self.delays.random() < 0.2:
            time.sleep(self.delays.random() * 1e-3)


parser = problems.parser()
parser.add_argument("steps", type=int)
parser.add_argument("numel", type=int)
given = parser.parse_args()


def check(us: Learners) -> None:
    net = nn.Module()
    net.weights = nn.Parameter(
        torch.full((given.numel,), float(3 * us.rank), dtype=torch.float64, device=problems.DEVICE)
    )
    parameters = FlatParameters(net)
    graph = topology.create("matching", us.size, seed=11)
    pairs = PairAveraging(us, parameters)
    pairs.weights.fill_(3.0 * us.rank)
    pairs.restart(0)
    delays = random.Random(us.rank)
    update = Add(parameters.numel, delays)
    added = 3 * us.rank
    for step in range(given.steps):
        partner = graph.partner(step, us.rank)
        pairs.begin(partner if partner is not None and initiates(us.rank, partner, step) else None)
        if delays.random() < 0.5:
            time.sleep(delays.random() * 5e-3 * us.rank)  # the higher ranks fall behind
        update.number = delays.randrange(8)
        added += update.number
        pairs.mix(update)
        assert (pairs.weights == pairs.weights[0]).all(), f"learner {us.rank}, step {step}: {pairs.weights.unique()}"
        if step == given.steps // 2:
            pairs.settle()
            assert torch.equal(pairs.weights.cpu(), pairs.shared), "nobody averages before all have settled"
            us.barrier()
    pairs.settle()
    assert (pairs.shared == pairs.shared[0]).all(), f"learner {us.rank}: {pairs.shared.unique()}"
    assert torch.equal(pairs.weights.cpu(), pairs.shared)
    total = sum(Fraction(x) for x in us.gather(pairs.shared[0].item()))
    assert total == sum(us.gather(added)), f"{total} for {sum(us.gather(added))}"
    averages = us.gather(pairs.averages)
    assert sum(averages) == 2 * (given.steps * (us.size // 2) - sum(us.gather(pairs.skipped))), averages
    assert sum(pairs.staleness.values()) == given.steps
    assert sum(changes * count for changes, count in pairs.staleness.items()) <= pairs.averages
    pairs.close()
    assert (net.weights == net.weights[0]).all()
    if us.rank == 0:
        print("exact after", averages)


problems.on_each(given.nodes, check)
