"""Learning rates as functions of the step, t = 0, 1, 2, ...: a schedule of 1,500 steps is a curve that can be drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def constant(lr: float) -> Schedule:
    return lambda step: lr


def step_decay(lr: float, milestones: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`lr`, multiplied by `gamma` at each of the steps in `milestones`."""
    return lambda step: lr * gamma ** sum(step >= milestone for milestone in milestones)


def exponential_decay(lr: float, start: int, every: int, gamma: float = math.sqrt(0.5)) -> Schedule:
    """`lr` up to step `start`, then multiplied by `gamma` every `every` steps, the first time at `start`.

    With gamma = 1/sqrt(2) and an epoch for `every`: the annealing of the paper's speech tasks (Section 4.2).
    """
    return lambda step: lr if step < start else lr * gamma ** ((step - start) // every + 1)


def cosine_decay(lr: float, start: int, end: int) -> Schedule:
    """`lr` at step `start`, 0 at step `end`, half a cosine between them."""

    def rate(step: int) -> float:
        progress = min(max(step - start, 0) / max(end - start, 1), 1.0)
        return lr * 0.5 * (1 + math.cos(math.pi * progress))

    return rate


def linear_warmup(schedule: Schedule, steps: int, start_lr: float = 0.0) -> Schedule:
    """For the first `steps` steps a line from `start_lr` to the schedule's rate, a bit each step (Goyal et al. 2017).

    Step 0 takes the first bit already, step `steps` - 1 the full rate; `steps` = 0 is no warm-up.
    """
    peak = schedule(max(steps - 1, 0))

    def rate(step: int) -> float:
        if step >= steps:
            return schedule(step)
        return start_lr + (peak - start_lr) * (step + 1) / steps

    return rate
