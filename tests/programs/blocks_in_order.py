"""Learners take blocks in sequential order, each once an epoch; so does a run that is resumed, and an asynchronous one.

usage: blocks_in_order.py FOLDER
"""

import sys
from pathlib import Path

import problems
import torch

from benchmarks.nlp import language_task
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import Recipe

STEPS, BLOCKS = 3, 13  # of an epoch: 4 blocks a step, and one that is left out
language_task.SYNTHETIC_BLOCKS, language_task.SYNTHETIC_HELDOUT = BLOCKS, 2
us = problems.start()
folder = Path(sys.argv[1])


class Noting(language_task.LanguageTask):
    """Notes which blocks it was asked for."""

    def train_batches(self, indices):
        self.taken = []
        return super().train_batches(self._noted(indices))

    def _noted(self, indices):
        for chosen in indices:
            self.taken.append(chosen.tolist())
            yield chosen


def train(name: str, algo: str, steps: int, resume: bool = False) -> tuple[list[list[list[int]]], torch.Tensor]:
    """The blocks of each step, by learner; and this learner's weights at the end."""
    recipe = Recipe(
        task="text", model="transformer", model_options={"width": 8, "hidden": 8, "heads": 2, "layers": 1},
        data_options={"block_size": 16, "vocabulary": 300, "order": "sequential"}, synthetic=True,
        algo=algo, lr=0.1, batch_size=4, max_steps=steps, checkpoint_every=0,
    )  # fmt: skip
    (folder / name).mkdir(exist_ok=True)
    manifest = checkpoint.newest(folder / name / "checkpoints", print, us) if resume else None
    task = Noting(recipe)
    trainer = Trainer(recipe, task, us, folder / name, manifest)
    trainer.train()
    trainer.close()
    return us.gather(task.taken), problems.flat(trainer.model)


def say(what: str) -> None:
    if us.rank == 0:
        print(what)


whole, weights = train("whole", "dpsgd", 3 * STEPS)
for rank, steps in enumerate(whole):
    for epoch in range(3):
        for place in range(2):
            first = epoch * 12 + (2 * rank + place) * STEPS  # an epoch begins behind the last
            mine = [steps[epoch * STEPS + step][place] for step in range(STEPS)]
            assert mine == [(first + step) % BLOCKS for step in range(STEPS)], (rank, epoch, mine)
say("dpsgd")

train("parts", "dpsgd", 4)
tail, weights_resumed = train("parts", "dpsgd", 3 * STEPS, resume=True)
assert tail == [steps[4:] for steps in whole]
assert torch.equal(weights, weights_resumed)
say("resumed")


def flat(everyone: list[list[list[int]]]) -> list[int]:
    return sorted(block for steps in everyone for blocks in steps for block in blocks)


assert flat(train("apart", "adpsgd", 3 * STEPS)[0]) == flat(whole)
say("adpsgd")
