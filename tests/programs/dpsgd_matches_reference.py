"""DPSGD over MPI against eq. 2 computed in one process, for every topology and three optimizers."""

import sys

import problems

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms import Settings
from horovod_dpsgd.algorithms.dpsgd import DPSGD
from horovod_dpsgd.learners import Learners

STEPS = 12
CLIP_NORM = {"momentum": 0.5}  # by optimizer, else none


def check(us: Learners) -> None:
    for name in problems.topologies():
        for optimizer in problems.OPTIMIZERS:
            graph = topology.create(name, us.size, seed=3, node_of=us.node_of)
            net = problems.model()
            weights = [p for p in net.parameters() if p.requires_grad]
            settings = Settings(graph, clip_norm=CLIP_NORM.get(optimizer))
            algorithm = DPSGD(problems.OPTIMIZERS[optimizer](weights), net, us, settings)
            for step in range(STEPS):
                algorithm.begin_step()
                algorithm.optimizer.zero_grad()
                problems.loss(net, problems.batch(step, us.rank)).backward()
                algorithm.end_step()
                assert algorithm.exchange.step == step + 1, "one step of the topology per step of the optimizer"
            reference = problems.reference_dpsgd(optimizer, graph, STEPS, settings.clip_norm)
            problems.assert_same(net, [reference[us.rank]])
            with algorithm.averaged():
                problems.assert_same(net, reference)
            problems.assert_same(net, [reference[us.rank]])
            algorithm.close()
            problems.assert_same(net, [reference[us.rank]])
            if us.rank == 0:
                print(f"{name} {optimizer} {us.size} equal")


problems.on_each(problems.parser().parse_args().nodes, check)
assert not any(name.startswith("horovod.") for name in sys.modules), "its background thread costs CPU"
