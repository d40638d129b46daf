"""When a short run counts as stable.

Its end loss is the median of the logged training losses over the last fifth of its steps (single spikes, from which it
recovers, do not count), infinite if `result.json` says that it diverged, or if that median or the held-out loss at w_a
is not finite. It is stable if

1. its end loss is below 0.98 of chance (`divergence.AT_CHANCE`): it has learnt something; and
2. it has learnt (chance - end loss) at least half as much as the best run of its algorithm at a rung as easy or easier.

So a small rate that learns slowly is stable, and a large one that learns less than a smaller one did is not. Held-out
losses are reported, but must only be finite: statistics of BatchNorm lag behind weights that move fast.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from horovod_dpsgd.report.runs import Run
from horovod_dpsgd.training.divergence import AT_CHANCE

LAST = 0.2  # of the steps
LEARNT = 0.5  # of what the best has learnt


def end_loss(run: Run) -> float:
    """Nats; infinite if the run diverged."""
    steps, losses = run.curve("train_loss")
    last = losses[steps > (1 - LAST) * run.result["steps"]]
    finite = len(last) and np.isfinite(np.median(last)) and math.isfinite(run.heldout_loss)
    return float(np.median(last)) if finite and not run.result["diverged"] else math.inf


def is_stable(run: Run, rung: int, seen: Mapping[int, Sequence[Run]]) -> bool:
    """By the two conditions above; `seen`: the runs of its algorithm, by their rungs."""
    chance, loss = run.result["chance_loss"], end_loss(run)
    best = min([loss, *(end_loss(other) for easier in seen if easier <= rung for other in seen[easier])])
    return loss < AT_CHANCE * chance and chance - loss >= LEARNT * (chance - best)
