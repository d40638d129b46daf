"""What the training loop itself costs: its steps against the same steps in a bare PyTorch loop, one learner.

    python benchmarks/comm/loop_overhead.py
    python benchmarks/comm/loop_overhead.py --batch-size 400

The task is the paper's MNIST network on made-up digits: steps so short that a loop's cost would show. Both loops take
the same batches in the same way; `benchmarks/comm/loops.py` says what is timed.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import arguments, loops
from benchmarks.comm.loops import BARE, OURS
from benchmarks.cv.mnist_task import MnistTask
from horovod_dpsgd.training import recipe as recipes

RECIPES = Path(__file__).resolve().parents[1] / "cv" / "recipes"


def main() -> None:
    parser = arguments.parser(__doc__)
    loops.add_options(parser, batch_size=2000, steps=300)
    given = parser.parse_args()
    us, output = loops.alone(given, "loop_overhead")
    recipe = recipes.load("mnist", RECIPES, loops.changes(given) | {"lr": 0.1})
    task = loops.Timed(MnistTask(recipe))
    contenders = {BARE: lambda: loops.train_bare(recipe, task), OURS: lambda: loops.train_ours(recipe, task, us)}
    loops.report(loops.in_turns(contenders, given.turns, given.budget), given.batch_size, output)


if __name__ == "__main__":
    main()
