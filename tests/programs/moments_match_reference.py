"""DPSGD with moments mixed, over MPI, against the same in one process; and again from the state of half-way."""

import problems
import torch

from horovod_dpsgd import topology
from horovod_dpsgd.algorithms import Settings
from horovod_dpsgd.algorithms.dpsgd import DPSGD
from horovod_dpsgd.learners import Learners

STEPS, HALF = 12, 5
CLIP_NORM = 0.5
TOPOLOGIES = ("matching", "ring", "complete", "hierarchical")  # those that differ in the exchange


def start(us: Learners, name: str, optimizer: str) -> DPSGD:
    net = problems.model()
    weights = [p for p in net.parameters() if p.requires_grad]
    graph = topology.create(name, us.size, seed=3, node_of=us.node_of)
    settings = Settings(graph, clip_norm=CLIP_NORM, mix_moments=True)
    return DPSGD(problems.OPTIMIZERS[optimizer](weights), net, us, settings)


def train(algorithm: DPSGD, steps: int) -> None:
    while algorithm.step < steps:
        step = algorithm.step
        algorithm.begin_step()
        algorithm.optimizer.zero_grad()
        problems.loss(algorithm.model, problems.batch(step, algorithm.learners.rank)).backward()
        algorithm.end_step()


def check(us: Learners) -> None:
    for name in problems.topologies(TOPOLOGIES):
        for optimizer in ("momentum", "adam"):
            graph = topology.create(name, us.size, seed=3, node_of=us.node_of)
            reference = problems.reference_dpsgd(optimizer, graph, STEPS, CLIP_NORM, mix_moments=True)
            algorithm = start(us, name, optimizer)
            train(algorithm, HALF)
            state = algorithm.state_dict()
            for moments in state["optimizer"]["state"].values():
                assert all(each.untyped_storage().nbytes() == each.nbytes for each in moments.values()), "copies"
            if name != "hierarchical":  # there learners share the work in pieces that are not quite equal
                more = algorithm.bytes_sent(HALF) - (3 if optimizer == "adam" else 2) * algorithm.exchange.bytes_sent(
                    HALF
                )
                assert abs(more) <= 3, "two moments, or one, beside the weights; an all-reduce's bytes are rounded"
            train(algorithm, STEPS)
            problems.assert_same(algorithm.model, [reference[us.rank]])
            algorithm.load_state_dict(state)
            train(algorithm, STEPS)
            problems.assert_same(algorithm.model, [reference[us.rank]])
            algorithm.close()
            held = [each for each in algorithm.optimizer.state.values() if each]
            assert held and all(torch.isfinite(value).all() for each in held for value in each.values())
            if us.rank == 0:
                print(f"{name} {optimizer} {us.size} equal")


problems.on_each(problems.parser().parse_args().nodes, check)
