"""What exchanges say they send, against what the mixing matrices and the learners' nodes say is to be sent."""

import problems
import torch
from torch import nn

from horovod_dpsgd import algorithms, gossip, topology
from horovod_dpsgd.parameters import FlatParameters

NUMEL = 16_000
us = problems.start(*problems.parser().parse_args().nodes)
net = nn.Module()
net.weights = nn.Parameter(torch.zeros(NUMEL))
model = 4 * NUMEL
ranks = range(us.size)
pairs = [(j, k) for j in ranks for k in ranks if j != k]
between = [(j, k) for j, k in pairs if us.node_of[j] != us.node_of[k]]


def of_all(sender, step):
    """(everything, between nodes), of all learners together."""
    sent = us.gather((sender.bytes_sent(step), sender.bytes_sent(step, between_nodes=True)))
    assert all(0 <= away <= everything for everything, away in sent), sent
    return tuple(sum(column) for column in zip(*sent, strict=True))


def read(graph, step, these):
    """How many of these pairs' learners read each other."""
    matrix = graph.matrix(step)
    return sum(matrix[j, k] > 0 for j, k in these)


for name in ("matching", "ring", "random-ring", "exponential"):
    graph = topology.create(name, us.size, seed=2)
    for compressed in (False, True):
        exchange = gossip.create(us, FlatParameters(net), graph, compressed)
        for step in range(8):
            expected = tuple(model // (1 + compressed) * read(graph, step, these) for these in (pairs, between))
            assert of_all(exchange, step) == expected, (name, step)
        exchange.close()
    settings = algorithms.Settings(graph)
    adpsgd = algorithms.find("adpsgd")(torch.optim.SGD(net.parameters(), lr=0.1), net, us, settings)
    for step in range(8):
        partners = [graph.partners(step, j) for j in ranks]
        away = [sum((j, k) in between for k in partners[j]) / max(1, len(partners[j])) for j in ranks]
        expected = (model * sum(map(bool, partners)), sum(int(model * share) for share in away))
        assert of_all(adpsgd, step) == expected, (name, step)
    adpsgd.exchange.skipped += 3 + us.rank
    assert adpsgd.skipped_averages == 3 + us.rank
    adpsgd.close()

graph = topology.create("hierarchical", us.size, seed=2, node_of=us.node_of)
exchange = gossip.create(us, FlatParameters(net), graph)
for step in range(8):
    matched = sum(graph.partner_node(step, node) is not None for node in range(us.nodes))
    assert of_all(exchange, step)[1] == model * matched, "a model for each node that has a partner"
exchange.close()

summed = gossip.AllReduceExchange(us, FlatParameters(net))
ring = [(j, (j + 1) % us.size) for j in ranks]
each = 2 * model * (us.size - 1) // us.size
assert of_all(summed, 0) == (us.size * each, each * sum(edge in between for edge in ring))
summed.close()
if us.rank == 0:
    print("counted")
