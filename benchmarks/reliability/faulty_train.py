"""benchmarks/cv/train.py in which one learner comes to grief.

    FAULT=KIND:RANK:STEP mpirun -np 3 python benchmarks/reliability/faulty_train.py --synthetic --output DIR ...

KIND is one of those in `FAULTS`. The moment of the fault is written to DIR.fault, as seconds since the epoch. Without
FAULT nothing happens to anybody.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

from benchmarks.cv.mnist_task import MnistTask  # noqa: E402
from horovod_dpsgd.gossip.slots import SlotExchange  # noqa: E402
from horovod_dpsgd.processes import environment_rank  # noqa: E402
from horovod_dpsgd.training import Batch, checkpoint, main  # noqa: E402

kind, rank, at_step = (os.environ.get("FAULT", "none:0:0")).split(":")
mine = environment_rank() == int(rank)
step = -1  # the one under way, counted by the batches that were asked for


def due() -> bool:
    return mine and step >= int(at_step)


def note() -> None:
    """Write down when it happens, the first time (a stopped learner is woken to be ended, and is faulty again)."""
    folder = Path(sys.argv[sys.argv.index("--output") + 1])
    file = folder.with_name(f"{folder.name}.fault")
    if not file.exists():
        file.write_text(str(time.time()))


def kill() -> None:
    note()
    os.kill(os.getpid(), signal.SIGKILL)


def stop() -> None:
    note()
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    note()
    raise ArithmeticError("this learner is meant to fail")


def run_out_of_memory() -> None:
    note()
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**20, size + 2**20))
    torch.ones(2**28)


IN_FORWARD: dict[str, Callable[[], None]] = {
    "kill-forward": kill,
    "stop": stop,
    "exception": fail,
    "memory": run_out_of_memory,
}
FAULTS = [*IN_FORWARD, "kill-exchange", "kill-checkpoint", "worker", "model", "none"]


class FaultyTask(MnistTask):
    def make_model(self) -> torch.nn.Module:
        model = super().make_model()
        if kind == "model" and mine:
            return torch.nn.Sequential(*model.children(), torch.nn.ReLU(), torch.nn.Linear(10, 10))
        return model

    def train_batches(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        def counted() -> Iterator[Tensor]:
            global step
            for step, chosen in enumerate(indices):  # noqa: B007
                yield self._through_workers(chosen) if kind == "worker" else chosen

        yield from super().train_batches(counted())

    def _through_workers(self, chosen: Tensor) -> Tensor:
        """The same numbers, through a worker of a data loader; when the fault is due, it dies on the last of them."""
        if not due():
            return chosen
        note()
        numbers = [*chosen[:-1].tolist(), -1]
        loader = DataLoader(_Numbers(numbers), batch_size=None, num_workers=1, multiprocessing_context="forkserver")
        return torch.tensor(list(loader))

    def loss(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        if due() and kind in IN_FORWARD:
            IN_FORWARD[kind]()
        return super().loss(model, batch)


class _Numbers(torch.utils.data.Dataset):
    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> int:
        if self.numbers[index] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.numbers[index]


def fail_in_exchange() -> None:
    """While others read of this learner, and it of them: the slots have changed places, nothing is mixed yet."""
    turn_to = SlotExchange._turn_to

    def faulty(self: SlotExchange, slot: int) -> None:
        turn_to(self, slot)
        if due():
            kill()

    SlotExchange._turn_to = faulty  # type: ignore[method-assign]


def fail_in_all_reduce() -> None:
    """After the first gradients have gone to Horovod."""
    import horovod.torch.optimizer as optimizer

    synchronize = optimizer.synchronize

    def faulty(handle: object) -> object:
        if due():
            kill()
        return synchronize(handle)

    optimizer.synchronize = faulty


def fail_in_checkpoint() -> None:
    """With half of the file written."""
    write = checkpoint._write

    def faulty(path: Path, state: dict) -> None:
        if due():
            write(path, state)
            os.truncate(path, path.stat().st_size // 2)
            kill()
        write(path, state)

    checkpoint._write = faulty


if __name__ == "__main__":
    if kind not in FAULTS:
        sys.exit(f"no such fault: {kind}; there are {', '.join(FAULTS)}")
    if kind == "kill-exchange":
        fail_in_all_reduce() if "ssgd" in sys.argv else fail_in_exchange()
    if kind == "kill-checkpoint":
        fail_in_checkpoint()
    main(__doc__, {"mnist": FaultyTask}, REPOSITORY / "benchmarks/cv/recipes", default_recipe="mnist")
