"""How one delay spreads: a learner loses D computations once, all else takes equal times; who is late, how much?

DPSGD's learners wait only for what their partners had ready one step ago, so that a computation's time is slack at
every meeting: whoever meets a learner that is d computations late is d - 1 late from then on. So a delay below one
computation reaches nobody, and one of D reaches learners in waves, each a computation weaker. With p_g(t) the share of
learners that are at least D - g late t steps after the delayed one, and q_g(t) the share that has become so at t by
the second of two ways,

    p_g(t+1) = 1 - (1 - p_g(t)) (1 - p_g-1(t)) (1 - q_g-1(t))
    q_g(t+1) = (1 - p_g(t)) (1 - p_g-1(t)) q_g-1(t)

where p_0 = 1/n at all times, and p_g(0) = q_g(0) = 1/n. The first way is to read from one who is late. The second is to
write over what the partner of the step before was late to read; that is news only if it did not become late by reading
from oneself. It is a mean-field formula: it takes meetings for independent. Under SSGD all are D late at once, under
AD-PSGD nobody but the learner itself is.
"""

from __future__ import annotations

import numpy as np

from benchmarks.runtime import waiting
from benchmarks.runtime.waiting import Times

NEARLY = 1e-6  # computations: what rounding makes of equal times


def simulated(
    topology: str, n: int, delay: float, steps: int, per_node: int = 1, runs: int = 40, seed: int = 0
) -> np.ndarray:
    """How late learners are, in computations: [runs, steps, n], of the steps from the delayed one on."""
    late = np.empty((runs, steps, n))
    for run in range(runs):
        rng = np.random.default_rng((seed, run))
        waits = waiting.WAITS[topology](n, per_node, rng)
        computing = np.ones((steps, n))
        computing[0, rng.integers(n)] += delay
        for step, ends in enumerate(waiting.ends_of_steps(waits, Times(1.0), iter(computing))):
            late[run, step] = ends - (step + 1)
    return late


def share_late(late: np.ndarray, least: float) -> np.ndarray:
    """[steps]: the mean share of learners that are at least so late."""
    return np.mean(late >= least - NEARLY, axis=(0, 2))


def mean_field(n: int, waves: int, steps: int) -> np.ndarray:
    """p_g(t) for random matchings, [waves + 1, steps]: the share of learners that wave g or an earlier one has reached.

    steps count from the delayed one, at whose end the learner itself, wave 0, is late.
    """
    p, q = np.zeros((2, waves + 1, steps))
    p[:, 0] = q[:, 0] = p[0] = 1 / n
    for t in range(1, steps):
        for g in range(1, waves + 1):
            not_by_reading = (1 - p[g, t - 1]) * (1 - p[g - 1, t - 1])
            p[g, t] = 1 - not_by_reading * (1 - q[g - 1, t - 1])
            q[g, t] = not_by_reading * q[g - 1, t - 1]
    return p
