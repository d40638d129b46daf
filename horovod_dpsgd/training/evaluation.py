"""What a run is judged by: the model at w_a on the held-out part, and each learner's own model beside it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from horovod_dpsgd.algorithms import Algorithm
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training.task import Score, Task, to_device


@dataclass(frozen=True)
class Heldout:
    """Mean loss a sample (nats) and error in per cent."""

    loss: float
    error_percent: float


def evaluate_averaged(algorithm: Algorithm, task: Task) -> Heldout:
    """The model at w_a on the held-out part, divided among the learners. Collective."""
    us = algorithm.learners
    with algorithm.averaged():
        share = _score(algorithm, task, us.rank, us.size)
    return _mean(Score(*us.sum(torch.tensor(share, dtype=torch.float64)).tolist()))


def evaluate_own(algorithm: Algorithm, task: Task) -> list[Heldout]:
    """Every learner's own model on the whole held-out part, by rank. Collective."""
    return algorithm.learners.gather(_mean(_score(algorithm, task, 0, 1)))


def consensus_distance(algorithm: Algorithm) -> float:
    """The root mean square over learners of |w_j - w_a|. Collective."""
    us: Learners = algorithm.learners
    own = algorithm.parameters.gather()
    deviation = own - us.mean(own)
    return us.mean_of(float(deviation.double().square().sum())) ** 0.5


@torch.no_grad()
def _score(algorithm: Algorithm, task: Task, shard: int, shards: int) -> Score:
    model, device = algorithm.model, algorithm.parameters.device.type
    training = model.training
    model.eval()
    batches = task.shard_batches("heldout", shard, shards)
    scores = [task.score(model, to_device(batch, device)) for batch in batches]
    model.train(training)
    return Score(*(sum(column) for column in zip(*scores, strict=True))) if scores else Score(0.0, 0.0, 0.0)


def _mean(sums: Score) -> Heldout:
    return Heldout(sums.loss / sums.samples, 100 * sums.errors / sums.samples)
