"""What must be the same on all learners before they train together: code, and the versions of what it stands on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import horovod_dpsgd
from horovod_dpsgd.errors import MachineError
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.training.run_log import versions

LIBRARY = Path(horovod_dpsgd.__file__).parent


def check_alike(learners: Learners, scripts: Path) -> None:
    """Raise MachineError, on all learners, if they run other code or other versions than learner 0. Collective.

    scripts: the folder of the program that was started; it and the library are compared file by file.
    """
    code = {"code of horovod_dpsgd": digest(LIBRARY), f"code in {scripts.name}/": digest(scripts)}
    everyone = learners.gather(versions() | code)
    for rank, its in enumerate(everyone):
        different = [name for name, value in everyone[0].items() if its.get(name) != value]
        if different:
            words = "; ".join(f"{name} {everyone[0][name]}, there {its.get(name)}" for name in different)
            raise MachineError(
                f"learner {rank} on {learners.hosts[rank]} runs something else than learner 0 on {learners.hosts[0]}, "
                f"which has {words}: install the same on all hosts"
            )


def digest(folder: Path) -> str:
    """Of the names and contents of all Python and recipe files below `folder`."""
    files = sorted(path for kind in ("*.py", "*.yaml") for path in folder.rglob(kind))
    found = hashlib.sha256()
    for path in files:
        found.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
