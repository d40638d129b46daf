"""Mixing alone: weights become the matrices' product with them, and their mean stays; slots in place and staged."""

import problems
import torch

from horovod_dpsgd import gossip, topology
from horovod_dpsgd.parameters import FlatParameters

us = problems.start(problems.arguments().apart)
for staged in (False, True):
    for name in topology.TOPOLOGIES:
        net = problems.model()
        torch.manual_seed(us.rank)
        for p in net.parameters():
            p.data.normal_()
        start = problems.flat(net)
        graph = topology.create(name, us.size, seed=1)
        exchange = gossip.NeighbourExchange(us, FlatParameters(net), graph, staged=staged)
        product = torch.eye(us.size, dtype=torch.float64)
        for step in range(6):
            exchange.begin(step)
            exchange.mix()
            exchange.publish()
            product = torch.from_numpy(graph.matrix(step)) @ product
        torch.testing.assert_close(us.mean(problems.flat(net)), us.mean(start), rtol=0, atol=1e-12)
        everyone = torch.stack(us.gather(start))
        torch.testing.assert_close(problems.flat(net), product[us.rank] @ everyone, rtol=0, atol=1e-12)
        exchange.close()
if us.rank == 0:
    print("kept")
