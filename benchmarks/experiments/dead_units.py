"""How many ReLU units a training run has lost: units that no held-out image activates, and that no gradient reaches."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from benchmarks.cv.mnist_task import MnistTask
from horovod_dpsgd.report import table
from horovod_dpsgd.report.runs import Run
from horovod_dpsgd.training import Recipe, checkpoint


def of_run(run: Run) -> float:
    """Dead units, per cent of all ReLU units, of learner 0 in the last checkpoint; NaN without one."""
    manifest = checkpoint.newest(run.folder / "checkpoints", print)
    if manifest is None:
        return float("nan")
    state = checkpoint.read(manifest, 0)["algorithm"]["model"]
    task = _task(Recipe.model_validate(run.result["config"] | {"device": "cpu"}).model_dump_json())
    model = task.make_model()
    model.load_state_dict(state)
    return 100 * dead_share(model, next(task.shard_batches("heldout", 0, 1))[0])


@torch.no_grad()
def dead_share(model: nn.Module, inputs: Tensor) -> float:
    """The share of ReLU units that are 0 for all `inputs`."""
    ever_active: list[Tensor] = []
    for layer in model.modules():
        if isinstance(layer, nn.ReLU):
            layer.register_forward_hook(lambda _layer, _inputs, out: ever_active.append((out > 0).any(dim=0)))
    model(inputs)
    return 1 - float(torch.cat(ever_active).double().mean())


def median_percent(group: Sequence[Run]) -> str:
    """The table's cell for runs of one setting, of those that have a checkpoint that can be read."""
    return table.median_and_range([share for share in map(of_run, group) if not math.isnan(share)], digits=0)


@functools.lru_cache(maxsize=1)
def _task(recipe: str) -> MnistTask:
    return MnistTask(Recipe.model_validate_json(recipe))
