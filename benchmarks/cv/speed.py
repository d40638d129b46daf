"""A step of an image network in the training loop against the same step in a bare PyTorch loop, one learner; and what
the channels-last layout, bfloat16 and torch.compile make of it.

    python benchmarks/cv/speed.py                            # ResNet-18, 32 images of 32 x 32
    python benchmarks/cv/speed.py --model vgg19 --batch-size 64 --only channels-last
    python benchmarks/cv/speed.py --only compile --turns 3   # every turn compiles: a minute or more each

Images are made up. All contenders take turns; a turn is some steps, of which the first is not counted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import arguments, measure
from benchmarks.comm.loop_overhead import BARE, OURS, Timed, in_turns, report, train_bare, train_ours
from benchmarks.comm.output import Output
from benchmarks.cv import image_task
from benchmarks.cv.image_task import ImageTask
from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training import Recipe
from horovod_dpsgd.training import recipe as recipes

RECIPES = Path(__file__).resolve().parent / "recipes"
LAYOUT = {"data_options": {"channels_last": True}}
VARIANTS: dict[str, dict[str, Any]] = {
    "channels-last": LAYOUT,
    "bf16": {"amp": True},
    "compile": {"compile": True},
    "channels-last, compile": LAYOUT | {"compile": True},
    "channels-last, bf16": LAYOUT | {"amp": True},
}


def main() -> None:
    image_task.SYNTHETIC_HELDOUT = 16  # evaluated after every turn, and not what is timed
    parser = arguments.parser(__doc__)
    parser.add_argument("--model", default="resnet18", help="of the CIFAR-10 recipe (default: %(default)s)")
    parser.add_argument("--batch-size", type=arguments.count, default=32, help="default: %(default)s")
    parser.add_argument("--steps", type=arguments.count, default=10, help="of a turn (default: %(default)s)")
    uncompiled = [name for name, changes in VARIANTS.items() if "compile" not in changes]
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=uncompiled, help="of the variants")
    given = parser.parse_args()
    us = learners.start()
    if us.size > 1:
        arguments.refuse(us, f"this is about one learner, not {us.size}")
    measure.use_cores(us)
    output = Output(given, "cv/speed", us)
    plain = _recipe(given, {})
    task = Timed(ImageTask(plain))
    contenders = {BARE: lambda: train_bare(plain, task), OURS: _ours(plain, us)}
    contenders |= {f"{OURS}, {name}": _ours(_recipe(given, VARIANTS[name]), us) for name in given.only}
    report(in_turns(contenders, given.turns), given.batch_size, output)


def _ours(recipe: Recipe, us: Learners) -> Any:
    task = Timed(ImageTask(recipe))
    return lambda: train_ours(recipe, task, us)


def _recipe(given: Any, variant: dict[str, Any]) -> Recipe:
    changes = {"synthetic": True, "batch_size": given.batch_size, "max_steps": given.steps + 1, "checkpoint_every": 0}
    return recipes.load("cifar10", RECIPES, changes | {"model": given.model, "lr": 0.1, "log_every": 50} | variant)


if __name__ == "__main__":
    main()
