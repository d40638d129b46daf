"""What must be the same on all learners before they train together: recipe, code, and what it stands on."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

import horovod_dpsgd
from horovod_dpsgd.errors import MachineError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.run_log import versions

LIBRARY = Path(horovod_dpsgd.__file__).parent


def check_alike(learners: Learners, recipe: Recipe) -> None:
    """Raise MachineError, on all learners, if they have another recipe, code or version than learner 0. Collective."""
    facts = versions() | {
        "code of horovod_dpsgd": digest({str(path.relative_to(LIBRARY)): path for path in LIBRARY.rglob("*.py")}),
        "code of the training script": digest(own_modules()),
        "recipe": hashlib.sha256(recipe.text().encode()).hexdigest()[:12],
    }
    everyone = learners.gather(facts)
    for rank, its in enumerate(everyone):
        different = [name for name, value in everyone[0].items() if its.get(name) != value]
        if different:
            words = "; ".join(f"{name} {everyone[0][name]}, there {its.get(name)}" for name in different)
            raise MachineError(
                f"learner {rank} on {learners.hosts[rank]} runs something else than learner 0 on {learners.hosts[0]}, "
                f"which has {words}: install the same on all hosts"
            )


def own_modules() -> dict[str, Path]:
    """The files of the modules loaded so far that are installed nowhere: the script, its tasks and models."""
    installed = (sys.prefix, sys.base_prefix)
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    return {name: Path(file) for name, file in files.items() if file and not file.startswith(installed)}


def digest(files: Mapping[str, Path]) -> str:
    """Of names and contents; of what is no file, of the name alone."""
    found = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes() if files[name].is_file() else b""
        found.update(f"{name}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:12]
