"""What a run is judged by: the model at w_a on the held-out part, and each learner's own model beside it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from horovod_dpsgd.algorithms import Algorithm
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training.task import Score, Task, to_device


@dataclass(frozen=True)
class Heldout:
    """Mean loss a sample (nats) and error in per cent; the same for each of the task's groups of samples, by name; and
    the task's other errors in per cent, under the names that they have in results."""

    loss: float
    error_percent: float
    groups: dict[str, Heldout] = field(default_factory=dict)
    other_error_percents: dict[str, float] = field(default_factory=dict)


def evaluate_averaged(algorithm: Algorithm, task: Task) -> Heldout:
    """The model at w_a on the held-out part, divided among the learners. Collective."""
    us = algorithm.learners
    with algorithm.averaged():
        share = _score(algorithm, task, us.rank, us.size)
    return _mean(us.sum(share), task)


def evaluate_own(algorithm: Algorithm, task: Task) -> list[Heldout]:
    """Every learner's own model on the whole held-out part, by rank. Collective."""
    return algorithm.learners.gather(_mean(_score(algorithm, task, 0, 1), task))


def consensus_distance(algorithm: Algorithm) -> float:
    """The root mean square over learners of |w_j - w_a|. Collective."""
    us: Learners = algorithm.learners
    own = algorithm.parameters.gather()
    deviation = own - us.mean(own)
    return us.mean_of(float(deviation.double().square().sum())) ** 0.5


@torch.no_grad()
def _score(algorithm: Algorithm, task: Task, shard: int, shards: int) -> Tensor:
    """Sums over all samples, and over those of each group, float64 [1 + groups, 3 + other errors]: of loss, errors,
    samples, and other errors, which groups have none of."""
    model, device = algorithm.model, algorithm.parameters.device.type
    training = model.training
    model.eval()
    sums = torch.zeros(1 + len(task.groups), 3 + len(task.other_errors), dtype=torch.float64)
    for batch in task.shard_batches("heldout", shard, shards):
        score = task.score(model, to_device(batch, device))
        sums[:, :3] += torch.tensor([_sums(score), *map(_sums, score.groups)], dtype=torch.float64)
        sums[0, 3:] += torch.tensor(score.other_errors, dtype=torch.float64)
    model.train(training)
    return sums


def _sums(score: Score) -> list[float]:
    return [score.loss, score.errors, score.samples]


def _mean(sums: Tensor, task: Task) -> Heldout:
    """Of a group without samples: NaN."""
    everything, *groups = (Heldout(float(row[0] / row[2]), float(100 * row[1] / row[2])) for row in sums)
    others = (100 * sums[0, 3:] / sums[0, 2]).tolist()
    return replace(
        everything,
        groups=dict(zip(task.groups, groups, strict=True)),
        other_error_percents={
            f"{name}_error_percent": percent for name, percent in zip(task.other_errors, others, strict=True)
        },
    )
