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
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch import Tensor

from benchmarks.comm import arguments, measure
from benchmarks.comm.output import Output, duration
from benchmarks.cv.mnist_task import MnistTask
from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training import Batch, Recipe
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.loop import Trainer

RECIPES = Path(__file__).resolve().parents[1] / "cv" / "recipes"
BARE, OURS = "bare PyTorch loop", "horovod_dpsgd's loop"


class TimedTask(MnistTask):
    """Notes when each training batch was asked for."""

    moments: list[float]

    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        self.moments = []
        yield from super().train_batches(self._noted(indices))

    def _noted(self, indices: Iterable[Tensor]) -> Iterator[Tensor]:
        for chosen in indices:
            self.moments.append(time.perf_counter())
            yield chosen

    @property
    def seconds_a_step(self) -> float:
        return (self.moments[-1] - self.moments[0]) / (len(self.moments) - 1)


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument(
        "--batch-size", type=arguments.count, default=2000, help="default: %(default)s, the recipe's"
    )
    parser.add_argument("--steps", type=arguments.count, default=300, help="of a turn (default: %(default)s)")
    given = parser.parse_args()
    us = learners.start()
    if us.size > 1:
        arguments.refuse(us, f"this is about one learner, not {us.size}")
    measure.use_cores(us)
    output = Output(given, "loop_overhead", us)
    recipe = _recipe(given.batch_size, given.steps)
    task = TimedTask(recipe)
    seconds: dict[str, list[float]] = {BARE: [], OURS: []}
    for turn in range(-1, given.turns):  # the first one warms up
        for name, train in ((BARE, _train_bare), (OURS, _train_ours)):
            train(recipe, task, us)
            if turn >= 0:
                seconds[name].append(task.seconds_a_step)
    _report(seconds, given.batch_size, output)


def _report(seconds: dict[str, list[float]], batch: int, output: Output) -> None:
    times = {name: measure.Times(torch.tensor([values]).numpy()) for name, values in seconds.items()}
    rows = []
    for name, each in times.items():
        values = each.row(times[BARE])
        output.row(loop=name, batch=batch, **values)
        low, high = values["ratio_quartiles"]
        rows.append([name, str(batch), duration(each.median), f"{values['ratio']:.3f}", f"{low:.3f} - {high:.3f}"])
    output.table(("loop", "batch", "step", "x bare", "quartiles"), rows)
    output.close()


def _train_ours(recipe: Recipe, task: TimedTask, us: Learners) -> None:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):  # where the bar goes
        trainer = Trainer(recipe, task, us, Path(folder))
        trainer.train()
        trainer.close()


def _train_bare(recipe: Recipe, task: TimedTask, _us: Learners) -> None:
    torch.manual_seed(recipe.seed)
    model = task.make_model()
    optimizer = recipe.make_optimizer(model)
    order = torch.randperm(task.samples).split(recipe.batch_size)
    whole = len(order) - (task.samples % recipe.batch_size > 0)  # batches
    for batch in task.train_batches(order[step % whole] for step in range(recipe.total_steps(task.samples))):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()


def _recipe(batch_size: int, steps: int) -> Recipe:
    changes = {"synthetic": True, "batch_size": batch_size, "max_steps": steps, "checkpoint_every": 0, "lr": 0.1}
    return recipes.load("mnist", RECIPES, changes | {"log_every": 50})


if __name__ == "__main__":
    main()
