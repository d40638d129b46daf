"""How far a quantity that was computed on a sample may be from that of the whole training set.

Effective learning rate, noise strength and eq. 5 are functions of a mean over samples (a gradient, a Hessian-vector
product), and not linear ones: on a sample they are biased as well as uncertain. The jackknife (Quenouille 1949, Tukey
1958) sees both by leaving out one group of samples at a time, and needs no second pass over the data.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd.learners import Learners

GROUPS = 10  # of samples, over all learners, at least
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A number with its interval of 95 % confidence."""

    value: float
    low: float
    high: float


class SampleMean:
    """The mean of a vector [numel] over the samples of all learners, in float64, and the means without a group of them.

    Each learner puts what it adds into `groups` groups in turn; groups = 1 where no interval is wanted. It keeps a
    vector for each.
    """

    def __init__(self, groups: int, numel: int, device: torch.device) -> None:
        self._sums = torch.zeros(groups, numel + 1, dtype=torch.float64, device=device)  # the last: samples
        self._added = 0

    def add(self, vector: Tensor, samples: int) -> None:
        """The mean `vector` of so many samples."""
        group = self._sums[self._added % len(self._sums)]
        group[:-1] += samples * vector
        group[-1] += samples
        self._added += 1

    def gather(self, learners: Learners) -> Tensor:
        """The mean over all learners' samples, [numel]. Collective."""
        self._total = learners.sum(self._sums.sum(0))
        return self._total[:-1] / self._total[-1]

    def without_each_group(self) -> Iterator[Tensor]:
        """For every group of this learner that has samples, the mean over all other groups of all learners."""
        for group in self._sums[: self._added]:
            rest = self._total - group
            yield rest[:-1] / rest[-1]


def groups_of_a_learner(learners: int) -> int:
    return -(-GROUPS // learners)


def jackknife(whole: Sequence[float], without: Sequence[Sequence[float]]) -> list[Estimate]:
    """Estimates of several quantities, freed of the bias that falls as 1 / samples, from their values on all samples
    and without each of the groups (whose sizes should differ little). Of less than two groups no interval can be had.
    """
    groups = len(without)
    if groups < 2:
        return [Estimate(value, math.nan, math.nan) for value in whole]
    with np.errstate(invalid="ignore"):  # a model that has blown up
        pseudo = groups * np.asarray(whole) - (groups - 1) * np.asarray(without)
        reach = student_t(groups - 1) * pseudo.std(axis=0, ddof=1) / math.sqrt(groups)
    return [
        Estimate(float(middle), float(middle - half), float(middle + half))
        for middle, half in zip(pseudo.mean(axis=0), reach, strict=True)
    ]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """The mean of independent values and its standard error, which is NaN for one value, and if any is not finite."""
    known = len(values) > 1 and all(map(math.isfinite, values))  # stdev raises an AttributeError of others
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values)) if known else math.nan


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The quantile of Student's t for a two-sided interval: the number of standard errors it reaches.

    Closed forms for 1 and 2 degrees of freedom, from 3 on the expansion about the normal quantile of Abramowitz and
    Stegun, 26.7.5: 2 % off at 3, less than 0.1 % from 6 on.
    """
    if freedom == 1:
        return math.tan(math.pi / 2 * confidence)
    if freedom == 2:
        return confidence * math.sqrt(2 / (1 - confidence**2))
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))
