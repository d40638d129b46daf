"""DPSGD over MPI against eq. 2 computed in one process, for every topology and three optimizers."""

import problems
import torch

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms.dpsgd import DPSGD

STEPS = 12

us = problems.start(problems.arguments().apart)
for name in topology.TOPOLOGIES:
    for optimizer in problems.OPTIMIZERS:
        graph = topology.create(name, us.size, seed=3)
        net = problems.model()
        algorithm = DPSGD(problems.OPTIMIZERS[optimizer](net.parameters()), net, us, graph)
        for step in range(STEPS):
            algorithm.begin_step()
            algorithm.optimizer.zero_grad()
            problems.loss(net, problems.batch(step, us.rank)).backward()
            algorithm.end_step()
            assert algorithm.exchange.step == step + 1, "one step of the topology per step of the optimizer"
        everyone = problems.reference_dpsgd(optimizer, graph, STEPS)
        torch.testing.assert_close(problems.flat(net), everyone[us.rank], rtol=0, atol=1e-6)
        with algorithm.averaged():
            torch.testing.assert_close(problems.flat(net), torch.stack(everyone).mean(0), rtol=0, atol=1e-6)
        torch.testing.assert_close(problems.flat(net), everyone[us.rank], rtol=0, atol=1e-6)
        algorithm.close()
        torch.testing.assert_close(problems.flat(net), everyone[us.rank], rtol=0, atol=1e-6)
        if us.rank == 0:
            print(f"{name} {optimizer} {us.size} equal")
