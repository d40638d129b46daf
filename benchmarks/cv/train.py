"""Computer vision: train one model by one algorithm.

    mpirun -np 5 --oversubscribe python benchmarks/cv/train.py --algo dpsgd
    horovodrun -np 16 -H host1:8,host2:8 python benchmarks/cv/train.py --algo dpsgd

    mpirun -np 16 --oversubscribe python benchmarks/cv/train.py --recipe cifar10-cpu --data-dir DIR

With no recipe, the paper's MNIST task (Section 2.2). What DIR may hold: benchmarks/cv/datasets.py.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from benchmarks import early  # noqa: E402, F401
from benchmarks.cv.mnist_task import MnistTask  # noqa: E402
from horovod_dpsgd.training import Recipe, Task, main  # noqa: E402


def image_task(recipe: Recipe, may_fetch: bool) -> Task:
    """Imported when asked for: MNIST's own task needs none of it."""
    from benchmarks.cv.image_task import ImageTask

    return ImageTask(recipe, may_fetch)


IMAGE_TASKS = ("cifar10", "fashion-mnist", "mnist-images", "imagenet", "folder")
TASKS = {"mnist": MnistTask, **dict.fromkeys(IMAGE_TASKS, image_task)}

if __name__ == "__main__":
    main(__doc__, TASKS, HERE / "recipes", default_recipe="mnist")
