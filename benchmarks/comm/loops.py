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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.comm import arguments, measure
from benchmarks.comm.output import Output, duration
from horovod_dpsgd import learners
from horovod_dpsgd.command_line import count
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training import Batch, Recipe, Task
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.task import split, to_device

BARE, OURS = "bare PyTorch loop", "horovod_dpsgd's loop"
# Steps of a turn: the first, which may make ready what the others use, and the last, whose end is not noted
UNTIMED = 2
AnyTask = TypeVar("AnyTask", bound=Task)


def add_options(parser: argparse.ArgumentParser, batch_size: int, steps: int, of: str = "samples") -> None:
    """--batch-size and --steps, with these defaults."""
    parser.add_argument("--batch-size", type=count, default=batch_size, help=f"{of} (default: %(default)s)")
    parser.add_argument("--steps", type=count, default=steps, help="of a turn that are timed (default: %(default)s)")
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
    """A task that notes when each training batch was asked for, and how long it took to make (if none is made ahead).

    shares: of each run of our loop, the part of its timed steps in which batches were made.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.moments: list[float] = []
        self.shares: list[float] = []
        self._making: list[float] = []  # seconds, of each batch
        self._batches = task.train_batches
        task.train_batches = self._train_batches  # type: ignore[method-assign]

    def _train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        self.moments, self._making = [], []
        for batch in self._batches(self._noted(indices)):
            self._making.append(time.perf_counter() - self.moments[-1])
            yield batch

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

    @property
    def data_share(self) -> float:
        """The part of these steps in which batches were made."""
        return sum(self._making[1:-1]) / sum(self.seconds)


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


@dataclass(frozen=True)
class Subject(Generic[AnyTask]):
    """What a script compares the loops on.

    make_task: of a recipe; raises UserError. settings: those of every recipe, as KEY=VALUE. each: how many of `unit` a
    sample of that task has.
    """

    recipes: Path
    recipe: str
    make_task: Callable[[Recipe], AnyTask]
    settings: Sequence[str]
    of: str
    unit: str
    each: Callable[[AnyTask], int]


def compare(description: str | None, bench: str, subject: Subject[AnyTask]) -> None:
    """The whole of a script: both loops, by a recipe that can be changed, on made-up data or real ones."""
    parser = arguments.parser(description)
    parser.add_argument("--recipe", metavar="NAME_OR_FILE", default=subject.recipe, help="default: %(default)s")
    add_options(parser, batch_size=16, steps=20, of=subject.of)
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="real data (default: made-up ones)")
    parser.add_argument("--accumulate", type=count, default=1, help="parts of a batch (default: %(default)s)")
    parser.add_argument("--amp", action="store_true", help="bfloat16 autocast")
    parser.add_argument("--compile", action="store_true", help="the model, by torch.compile")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="any other recipe key")
    given = parser.parse_args()
    options = {"amp": given.amp, "accumulate": given.accumulate, "compile": given.compile}
    options |= {"synthetic": given.data_dir is None, "data_dir": given.data_dir}
    try:
        settings = recipes.parse_settings([*subject.settings, *given.set])
        recipe = recipes.load(given.recipe, subject.recipes, changes(given) | options | settings)
        recipe.check_learners(1)
        task = subject.make_task(recipe)
    except UserError as error:
        parser.error(" ".join(str(error).split()))
    us, output = alone(given, bench)
    timed = Timed(task)
    contenders = {BARE: lambda: train_bare(recipe, timed), OURS: lambda: train_ours(recipe, timed, us)}
    seconds = in_turns(contenders, given.turns, given.budget)
    share = float(np.median(timed.shares[1:]))  # the first turn warms up
    report(seconds, recipe.batch_size, output, subject.each(task), subject.unit, data_share=share)


def report(
    seconds: dict[str, list[float]],
    batch: int,
    output: Output,
    each: int = 1,
    unit: str = "samples",
    data_share: float | None = None,
) -> None:
    """The table, all against the bare loop: seconds a step, and how many of `unit`, of which a sample has `each`, a
    second. Medians over turns, with quartiles; ratios are taken within each turn. data_share: the part of our loop's
    steps in which batches were made."""
    times = {name: measure.Times(np.array([values])) for name, values in seconds.items()}
    rows = []
    for name, mine in times.items():
        values = mine.row(times[BARE])
        rate = batch * each / mine.median
        of_bare = times[BARE].ratio_to(mine)
        more = {f"{unit}_per_second": rate, "rate_of_bare": of_bare}
        more |= {"data_share": data_share} if name == OURS and data_share is not None else {}
        output.row(loop=name, batch=batch, **values, **more)
        low, high = values["ratio_quartiles"]
        spread = " - ".join(f"{batch * each / took:,.0f}" for took in reversed(values["seconds_quartiles"]))
        times_bare = f"{values['ratio']:.3f} ({low:.3f} - {high:.3f})"
        rows.append([name, str(batch), duration(mine.median), times_bare, f"{rate:,.0f} ({spread})", f"{of_bare:.3f}"])
    output.table(("loop", "batch", "step", "x bare (quartiles)", f"{unit}/s (quartiles)", "of bare's"), rows)
    if data_share is not None:
        output.say(f"Making batches takes {data_share:.2%} of a step.")
    output.close()


def train_ours(recipe: Recipe, timed: Timed, us: Learners) -> float:
    """Seconds a step."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # where the bar goes
        trainer = Trainer(recipe, timed.task, us, Path(folder))
        trainer.train()
        trainer.close()
    timed.shares.append(timed.data_share)
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
