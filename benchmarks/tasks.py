"""The tasks of all benchmarks, by the name that a recipe has for them."""

from __future__ import annotations

from importlib import import_module

from horovod_dpsgd.errors import RecipeError
from horovod_dpsgd.training.cli import TaskFactory

BENCHMARKS = ("cv", "asr", "nlp")


def find(name: str) -> TaskFactory:
    """What makes the task. Benchmarks are imported until it is found, so that what others need may be missing.

    Raises RecipeError for a name that none has.
    """
    known: list[str] = []
    for benchmark in BENCHMARKS:
        tasks = import_module(f"benchmarks.{benchmark}.tasks").TASKS
        if name in tasks:
            return tasks[name]
        known += tasks
    raise RecipeError(f"unknown task {name!r}; known: {', '.join(known)}")
