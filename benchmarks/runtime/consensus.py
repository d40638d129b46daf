"""The consensus distance of real training under each topology, beside what mixing noise alone would give.

    mpirun -np 8 --oversubscribe python benchmarks/runtime/consensus.py
    mpirun -np 4 --oversubscribe python benchmarks/runtime/consensus.py --synthetic --steps 40

The paper's MNIST network, trained by DPSGD at a small rate from the same start under one topology after the other. The
distance is the root of the mean over learners of |w_j - w_a|^2; its square is averaged over the second half of the
steps, and compared with that of `complete` in the same run, where all mixing is perfect.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.comm import arguments
from benchmarks.comm.output import Output
from benchmarks.cv.mnist_task import MnistTask
from benchmarks.runtime import mixing
from horovod_dpsgd import algorithms, learners, topology
from horovod_dpsgd.command_line import count
from horovod_dpsgd.errors import UserError
from horovod_dpsgd.learners import Learners, seed_everything
from horovod_dpsgd.topology import Complete, Hierarchical
from horovod_dpsgd.training import Recipe, Task
from horovod_dpsgd.training import recipe as recipes
from horovod_dpsgd.training.cli import make_task
from horovod_dpsgd.training.evaluation import consensus_distance
from horovod_dpsgd.training.task import Part, Sampler

RECIPES = Path(__file__).resolve().parents[1] / "cv" / "recipes"
TOPOLOGIES = [Complete.name, *(name for name in topology.TOPOLOGIES if name not in (Complete.name, Hierarchical.name))]
HEADER = ("topology", "consensus distance", "x complete", "predicted", "off by")


def main() -> None:
    p = arguments.parser(__doc__, turns=None)
    p.add_argument("--steps", type=count, default=120, help="default: %(default)s")
    p.add_argument("--batch-size", type=count, default=64, help="of each learner (default: %(default)s)")
    p.add_argument("--lr", type=float, default=0.02, help="default: %(default)s")
    p.add_argument("--data-dir", type=Path, metavar="DIR")
    p.add_argument("--synthetic", action="store_true", help="random digits")
    given = p.parse_args()
    us = learners.start()
    if us.size < 2:
        arguments.refuse(us, "this is about how learners agree: start 2 or more")
    learners.use_threads(us)
    changes = {"batch_size": given.batch_size * us.size, "max_steps": given.steps, "lr": given.lr}
    more = {"synthetic": given.synthetic, "data_dir": str(given.data_dir) if given.data_dir else None}
    try:
        recipe = recipes.load("mnist", RECIPES, changes | more)
        task = make_task(recipe, MnistTask, us)
    except UserError as error:  # the same on all learners
        arguments.refuse(us, str(error))
    output = Output(given, "consensus", us)
    rows, base = [], 0.0
    for name in TOPOLOGIES:
        distance = float(np.sqrt(np.mean(np.square(train(name, recipe, task, us)[given.steps // 2 :]))))
        base = base or distance
        predicted = (mixing.spread(name, us.size) / mixing.spread(Complete.name, us.size)) ** 0.5
        ratio = distance / base
        output.row(topology=name, learners=us.size, distance=distance, ratio=ratio, predicted=predicted, data=task.data)
        off = f"{100 * (predicted / ratio - 1):+.1f}%"
        rows.append([name, f"{distance:.4g}", f"{ratio:.3f}", f"{predicted:.3f}", off])
    output.table(HEADER, rows)
    output.close()


def train(name: str, recipe: Recipe, task: Task, us: Learners) -> list[float]:
    """The consensus distance after every step. Collective."""
    seed_everything(recipe.seed)
    model = task.make_model()
    settings = algorithms.Settings(topology.create(name, us.size, recipe.seed, us.node_of))
    algorithm = algorithms.find("dpsgd")(recipe.make_optimizer(model), model, us, settings)
    sampler = Sampler(task.samples, recipe.batch_size, us.size, recipe.seed, task.order)
    distances = []
    for batch in task.train_batches(sampler.indices(Part(step, us.rank)) for step in range(recipe.max_steps or 0)):
        algorithm.begin_step()
        algorithm.optimizer.zero_grad()
        task.loss(model, batch).backward()
        algorithm.end_step()
        distances.append(consensus_distance(algorithm))
    algorithm.close()
    return distances


if __name__ == "__main__":
    main()
