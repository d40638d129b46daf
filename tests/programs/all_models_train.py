"""Every model of the paper's CNN tasks takes three steps by an algorithm, on made-up images.

usage: all_models_train.py ALGO FOLDER
"""

import math
import shutil
import sys
from pathlib import Path

import problems

from benchmarks.cv import image_task
from benchmarks.cv.models import NAMES, imagenet
from horovod_dpsgd.training.loop import Trainer
from horovod_dpsgd.training.recipe import Recipe

image_task.SYNTHETIC_HELDOUT = 8
Trainer._save_checkpoint = Trainer._log_interval  # gigabytes; tested elsewhere
PLAIN = ("mlp", "vgg16-plain")  # not among the tasks, and tested elsewhere
NOISE = {"ssgd-star": 0.001}
STEPS = 3

us = problems.start()
algo, folder = sys.argv[1], Path(sys.argv[2])
for name in NAMES:
    if name in PLAIN:
        continue
    if name in imagenet.PAPER:  # AlexNet wants 63 pixels
        task = {"task": "imagenet", "model": name, "data_options": {"image_size": 64}}
    else:
        task = {"task": "cifar10", "model": name, "model_options": {"width": 0.25}}
    recipe = Recipe(
        **task, algo=algo, noise_std=NOISE.get(algo, 0.0), lr=1e-3, batch_size=2 * us.size, max_steps=STEPS,
        synthetic=True, checkpoint_every=0,
    )  # fmt: skip
    run = folder / name
    run.mkdir(exist_ok=True)
    us.barrier()
    trainer = Trainer(recipe, image_task.ImageTask(recipe), us, run)
    result = trainer.train()
    trainer.close()
    assert result is not None
    assert (result["steps"], sum(result["steps_by_learner"])) == (STEPS, STEPS * us.size)
    assert math.isfinite(result["heldout"]["loss"]), name
    top5 = result["heldout"].get("top5_error_percent")
    assert (top5 is None) == (task["task"] == "cifar10"), name
    assert top5 is None or 0 <= top5 <= result["heldout"]["error_percent"], name
    spread = result["consensus_distance"]
    assert (spread == 0) == (algo in ("ssgd", "ssgd-star")), f"{name}: consensus distance {spread}"
    us.barrier()
    if us.rank == 0:
        print(f"{name}: trained")
        shutil.rmtree(run)
