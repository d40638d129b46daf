"""Mixing alone, by every exchange: weights become the matrices' product with them, and their mean stays."""

from functools import partial

import problems
import torch

from horovod_dpsgd import gossip, topology
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters

BFLOAT16 = 2.0**-8  # the largest relative error of rounding to it


def by_nodes(us, parameters, graph):
    """`complete` on one node, for models that are too small for it to be chosen."""
    divides = graph.name == "complete" and us.nodes == 1 and problems.DEVICE == "cpu"
    return (
        gossip.NodeExchange(us, parameters, topology.Hierarchical(us.size))
        if divides
        else gossip.create(us, parameters, graph)
    )


def summed(us, parameters, graph):
    return (
        gossip.AllReduceExchange(us, parameters) if graph.name == "complete" else gossip.create(us, parameters, graph)
    )


EXCHANGES = {  # by what mixes, and how far it may be from the product
    "chosen": (gossip.create, 1e-12),
    "by nodes": (by_nodes, 1e-12),
    "summed": (summed, 1e-12),
    "in place": (partial(gossip.NeighbourExchange, staged=False), 1e-12),
    "staged": (partial(gossip.NeighbourExchange, staged=True), 1e-12),
    "compressed": (partial(gossip.NeighbourExchange, compressed=True), 6 * 2 * BFLOAT16 * 4),  # steps x sides x |w|
}


def check(us: Learners) -> None:
    for kind, (make, tolerance) in EXCHANGES.items():
        if kind == "in place" and problems.DEVICE != "cpu":
            continue
        for name in problems.topologies():
            net = problems.model()
            torch.manual_seed(us.rank)
            for p in net.parameters():
                p.data.normal_().clamp_(-4, 4)
            start = problems.flat(net)
            graph = topology.create(name, us.size, seed=1, node_of=us.node_of)
            exchange = make(us, FlatParameters(net), graph)
            product = torch.eye(us.size, dtype=torch.float64, device=problems.DEVICE)
            for step in range(6):
                exchange.begin(step)
                exchange.mix()
                exchange.publish()
                product = torch.from_numpy(graph.matrix(step)).to(problems.DEVICE) @ product
            torch.testing.assert_close(us.mean(problems.flat(net)), us.mean(start), rtol=0, atol=1e-12)
            expected = product[us.rank] @ torch.stack(us.gather(start))
            torch.testing.assert_close(problems.flat(net), expected, rtol=0, atol=tolerance)
            exact = torch.allclose(problems.flat(net), expected, rtol=0, atol=1e-9)
            assert exact or kind == "compressed"
            assert not exact or kind != "compressed" or us.size == 1, "nothing was rounded"
            exchange.close()
            torch.testing.assert_close(problems.flat(net), expected, rtol=0, atol=tolerance)
    if us.rank == 0:
        print("kept")


problems.on_each(problems.parser().parse_args().nodes, check)
