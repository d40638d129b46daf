"""A step of an image network in the training loop against the same step in a bare PyTorch loop, one learner; and what
the channels-last layout, bfloat16 and torch.compile make of it.

    python benchmarks/cv/speed.py                            # ResNet-18, 32 images of 32 x 32
    python benchmarks/cv/speed.py --model vgg19 --batch-size 64 --only channels-last
    python benchmarks/cv/speed.py --only compile --turns 3   # every turn compiles: a minute or more each

Images are made up. All contenders take turns; `benchmarks/comm/loops.py` says what is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import arguments, loops
from benchmarks.comm.loops import BARE, OURS
from benchmarks.cv import image_task
from benchmarks.cv.image_task import ImageTask
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
    loops.add_options(parser, batch_size=32, steps=9, of="images")
    uncompiled = [name for name, changes in VARIANTS.items() if "compile" not in changes]
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), default=uncompiled, help="of the variants")
    given = parser.parse_args()
    us, output = loops.alone(given, "cv/speed")
    plain = _recipe(given, {})
    task = loops.Timed(ImageTask(plain))
    contenders = {BARE: lambda: loops.train_bare(plain, task), OURS: _ours(plain, us)}
    contenders |= {f"{OURS}, {name}": _ours(_recipe(given, VARIANTS[name]), us) for name in given.only}
    loops.report(loops.in_turns(contenders, given.turns, given.budget), given.batch_size, output, unit="images")


def _ours(recipe: Recipe, us: Learners) -> Any:
    task = loops.Timed(ImageTask(recipe))
    return lambda: loops.train_ours(recipe, task, us)


def _recipe(given: Any, variant: dict[str, Any]) -> Recipe:
    return recipes.load("cifar10", RECIPES, loops.changes(given) | {"model": given.model, "lr": 0.1} | variant)


if __name__ == "__main__":
    main()
