"""The command line that all `benchmarks/*/train.py` share."""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from horovod_dpsgd import learners as learners_module
from horovod_dpsgd.algorithms import ALGORITHMS, taking
from horovod_dpsgd.command_line import RaisingParser, give_up
from horovod_dpsgd.errors import DataError, RecipeError, UserError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.processes import environment_local_rank
from horovod_dpsgd.topology import TOPOLOGIES
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.alike import check_alike
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import OPTIMIZERS, Recipe
from horovod_dpsgd.training.requests import Requests
from horovod_dpsgd.training.run_log import CONFIG, RESULT
from horovod_dpsgd.training.task import Task

TaskFactory = Callable[[Recipe, bool], Task]  # from a recipe; may it fetch data that is not there?
INTERRUPTED_STATUS = 143  # 128 + SIGTERM, as shells report who ends by that signal
SEEN_SECONDS = 10.0


def parser(description: str, default_recipe: str) -> RaisingParser:
    p = RaisingParser(description=description)
    p.add_argument("--recipe", metavar="NAME_OR_FILE", help=f"default: {default_recipe}; of a resumed run, its own")
    # What to run
    p.add_argument("--algo", choices=list(ALGORITHMS))
    p.add_argument("--topology", choices=list(TOPOLOGIES), help=f"of {taking('topology')}")
    p.add_argument("--noise-std", type=float, metavar="STD", help=f"weight noise of {taking('noise_std')}")
    # Optimization
    p.add_argument("--optimizer", choices=OPTIMIZERS)
    p.add_argument("--batch-size", type=int, metavar="N", help="global: of all learners together")
    p.add_argument("--lr", type=float, help="peak learning rate")
    p.add_argument("--lr-scale", metavar="Kx", help="the same, as a multiple of base_lr (default: linear scaling)")
    p.add_argument("--warmup", type=int, metavar="STEPS", help="linear warm-up")
    p.add_argument("--epochs", type=float)
    p.add_argument("--max-steps", type=int, metavar="STEPS")
    p.add_argument("--seed", type=int)
    p.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any other recipe key, as momentum=0.9 (the keys are in any run's config.yaml)",
    )
    # Data and machine
    p.add_argument("--data-dir", type=Path, metavar="DIR")
    p.add_argument("--synthetic", action="store_true", default=None, help="random data of the same shapes")
    p.add_argument("--device", choices=["cpu", "cuda"])
    p.add_argument("--amp", action="store_true", default=None, help="bfloat16 autocast")
    p.add_argument("--slow-learner", metavar="RANK:FACTOR", help="slow one learner's computation down")
    p.add_argument("--jitter", type=float, metavar="SIGMA", help="random delays: their mean, in times of computation")
    p.add_argument("--stall-timeout", type=float, metavar="SECONDS", help="end the job if a learner waits so long")
    # Output
    p.add_argument("--output", type=Path, metavar="DIR", help="default: runs/TASK-ALGO-TIME")
    p.add_argument(
        "--resume",
        nargs="?",
        const="run",
        choices=["run", "auto"],
        metavar="auto",
        help="go on from the newest intact checkpoint in --output; auto: or start, if no run is there yet",
    )
    p.add_argument(
        "--resume-average",
        action="store_true",
        help="with --resume: where another number of learners was saved, start all from the mean of those",
    )
    p.add_argument("--eval-every", type=int, metavar="STEPS")
    p.add_argument("--log-every", type=int, metavar="STEPS")
    p.add_argument("--checkpoint-every", type=int, metavar="STEPS")
    p.add_argument("--checkpoint-minutes", type=float, metavar="MINUTES", help="also when there was none for so long")
    p.add_argument("--keep", type=int, metavar="N", help="only the N newest checkpoints (0: all)")
    p.add_argument(
        "--diagnostics", action="store_true", default=None, help="measure the paper's noise and learning rate"
    )
    p.add_argument("--diagnostics-every", type=int, metavar="STEPS")
    p.add_argument(
        "--diagnostics-samples", type=int, metavar="N", help="measure on so many random samples, with intervals"
    )
    return p


