"""Exchanges with unequal delays: every value read is the one published for that step, whole, and no other.

Learner j publishes the constant vector c_j(t) for step t; a mixed vector that is not exactly the mean of its partners'
constants for this step, in every element, was torn or stale.

usage: no_torn_reads.py EXCHANGES TOPOLOGY NUMEL [--nodes 011] [--device cuda]
"""

import random
import time

import problems
import torch
from torch import nn

from horovod_dpsgd import gossip, topology
from horovod_dpsgd.parameters import FlatParameters

parser = problems.parser()
parser.add_argument("exchanges", type=int, help="of all learners together")
parser.add_argument("topology")
parser.add_argument("numel", type=int)
given = parser.parse_args()
numel = given.numel
us = problems.start(*given.nodes)
net = nn.Module()
net.weights = nn.Parameter(torch.empty(numel, dtype=torch.float64, device=problems.DEVICE))
graph = topology.create(given.topology, us.size, seed=11, node_of=us.node_of)
steps = given.exchanges // us.size  # an exchange is one learner's


def constant(rank: int, step: int) -> float:
    return float(step * us.size + rank)  # no two alike, and exact in float64


net.weights.data.fill_(constant(us.rank, 0))
exchange = gossip.create(us, FlatParameters(net), graph)
delays = random.Random(us.rank)


def be_late(chance: float = 0.05) -> None:
    """On a GPU: what is queued after this is done some 10 ms later."""
    if problems.DEVICE == "cuda" and delays.random() < chance:
        torch.cuda._sleep(20_000_000)


for step in range(steps):
    exchange.begin(step)
    be_late(1.0 if step == 0 else 0.05)
    if step == 0:  # memory as large as what is received, freed while work on it is still queued
        torch.full_like(exchange.weights, -1.0)
    if delays.random() < 0.02:
        time.sleep(delays.random() * 2e-3 * us.rank)
    exchange.mix()
    expected = sum(weight * constant(k, step) for k, weight in graph.row(step, us.rank).items())
    read = exchange.weights[:numel]
    assert torch.equal(read, torch.full_like(read, read[0].item())), (
        f"learner {us.rank}, step {step}: torn, {read.unique()}"
    )
    assert abs(read[0].item() - expected) <= 1e-6, f"learner {us.rank}, step {step}: stale, {read[0]} for {expected}"
    be_late()
    exchange.weights.fill_(constant(us.rank, step + 1))
    exchange.publish()
exchange.close()
if us.rank == 0:
    print(f"{steps * us.size} exchanges, none torn or stale")
