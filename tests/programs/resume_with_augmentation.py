"""A run that is resumed draws the same augmentations as one that was not interrupted.

usage: resume_with_augmentation.py FOLDER
"""

import sys
from pathlib import Path

import problems
import torch

from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.task import Score, Task

us = problems.start()
folder = Path(sys.argv[1])


class Noisy(Task):
    """A regression whose inputs are changed by PyTorch's global random numbers."""

    samples, classes, data = 64, 3, "random numbers"

    def make_model(self):
        return torch.nn.Linear(4, 3)

    def train_batches(self, indices):
        for chosen in indices:
            inputs = chosen[:, None].float().expand(-1, 4) / self.samples
            yield inputs + torch.rand(inputs.shape), chosen % 3

    def shard_batches(self, part, shard, shards):
        yield torch.zeros(2, 4), torch.zeros(2, dtype=torch.long)

    def loss(self, model, batch):
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])

    def score(self, model, batch):
        return Score(float(self.loss(model, batch)), 0.0, len(batch[0]))


def train(name: str, steps: int, resume: bool = False) -> torch.Tensor:
    recipe = Recipe(
        task="noisy", model="linear", lr=0.1, batch_size=8, max_steps=steps, checkpoint_every=5, topology="ring"
    )
    manifest = checkpoint.newest(folder / name / "checkpoints", print, us) if resume else None
    (folder / name).mkdir(exist_ok=True)
    trainer = Trainer(recipe, Noisy(), us, folder / name, manifest)
    trainer.train()
    trainer.close()
    return problems.flat(trainer.model)


whole = train("whole", 20)
train("parts", 10)
assert torch.equal(train("parts", 20, resume=True), whole)
if us.rank == 0:
    print("equal")
