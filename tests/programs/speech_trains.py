"""A small acoustic model takes three steps by every algorithm, on prepared speech; and two more after a resumption.

usage: speech_trains.py PREPARED FOLDER
"""

import math
import sys
from pathlib import Path

import problems
import torch

from benchmarks.asr.speech_task import SpeechTask
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import Recipe

STEPS = 3
us = problems.start()
prepared, folder = Path(sys.argv[1]), Path(sys.argv[2])


def train(name: str, algo: str, steps: int, resume: bool = False) -> tuple[dict, torch.Tensor]:
    recipe = Recipe(
        task="speech", model="bilstm", model_options={"layers": 2, "cells": 8, "bottleneck": 3}, data_dir=prepared,
        algo=algo, noise_std=0.001 if algo == "ssgd-star" else 0.0, lr=0.5, batch_size=4 * us.size, max_steps=steps,
        topology="ring",
    )  # fmt: skip
    manifest = checkpoint.newest(folder / name / "checkpoints", print, us) if resume else None
    (folder / name).mkdir(exist_ok=True)
    trainer = Trainer(recipe, SpeechTask(recipe), us, folder / name, manifest)
    result = trainer.train()
    trainer.close()
    assert result is not None
    return result, problems.flat(trainer.model)


for algo in ("ssgd", "ssgd-star", "dpsgd", "adpsgd"):
    result, _ = train(algo, algo, STEPS)
    assert (result["steps"], sum(result["steps_by_learner"])) == (STEPS, STEPS * us.size)
    assert 0 < result["heldout"]["loss"] < 2 * math.log(5)
    assert 0 <= result["heldout"]["groups"]["speech"]["error_percent"] <= 100
    assert "made-up speech" in result["data"]
    spread = result["consensus_distance"]
    assert (spread == 0) == (algo in ("ssgd", "ssgd-star")), f"{algo}: consensus distance {spread}"
    if us.rank == 0:
        print(f"{algo}: trained")

_, whole = train("whole", "dpsgd", STEPS + 2)
_, resumed = train("dpsgd", "dpsgd", STEPS + 2, resume=True)
assert torch.equal(whole, resumed)
if us.rank == 0:
    print("resumed: equal")
