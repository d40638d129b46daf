"""A training step in the project's loop against the same step in a bare PyTorch loop, one learner, in turns.

A turn is a run of its own: a fresh model, and so many steps that are timed. Between the first batch and the last the
loop does all that it does while it trains (schedule, losses, divergence watch, log lines), which is what is timed;
evaluation and checkpoints, done at the end, are not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.comm import arguments, measure
from benchmarks.comm.output import Output, duration
from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training import Batch, Recipe, Task
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.task import split, to_device

BARE, OURS = "bare PyTorch loop", "horovod_dpsgd's loop"
# Steps of a turn: the first, which may make ready what the others use, and the last, whose end is not noted
UNTIMED = 2


def add_options(parser: arguments.Parser, batch_size: int, steps: int, of: str = "samples") -> None:
    """--batch-size and --steps, with these defaults."""
    parser.add_argument("--batch-size", type=arguments.count, default=batch_size, help=f"{of} (default: %(default)s)")
    parser.add_argument(
        "--steps", type=arguments.count, default=steps, help="of a turn that are timed (default: %(default)s)"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="default: %(default)s")


def changes(given: argparse.Namespace) -> dict[str, Any]:
    """What a recipe needs for a turn: made-up data, and nothing written but log lines."""
    return {
        "synthetic": True,
        "device": given.device,
        "batch_size": given.batch_size,
        "max_steps": given.steps + UNTIMED,
        "checkpoint_every": 0,
        "eval_every": 0,
        "log_every": 50,
    }


def alone(given: argparse.Namespace, bench: str) -> tuple[Learners, Output]:
    """This learner, with all cores; refused if there are others."""
    us = learners.start()
    if us.size > 1:
        arguments.refuse(us, f"this is about one learner, not {us.size}")
    measure.use_cores(us)
    return us, Output(given, bench, us)


class Timed:
    """A task that notes when each training batch was asked for."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.moments: list[float] = []
        self._batches = task.train_batches
        task.train_batches = self._train_batches  # type: ignore[method-assign]

    def _train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        self.moments = []
        yield from self._batches(self._noted(indices))

    def _noted(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        for chosen in indices:
            if torch.cuda.is_initialized():  # what was queued belongs to the steps before
                torch.cuda.synchronize()
            self.moments.append(time.perf_counter())
            yield chosen

    @property
    def seconds(self) -> list[float]:
        """Of each step that is timed."""
        return [end - start for start, end in pairwise(self.moments[1:])]

    @property
    def seconds_a_step(self) -> float:
        """Their mean."""
        return sum(self.seconds) / len(self.seconds)


def in_turns(contenders: Mapping[str, Callable[[], float]], turns: int, budget: float) -> dict[str, list[float]]:
    """The seconds a step that each gives, by turn; a first turn warms up. After `budget` seconds no turn but the least
    number of them is begun."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    start = time.perf_counter()
    for turn in range(-1, turns):
        if turn >= measure.LEAST_TURNS and time.perf_counter() - start > budget:
            break
        for name, train in contenders.items():
            took = train()
            if turn >= 0:
                seconds[name].append(took)
    return seconds


def report(seconds: dict[str, list[float]], batch: int, output: Output, each: int = 1, unit: str = "samples") -> None:
    """The table, all against the bare loop: seconds a step, and how many of `unit`, of which a sample has `each`, a
    second. Medians over turns, with quartiles; ratios are taken within each turn."""
    times = {name: measure.Times(np.array([values])) for name, values in seconds.items()}
    rows = []
    for name, mine in times.items():
        values = mine.row(times[BARE])
        rate = batch * each / mine.median
        of_bare = times[BARE].ratio_to(mine)
        output.row(loop=name, batch=batch, **values, **{f"{unit}_per_second": rate, "rate_of_bare": of_bare})
        low, high = values["ratio_quartiles"]
        spread = " - ".join(f"{batch * each / took:,.0f}" for took in reversed(values["seconds_quartiles"]))
        times_bare = f"{values['ratio']:.3f} ({low:.3f} - {high:.3f})"
        rows.append([name, str(batch), duration(mine.median), times_bare, f"{rate:,.0f} ({spread})", f"{of_bare:.3f}"])
    output.table(("loop", "batch", "step", "x bare (quartiles)", f"{unit}/s (quartiles)", "of bare's"), rows)
    output.close()


def train_ours(recipe: Recipe, timed: Timed, us: Learners) -> float:
    """Seconds a step."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # where the bar goes
        trainer = Trainer(recipe, timed.task, us, Path(folder))
        trainer.train()
        trainer.close()
    return timed.seconds_a_step


def train_bare(recipe: Recipe, timed: Timed) -> float:
    """Seconds a step, on the recipe's device; what a step computes is what the recipe says."""
    task = timed.task
    torch.manual_seed(recipe.seed)
    model = task.make_model().to(recipe.device)
    network = cast(nn.Module, torch.compile(model)) if recipe.compile else model
    optimizer = recipe.make_optimizer(model)
    order = torch.randperm(task.samples).split(recipe.batch_size)
    whole = len(order) - (task.samples % recipe.batch_size > 0)  # batches
    for batch in task.train_batches(order[step % whole] for step in range(recipe.total_steps(task.samples))):
        optimizer.zero_grad()
        for part in split(to_device(batch, recipe.device), recipe.accumulate):
            with torch.autocast(recipe.device, torch.bfloat16, enabled=recipe.amp):
                loss = task.loss(network, part) / recipe.accumulate
            loss.backward()
        if recipe.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
    return timed.seconds_a_step
