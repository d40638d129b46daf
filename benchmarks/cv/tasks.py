"""The tasks of computer vision, by the name that a recipe has for them."""

from benchmarks.cv.mnist_task import MnistTask
from horovod_dpsgd.training import Recipe, Task


def image_task(recipe: Recipe, may_fetch: bool) -> Task:
    """Imported when asked for: MNIST's own task needs none of it."""
    from benchmarks.cv.image_task import ImageTask

    return ImageTask(recipe, may_fetch)


IMAGE_TASKS = ("cifar10", "fashion-mnist", "mnist-images", "imagenet", "folder")
TASKS = {"mnist": MnistTask, **dict.fromkeys(IMAGE_TASKS, image_task)}
