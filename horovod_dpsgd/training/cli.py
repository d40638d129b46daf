"""The command line that all `benchmarks/*/train.py` share."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from horovod_dpsgd import learners as learners_module
from horovod_dpsgd.algorithms import ALGORITHMS
from horovod_dpsgd.errors import RecipeError, UserError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import TOPOLOGIES
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import OPTIMIZERS, Recipe
from horovod_dpsgd.training.task import Task

# Builds a task from its recipe on one learner. Called first by one learner of each node (which may fetch data), then by
# all.
TaskFactory = Callable[[Recipe], Task]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, from one learner."""

    def error(self, message: str) -> NoReturn:
        raise RecipeError(message)


def parser(description: str, default_recipe: str) -> Parser:
    p = Parser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    p.add_argument("--recipe", default=default_recipe, metavar="NAME_OR_FILE", help=f"default: {default_recipe}")
    # What to run
    p.add_argument("--algo", choices=list(ALGORITHMS))
    p.add_argument("--topology", choices=list(TOPOLOGIES), help="of dpsgd")
    p.add_argument("--noise-std", type=float, metavar="STD", help="weight noise of ssgd-star")
    # Optimization
    p.add_argument("--optimizer", choices=OPTIMIZERS)
    p.add_argument("--batch-size", type=int, metavar="N", help="global: of all learners together")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--warmup", type=int, metavar="STEPS", help="linear warm-up")
    p.add_argument("--epochs", type=float)
    p.add_argument("--max-steps", type=int, metavar="STEPS")
    p.add_argument("--seed", type=int)
    p.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="any other recipe key, as momentum=0.9"
    )
    # Data and machine
    p.add_argument("--data-dir", type=Path, metavar="DIR")
    p.add_argument("--synthetic", action="store_true", default=None, help="random data of the same shapes")
    p.add_argument("--device", choices=["cpu", "cuda"])
    p.add_argument("--amp", action="store_true", default=None, help="bfloat16 autocast")
    p.add_argument("--slow-learner", metavar="RANK:FACTOR", help="slow one learner's computation down")
    p.add_argument("--stall-timeout", type=float, metavar="SECONDS", help="end the job if a learner waits so long")
    # Output
    p.add_argument("--output", type=Path, metavar="DIR", help="default: runs/TASK-ALGO-TIME")
    p.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in --output")
    p.add_argument("--eval-every", type=int, metavar="STEPS")
    p.add_argument("--log-every", type=int, metavar="STEPS")
    p.add_argument("--checkpoint-every", type=int, metavar="STEPS")
    p.add_argument(
        "--diagnostics", action="store_true", default=None, help="measure the paper's noise and learning rate"
    )
    p.add_argument("--diagnostics-every", type=int, metavar="STEPS")
    return p


def main(description: str, tasks: Mapping[str, TaskFactory], recipe_folder: Path, default_recipe: str) -> None:
    """Run the command line: read the recipe, start the learners, train, write the run folder.

    What the user did wrong is one line on rank 0 and exit status 2, on all learners, before any of them trains.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    name = Path(sys.argv[0]).name
    try:
        given = parser(description, default_recipe).parse_args()
        arguments = {name: value for name, value in vars(given).items() if value is not None}
        output, resume = arguments.pop("output", None), arguments.pop("resume")
        more = recipes.parse_settings(arguments.pop("set"))
        recipe = recipes.load(arguments.pop("recipe"), recipe_folder, arguments | more)
        if recipe.task not in tasks:
            raise RecipeError(f"unknown task {recipe.task!r}: choose one of {', '.join(tasks)}")
        if resume and output is None:
            raise RecipeError("--resume needs --output, the folder of the run to go on with")
    except UserError as error:
        _give_up(name, error if learners_module.environment_rank() == 0 else None)

    us = replace(learners_module.start(), stall_timeout=recipe.stall_timeout)
    learners_module.use_threads(us)
    folder: Path = us.broadcast(output or _new_folder(recipe))
    try:
        task = _prepare(recipe, tasks[recipe.task], us, folder, resume)
        trainer = Trainer(recipe, task, us, folder, resume)
    except UserError as error:  # on all learners, the same
        _give_up(name, error if us.rank == 0 else None)
    trainer.log.say(f"{us.size} learners on {us.nodes} node(s), {trainer.total_steps} steps, {task.data} -> {folder}")
    result = trainer.train()
    trainer.close()
    if us.rank == 0:
        print(_summary(result), flush=True)


def _prepare(recipe: Recipe, make_task: TaskFactory, us: Learners, folder: Path, resume: bool) -> Task:
    """Make the run folder and the task. Raises the first learner's UserError on all of them. Collective."""
    task, problem = None, None
    for turn in (True, False):  # one learner of a node fetches data, then the others find it
        if (us.local_rank == 0) == turn:
            try:
                recipe.check_learners(us.size)
                if us.rank == 0:
                    _make_folder(folder, resume)
                task = make_task(recipe)
                recipe.total_steps(task.samples)
            except UserError as error:
                problem = error
        for found in us.gather(problem):
            if found is not None:
                raise found
    assert task is not None
    return task


def _new_folder(recipe: Recipe) -> Path:
    return Path("runs") / f"{recipe.task}-{recipe.algo}-{time.strftime('%Y%m%d-%H%M%S')}"


def _make_folder(folder: Path, resume: bool) -> None:
    if (folder / "config.yaml").exists() and not resume:
        raise RecipeError(f"{folder} already holds a run: give another --output, or --resume to go on with it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"cannot write to {folder}: {error.strerror}") from error


def _summary(result: dict[str, Any]) -> str:
    heldout = result["heldout"]
    end = f"diverged at step {result['diverged_at_step']}" if result["diverged"] else f"{result['steps']} steps"
    return (
        f"{result['task']} {result['algo']}: {end}, held-out error {heldout['error_percent']:.2f} %, "
        f"held-out loss {heldout['loss']:.4f}, {result['samples_per_second'] or 0:.0f} samples/s"
    )


def _give_up(program: str, error: UserError | None) -> NoReturn:
    if error is not None:
        print(f"{program}: error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)
