"""A learner's batch computed in parts makes the same run, to rounding, as computed at once.

usage: accumulation_matches.py FOLDER
"""

import shutil
import sys
from pathlib import Path

import problems
import torch

from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.task import Score, Task

CLIP_NORM = 0.35  # some gradients are larger, and some, which would show another scale, are not

us = problems.start()
folder = Path(sys.argv[1])


class Regression(Task):
    """Classes of random vectors; in a batch's parts the samples differ, so that their weights count."""

    samples, classes, data = 64, 3, "random numbers"

    def __init__(self):
        self.inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def make_model(self):
        return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)).double()

    def train_batches(self, indices):
        for chosen in indices:
            yield self.inputs[chosen], chosen % 3

    def shard_batches(self, part, shard, shards):
        yield self.inputs[:2], torch.zeros(2, dtype=torch.long)

    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model, batch):
        return Score(float(self.loss(model, batch)), 0.0, len(batch[0]))


def train(algo: str, parts: int) -> tuple[torch.Tensor, list[float]]:
    keys = {"algo": algo, "noise_std": 0.01 if algo == "ssgd-star" else 0.0, "accumulate": parts}
    recipe = Recipe(
        task="regression", model="two layers", lr=0.1, batch_size=32, max_steps=10, checkpoint_every=0, log_every=1,
        clip_norm=CLIP_NORM, **keys,
    )  # fmt: skip
    run = folder / "run"
    run.mkdir(exist_ok=True)
    us.barrier()
    trainer = Trainer(recipe, Regression(), us, run)
    trainer._save_checkpoint = trainer._log_interval
    losses: list[float] = []
    trainer.log.metrics = lambda step, values, advanced=0: losses.append(values.get("train_loss", 0.0))
    trainer.train()
    trainer.close()
    us.barrier()
    if us.rank == 0:
        shutil.rmtree(run)
    us.barrier()
    return problems.flat(trainer.model).clone(), losses


for algo in ("ssgd", "ssgd-star", "dpsgd"):
    (whole, its_losses), (parts, their_losses) = train(algo, 1), train(algo, 4)
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(their_losses, its_losses, rtol=0, atol=1e-12)
    if us.rank == 0:
        print(f"{algo}: equal")