def main(description: str, tasks: Mapping[str, TaskFactory], recipe_folder: Path, default_recipe: str) -> None:
    """Run the command line: read the recipe, start the learners, train, write the run folder.

    What the user did wrong is one line from one learner and exit status 2, on all, before any of them trains.
    """
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        given = parser(description, default_recipe).parse_args()
        recipe = _recipe(given, recipe_folder, default_recipe)
        if recipe.task not in tasks:
            raise RecipeError(f"unknown task {recipe.task!r}: choose one of {', '.join(tasks)}")
        recipe.check_installed()
    except UserError as error:  # found by every process; on each host one speaks, for hosts may differ
        give_up(error, speaks=environment_local_rank() == 0)

    us = replace(learners_module.start(), stall_timeout=recipe.stall_timeout)
    learners_module.use_threads(us)
    learners_module.use_device(us, recipe.device)
    requests = Requests()
    with requests.listening():
        try:
            trainer = _prepare(given, recipe, tasks, us, requests)
        except UserError as error:  # the same on all learners
            give_up(error, speaks=us.rank == 0)
        if trainer is None:
            return
        result = trainer.train()
        trainer.close()
    if us.rank == 0:
        print(_interruption(trainer) if result is None else _summary(result), flush=True)
    if result is None:
        sys.exit(INTERRUPTED_STATUS)


def _prepare(
    given: argparse.Namespace, recipe: Recipe, tasks: Mapping[str, TaskFactory], us: Learners, requests: Requests
) -> Trainer | None:
    """The run, ready to train; None, with a line that says so, if it has nothing left to do. Collective."""
    check_alike(us, recipe)
    folder = us.by_first(partial(_open_folder, recipe, us.size, given.output, bool(given.resume)))
    _check_shared(folder, us)
    manifest = checkpoint.newest(folder / "checkpoints", _say, us) if given.resume else None
    others = manifest is not None and manifest.learners != us.size
    if manifest and others and not given.resume_average:
        raise RecipeError(
            f"{manifest.folder} is of {manifest.learners} learners, but there are {us.size}: "
            "--resume-average starts them from the mean"
        )
    task = make_task(recipe, tasks[recipe.task], us)
    check_alike(us, recipe)  # and what has been imported for the task
    all_done = manifest is not None and manifest.step >= recipe.total_steps(task.samples)
    steps = us.by_first(partial(_ended_after, folder, all_done)) if given.resume else None
    if steps is not None:
        if us.rank == 0:
            print(
                f"{folder}: the run has ended, after {steps} steps; nothing is left to do "
                "(--max-steps or --epochs trains longer, unless it has diverged)"
            )
        return None
    trainer = Trainer(recipe, task, us, folder, manifest, others, requests)
    trainer.log.say(f"{us.size} learners on {us.nodes} node(s), {trainer.total_steps} steps, {task.data} -> {folder}")
    if given.resume and manifest:
        mean = f", from the mean of {manifest.learners} learners" if others else ""
        trainer.log.say(f"going on after step {trainer.step}{mean}")
    elif given.resume:
        trainer.log.say("no checkpoint there: starting at step 0")
    return trainer


def _ended_after(folder: Path, all_steps_done: bool) -> int | None:
    """After how many steps a run has ended that is to be resumed; None if something is left to do.

    One that diverged may have no checkpoint.
    """
    try:
        result = json.loads((folder / RESULT).read_text())
    except OSError:
        return None
    steps: int = result["steps"]
    return steps if all_steps_done or result["ended"] == "diverged" else None


def recipe_of(words: Sequence[str], recipe_folder: Path) -> Recipe:
    """The recipe that these words ask for, --recipe among them, of a command that may be for another machine. Raises
    UserError."""
    return _recipe(parser("", "").parse_args(words), recipe_folder, "", elsewhere=True)


