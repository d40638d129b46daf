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
    """Raise MachineError, on all learners, if they have another recipe, code or version than learner 0. Collective.

    Of the script's modules those are compared that both have loaded: who prepares data for all may load more.
    """
    facts = versions() | {
        "code of horovod_dpsgd": digest({str(path.relative_to(LIBRARY)): path for path in LIBRARY.rglob("*.py")}),
        "recipe": hashlib.sha256(recipe.text().encode()).hexdigest()[:12],
    }
    modules = {f"code of {name}": digest({name: path}) for name, path in own_modules().items()}
    everyone = learners.gather((facts, modules))
    first, first_modules = everyone[0]
    for rank, (its, its_modules) in enumerate(everyone):
        common = first_modules.keys() & its_modules.keys()
        expected = first | {name: first_modules[name] for name in sorted(common)}
        its = its | its_modules
        different = [name for name, value in expected.items() if its.get(name) != value]
        if different:
            words = "; ".join(f"{name} {expected[name]}, there {its.get(name)}" for name in different)
            raise MachineError(
                f"learner {rank} on {learners.hosts[rank]} runs something else than learner 0 on {learners.hosts[0]}, "
                f"which has {words}: install the same on all hosts"
            )


def own_modules() -> dict[str, Path]:
    """The files of the modules loaded so far that are installed nowhere: the script, its tasks and models."""
    installed = (sys.prefix, sys.base_prefix, str(LIBRARY))
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    paths = {name: Path(file) for name, file in files.items() if file and not file.startswith(installed)}
    return {name: path for name, path in paths.items() if path.is_file()}  # PyTorch's torch.ops names one that is none


def digest(files: Mapping[str, Path]) -> str:
    """Of names and contents."""
    found = hashlib.sha256()
    for name in sorted(files):
        content = files[name].read_bytes()
        found.update(f"{name}\0{len(content)}\0".encode())
        found.update(content)
    return found.hexdigest()[:12]
