"""Learners slowed down on purpose, to see what an algorithm makes of it: one by a factor, all by random delays."""

from __future__ import annotations

import math

from horovod_dpsgd.learners import seed_for

RESOLUTION = 53  # bits of a double


def random_delay(seed: int, rank: int, step: int) -> float:
    """Exponentially distributed with mean 1, and the same for (seed, rank, step) in every run and on every machine."""
    uniform = (seed_for("jitter", seed, rank, step) >> (63 - RESOLUTION)) / 2**RESOLUTION
    return -math.log1p(-uniform)


def delay(factor: float, jitter: float, seed: int, rank: int, step: int) -> float:
    """How long a learner waits at `step`, as a multiple of the time it has computed in it.

    It then looks `factor` times slower, and its steps take 1 + jitter x E times that, E exponential with mean 1: so
    their mean is 1 + jitter, and their standard deviation jitter, of what they are without.
    """
    late = jitter * random_delay(seed, rank, step) if jitter else 0.0
    return factor * (1 + late) - 1
