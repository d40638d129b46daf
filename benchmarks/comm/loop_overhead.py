"""What the training loop itself costs: its steps against the same steps in a bare PyTorch loop, one learner.

    python benchmarks/comm/loop_overhead.py
    python benchmarks/comm/loop_overhead.py --batch-size 400

The task is the paper's MNIST network on made-up digits: steps so short that a loop's cost would show. Both loops take
the same batches in the same way. Between the first batch and the last the loop does all that it does while it trains
(schedule, losses, divergence watch, a log line every 50 steps), which is what is timed; evaluation and checkpoints,
done at the end, are not.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from benchmarks.comm import arguments, measure
from benchmarks.comm.output import Output, duration
from benchmarks.cv.mnist_task import MnistTask
from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training import Batch, Recipe, Task
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.task import to_device

RECIPES = Path(__file__).resolve().parents[1] / "cv" / "recipes"
BARE, OURS = "bare PyTorch loop", "horovod_dpsgd's loop"


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
        """Of each step but the first, which may have to make ready what the others use, and the last, whose end is not
        noted."""
        return [end - start for start, end in pairwise(self.moments[1:])]

    @property
    def seconds_a_step(self) -> float:
        """Their mean."""
        return sum(self.seconds) / len(self.seconds)


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--batch-size", type=arguments.count, default=2000, help="default: %(default)s, the recipe's")
    parser.add_argument("--steps", type=arguments.count, default=300, help="of a turn (default: %(default)s)")
    given = parser.parse_args()
    us = learners.start()
    if us.size > 1:
        arguments.refuse(us, f"this is about one learner, not {us.size}")
    measure.use_cores(us)
    output = Output(given, "loop_overhead", us)
    recipe = _recipe(given.batch_size, given.steps)
    task = Timed(MnistTask(recipe))
    contenders = {BARE: lambda: train_bare(recipe, task), OURS: lambda: train_ours(recipe, task, us)}
    report(in_turns(contenders, given.turns), given.batch_size, output)


def in_turns(contenders: Mapping[str, Callable[[], float]], turns: int) -> dict[str, list[float]]:
    """The seconds a step that each gives, by turn; a first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(-1, turns):
        for name, train in contenders.items():
            took = train()
            if turn >= 0:
                seconds[name].append(took)
    return seconds


def report(seconds: dict[str, list[float]], batch: int, output: Output) -> None:
    """The table: all against the bare loop."""
    times = {name: measure.Times(torch.tensor([values]).numpy()) for name, values in seconds.items()}
    rows = []
    for name, each in times.items():
        values = each.row(times[BARE])
        output.row(loop=name, batch=batch, **values)
        low, high = values["ratio_quartiles"]
        rows.append([name, str(batch), duration(each.median), f"{values['ratio']:.3f}", f"{low:.3f} - {high:.3f}"])
    output.table(("loop", "batch", "step", "x bare", "quartiles"), rows)
    output.close()


def train_ours(recipe: Recipe, timed: Timed, us: Learners) -> float:
    """Seconds a step."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # where the bar goes
        trainer = Trainer(recipe, timed.task, us, Path(folder))
        trainer.train()
        trainer.close()
    return timed.seconds_a_step


def train_bare(recipe: Recipe, timed: Timed) -> float:
    """Seconds a step, on the recipe's device."""
    task = timed.task
    torch.manual_seed(recipe.seed)
    model = task.make_model().to(recipe.device)
    optimizer = recipe.make_optimizer(model)
    order = torch.randperm(task.samples).split(recipe.batch_size)
    whole = len(order) - (task.samples % recipe.batch_size > 0)  # batches
    for batch in task.train_batches(order[step % whole] for step in range(recipe.total_steps(task.samples))):
        optimizer.zero_grad()
        task.loss(model, to_device(batch, recipe.device)).backward()
        optimizer.step()
    return timed.seconds_a_step


def _recipe(batch_size: int, steps: int) -> Recipe:
    changes = {"synthetic": True, "batch_size": batch_size, "max_steps": steps, "checkpoint_every": 0, "lr": 0.1}
    return recipes.load("mnist", RECIPES, changes | {"log_every": 50})


if __name__ == "__main__":
    main()
