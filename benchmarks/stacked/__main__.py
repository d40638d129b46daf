"""Map where algorithms part: many runs of a small model at once, as one stacked network.

    python -m benchmarks.stacked --recipe benchmarks/asr/recipes/speech-cpu.yaml --device cuda --data-dir PREPARED \\
        --vary algo=ssgd,dpsgd --vary lr=2,4,8,16 --vary momentum=0,0.9 --seeds 3 --output map.jsonl

Every --vary multiplies the runs. Those that differ in rates, schedules, algorithms and seeds alone are trained
together; others (model_options.layers, batch_size, max_steps, ...) one group after the other. 48 runs of
speech-cpu took 35 s on an H200, all told. A line of --output is a run: what was varied, held-out losses of the mean
weights by step, training losses, consensus distances.

Starts, samples and pairings are those of real learners (`mpirun ... train.py`) with the same seed, and so are results
up to rounding; SSGD*'s noise and dropout are drawn otherwise, and so are augmentations of images (all runs have the
first seed's). Models: without BatchNorm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml

from benchmarks import tasks
from benchmarks.stacked.training import FREE, Outcome, Training, check
from horovod_dpsgd.command_line import OneLineParser, count, give_up
from horovod_dpsgd.errors import RecipeError, UserError
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.recipe import Recipe

PROGRAM = "python -m benchmarks.stacked"
Chosen = dict[str, str]  # of what is varied


def main() -> None:
    given = arguments()
    try:
        wanted = list(varied(given))
        for recipe, _ in wanted:
            check(recipe, given.learners)
        torch.set_float32_matmul_precision("high" if given.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = given.tf32  # its convolutions have it by default
        with _open(given.output) as file:
            for stack in stacks(wanted, given.at_once):
                train(stack, given.learners, file)
    except UserError as error:
        give_up(error, PROGRAM)


def _open(path: Path) -> TextIO:
    """To add lines. Raises UserError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a")
    except OSError as error:
        raise UserError(f"cannot write to {path}: {error.strerror}") from error


def train(stack: Sequence[tuple[Recipe, Chosen]], learners: int, file: TextIO) -> None:
    first, _ = stack[0]
    # Gradients that are averaged are those of one learner with the whole batch
    together = 1 if first.algo == "ssgd" else learners
    training = Training([recipe for recipe, _ in stack], tasks.find(first.task)(first, True), together)
    print(f"{len(stack)} runs of {learners} learners, {training.steps} steps: {training.task.data}", flush=True)
    chosen_of = {id(recipe): chosen for recipe, chosen in stack}
    for outcome in training.run():
        chosen = chosen_of[id(outcome.recipe)]
        file.write(json.dumps(line(chosen, learners, outcome)) + "\n")
        print(" ".join(f"{key}={value}" for key, value in chosen.items()), summary(outcome), flush=True)
    file.flush()


def arguments() -> argparse.Namespace:
    p = OneLineParser(PROGRAM, description=__doc__)
    p.add_argument("--recipe", required=True, metavar="FILE")
    p.add_argument("--learners", type=count, default=16, metavar="N")
    p.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="KEY=V1,V2,...",
        help="a recipe's key and its values; what goes with a value may follow it: algo=ssgd,'dpsgd mix_moments=true'",
    )
    p.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for all runs")
    p.add_argument("--seeds", type=count, default=1, metavar="N", help="0 to N-1 (default: 1)")
    p.add_argument("--data-dir", type=Path, metavar="DIR")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    p.add_argument("--at-once", type=count, default=48, metavar="RUNS", help="as many as fit the memory (default: 48)")
    p.add_argument("--tf32", action="store_true", help="the networks' products in TensorFloat-32")
    p.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl", help="lines are added to it")
    return p.parse_args()


def varied(given: argparse.Namespace) -> Iterator[tuple[Recipe, Chosen]]:
    """Recipes with what was chosen for each, seeds last. Raises RecipeError."""
    choices: dict[str, list[str]] = {}
    for word in given.vary:
        key, equals, values = word.partition("=")
        if not equals:
            raise RecipeError(f"--vary {word}: KEY=V1,V2,... is expected")
        if key == "seed":
            raise RecipeError("--seeds N says how many seeds")
        if key in choices:
            raise RecipeError(f"--vary {key} is given twice")
        choices[key] = values.split(",")
    choices["seed"] = [str(seed) for seed in range(given.seeds)]
    fixed: dict[str, Any] = {"device": given.device}
    if given.data_dir is not None:
        fixed["data_dir"] = given.data_dir
    for values_chosen in product(*choices.values()):
        chosen = dict(zip(choices, values_chosen, strict=True))
        # "dpsgd mix_moments=true" is a value of algo with what goes with it
        settings = [*given.set, *(word for key, value in chosen.items() for word in f"{key}={value}".split())]
        overrides = recipes.parse_settings(settings) | fixed
        yield recipes.load(given.recipe, Path(), overrides), chosen


def stacks(wanted: Sequence[tuple[Recipe, Chosen]], at_once: int) -> Iterator[list[tuple[Recipe, Chosen]]]:
    """In groups that one stack can hold, of `at_once` runs at most."""

    def shape(each: tuple[Recipe, Chosen]) -> str:
        recipe, _ = each
        return f"{recipe.algo == 'ssgd'} {yaml.safe_dump(recipe.model_dump(mode='json', exclude=FREE))}"

    for _, group in groupby(sorted(wanted, key=shape), key=shape):
        together = list(group)
        for first in range(0, len(together), at_once):
            yield together[first : first + at_once]


def line(chosen: Chosen, learners: int, outcome: Outcome) -> dict[str, Any]:
    return {
        "varied": chosen,
        "learners": learners,
        "recipe": outcome.recipe.model_dump(mode="json"),
        "heldout_losses": outcome.heldout_losses,
        "consensus_distances": outcome.consensus,
        "train_losses": [round(loss, 4) for loss in outcome.train_losses],
    }


def summary(outcome: Outcome) -> str:
    return "held out: " + " ".join(f"{loss:.3f}@{step}" for step, loss in outcome.heldout_losses.items())


if __name__ == "__main__":
    main()
