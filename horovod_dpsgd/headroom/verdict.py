"""What the runs say: a table, a paragraph, and headroom.json."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np

from horovod_dpsgd.files import write_json
from horovod_dpsgd.headroom.judgement import end_loss
from horovod_dpsgd.headroom.probe import ALGORITHMS, Probe
from horovod_dpsgd.headroom.search import Boundary
from horovod_dpsgd.report import table

HEADROOM = "headroom.json"
WHAT = {
    "lr": "largest learning rate",
    "batch": "largest global batch (at a rate that grows with it)",
    "warmup": "shortest warm-up in steps (1 is none)",
}
HELPS = {
    "yes": "DPSGD would help: every seed is stable under it at a setting at which every seed fails under SSGD.",
    "perhaps": "DPSGD may help: its limit looks higher, but the seeds that disagree leave it open. Try more --seeds.",
    "no": "Nothing here says that DPSGD would help: its limit is no higher than SSGD's.",
    "hurts": "DPSGD would not help: every seed fails under it at a setting at which every seed is stable under SSGD.",
}


def rungs_table(probe: Probe) -> str:
    """A line for each algorithm and rung that was tried."""
    lines = []
    for algo in ALGORITHMS:
        for rung, runs in sorted(probe.seen[algo].items()):
            losses = [[end_loss(run) for run in runs], [run.heldout_loss for run in runs]]
            cells = [table.median_and_range(each, 3) for each in losses]
            stable = f"{sum(probe.stable(algo, rung))} of {len(runs)}"
            lines.append([algo.upper(), str(probe.ladder[rung]), stable, *cells])
    return table.markdown(["algorithm", probe.request.over, "stable", "training loss", "held-out loss"], lines)


def helps(ssgd: Boundary, dpsgd: Boundary) -> str:
    """Would DPSGD help? A key of HELPS."""
    low = [-math.inf if b.stable is None else b.stable for b in (ssgd, dpsgd)]
    high = [math.inf if b.fails is None else b.fails for b in (ssgd, dpsgd)]
    if low[1] >= high[0]:
        return "yes"
    if low[0] >= high[1]:
        return "hurts"
    return "perhaps" if low[1] > low[0] or high[1] > high[0] else "no"


def paragraph(probe: Probe) -> str:
    seeds = len(probe.seeds)
    may_fail = 100 * (1 - 0.05 ** (1 / seeds))  # a share p of seeds that fail leaves n of n stable with (1 - p)^n
    limits = ", ".join(f"{_limit(probe, b)} under {algo.upper()}" for algo, b in probe.found.items())
    return " ".join(
        [
            f"The {WHAT[probe.request.over]} that is stable with all {seeds} seeds: {limits}.",
            HELPS[helps(**probe.found)],
            _lowest_losses(probe),
            f"How sure is this? Limits are known to a factor of {probe.request.factor:g} at best; where {seeds} of "
            f"{seeds} seeds are stable, up to {may_fail:.0f} % of all seeds may still fail (95 % confidence).",
            f"Runs of {probe.steps} steps that hold the peak rate see nothing of what comes later (divergence after "
            "more steps, the decay of the rate), nor how well the result generalizes: stay a rung inside a limit, or "
            "confirm it by a full run.",
        ]
    )


def _limit(probe: Probe, b: Boundary) -> str:
    """ "2 (4 fails)"."""
    value = {None: "none"} | {number: str(rung) for number, rung in probe.ladder.items()}
    if b.fails is None:
        return f"{value[b.stable]} (up to {value[max(probe.ladder)]}, the last tried, not every seed fails)"
    disagree = b.fails > (min(probe.ladder) - 1 if b.stable is None else b.stable) + 1
    return f"{value[b.stable]} ({value[b.fails]} fails{', before it seeds disagree' if disagree else ''})"


def _lowest_losses(probe: Probe) -> str:
    """Medians over seeds, at rungs where all runs were stable."""
    best = {}
    for algo, seen in probe.seen.items():
        stable = [rung for rung in seen if all(probe.stable(algo, rung))]
        losses = [(float(np.median([run.heldout_loss for run in seen[rung]])), probe.ladder[rung]) for rung in stable]
        if not losses:
            return (
                f"With {algo.upper()} no setting was stable: {probe.steps} --steps are too few to learn, or all fail."
            )
        best[algo] = min(losses)
    words = ", ".join(f"{loss:.3g} under {algo.upper()} at {rung}" for algo, (loss, rung) in best.items())
    no_lower = "; in these runs DPSGD brings no lower loss" if best["dpsgd"][0] >= best["ssgd"][0] else ""
    return f"Lowest held-out loss: {words}{no_lower}."


def write(probe: Probe) -> None:
    """headroom.json. A limit of null: the ladder has none."""
    of_pilot = ("task", "model", "data", "learners", "global_batch", "lr", "chance_loss", "versions", "hosts", "git")
    values = {key: value for key, value in asdict(probe.request).items() if key != "output"}
    values |= {key: probe.pilot.result[key] for key in of_pilot}
    values |= {"steps": probe.steps, "warmup": probe.recipe.warmup, "seeds": probe.seeds}
    values |= {"dpsgd_helps": helps(**probe.found), "verdict": paragraph(probe)}
    values["algorithms"] = {algo: _limits_and_rungs(probe, algo) for algo in ALGORITHMS}
    write_json(probe.request.output / HEADROOM, values)


def _limits_and_rungs(probe: Probe, algo: str) -> dict[str, Any]:
    value = {None: None} | {number: rung.value for number, rung in probe.ladder.items()}
    rungs = [
        {
            "value": value[rung],
            "seeds": [run.result["seed"] for run in runs],
            "stable": probe.stable(algo, rung),
            "train_loss": [end_loss(run) for run in runs],
            "heldout_loss": [run.heldout_loss for run in runs],
        }
        for rung, runs in sorted(probe.seen[algo].items())
    ]
    return {"stable": value[probe.found[algo].stable], "fails": value[probe.found[algo].fails], "rungs": rungs}