def _recipe(given: argparse.Namespace, recipe_folder: Path, default: str, elsewhere: bool = False) -> Recipe:
    """The recipe the command line asks for: for a run that is resumed, by default the one in its folder."""
    own = ("recipe", "output", "resume", "resume_average", "set")
    overrides = {name: value for name, value in vars(given).items() if value is not None and name not in own}
    overrides |= recipes.parse_settings(given.set)
    if given.resume_average and not given.resume:
        raise RecipeError("--resume-average says how to --resume, which is not given")
    if given.resume and given.output is None:
        raise RecipeError("--resume needs --output, the folder of the run to go on with")
    nothing_there = given.resume == "auto" and not os.path.exists(given.output / CONFIG)
    if not given.resume or nothing_there:
        recipe = recipes.load(given.recipe or default, recipe_folder, overrides, elsewhere)
    else:
        begun_with = str(given.output / CONFIG)
        recipe = recipes.load(given.recipe or begun_with, recipe_folder, overrides)
        recipes.check_resumable(recipes.load(begun_with, recipe_folder, {}), recipe)
    if given.topology and "topology" not in ALGORITHMS[recipe.algo].takes:
        raise RecipeError(f"--topology is of {taking('topology')}: {recipe.algo} averages over all learners")
    return recipe


def _open_folder(recipe: Recipe, size: int, output: Path | None, resume: bool) -> Path:
    """The run folder, made if it is not there, and ours until this process ends."""
    recipe.check_learners(size)
    folder = output or Path("runs") / f"{recipe.task}-{recipe.algo}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    if os.path.exists(folder / CONFIG) and not resume:
        raise RecipeError(f"{folder} already holds a run: give another --output, or --resume to go on with it")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)  # closed, and free again, when the process ends
    except OSError as error:
        raise RecipeError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise RecipeError(f"another job is writing to {folder}") from error
    except OSError as error:  # file systems without locks
        _say(f"{folder} cannot be locked ({error.strerror}): see to it that no other job writes there")
    return folder


def _check_shared(folder: Path, us: Learners) -> None:
    """Raise RecipeError, on all learners, unless all see one and the same folder. Collective."""
    word = us.broadcast(secrets.token_hex(8) if us.rank == 0 else None)
    sign = folder / f".seen-by-all-{word}"
    if us.rank == 0:
        sign.touch()
    us.barrier("a look into the run folder")
    seen = us.gather(_appears(sign))
    if us.rank == 0:
        sign.unlink()
    if not all(seen):
        raise RecipeError(
            f"{us.hosts[seen.index(False)]} does not see {folder}: --output must be on a shared file system"
        )


def _appears(path: Path) -> bool:
    """Whether it is there, or comes within the seconds for which a network file system may remember that it was not."""
    end = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > end:
            return False
        with suppress(OSError):
            os.listdir(path.parent)  # has a network file system look again
        time.sleep(0.1)
    return True


def make_task(recipe: Recipe, make: TaskFactory, us: Learners) -> Task:
    """The task, with the same data on all learners: one of each node may fetch it, then the others find it there."""
    task = None
    patient = replace(us, stall_timeout=0)  # fetching and decoding take as long as they take
    for fetching in (True, False):
        mine = (us.local_rank == 0) == fetching
        made = patient.all_or_none(partial(make, recipe, fetching) if mine else lambda: None, "preparing the data")
        task = made if mine else task
    assert isinstance(task, Task)
    everyone = us.gather((task.samples, task.data))
    for rank, other in enumerate(everyone):
        if other != everyone[0]:
            raise DataError(f"learner 0 has {everyone[0][1]}, learner {rank} on {us.hosts[rank]} has {other[1]}")
    recipe.total_steps(task.samples)
    return task


def _interruption(trainer: Trainer) -> str:
    return (
        f"interrupted by {trainer.interrupted} after step {trainer.step} of {trainer.total_steps}; "
        f"go on with --output {trainer.folder} --resume"
    )


def _summary(result: dict[str, Any]) -> str:
    heldout = result["heldout"]
    end = f"diverged at step {result['diverged_at_step']}" if result["diverged"] else f"{result['steps']} steps"
    return (
        f"{result['task']} {result['algo']}: {end}, held-out error {heldout['error_percent']:.2f} %, "
        f"held-out loss {heldout['loss']:.4f}, {result['samples_per_second'] or 0:.0f} samples/s"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
