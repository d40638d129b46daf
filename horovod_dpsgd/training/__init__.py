"""The one training loop that all benchmarks share. `main` is its command line."""

from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.cli import main
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.task import Batch, Order, Score, Task

__all__ = ["Batch", "Order", "Recipe", "Score", "Task", "checkpoint", "main"]
