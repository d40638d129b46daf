"""The training loop: one for all tasks and all algorithms.

batch -> algorithm.begin_step() -> forward, backward -> algorithm.end_step() -> log
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd import algorithms, topology
from horovod_dpsgd.diagnostics import dynamics
from horovod_dpsgd.learners import Learners, seed_everything, seed_for
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.divergence import DivergenceWatch
from horovod_dpsgd.training.evaluation import Heldout, consensus_distance, evaluate_averaged, evaluate_own
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.run_log import RunLog, SilentRunLog, git_revision, versions
from horovod_dpsgd.training.task import Batch, Sampler, Task, to_device


class Trainer:
    """One run of a recipe on a task, in `folder`, gone on with from a checkpoint if one is given.

    All methods are collective.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        learners: Learners,
        folder: Path,
        resume_from: checkpoint.Manifest | None = None,
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.learners = learners
        self.folder = folder
        self.total_steps = recipe.total_steps(task.samples)
        self.schedule = recipe.schedule(task.samples)
        seed_everything(recipe.seed)
        self.model = task.make_model().to(recipe.device)
        settings = algorithms.Settings(
            topology.create(recipe.topology, learners.size, recipe.seed),
            recipe.noise_std,
            recipe.seed,
            recipe.clip_norm,
        )
        optimizer = recipe.make_optimizer(self.model)
        self.algorithm = algorithms.find(recipe.algo)(optimizer, self.model, learners, settings)
        seed_everything(seed_for("learner", recipe.seed, learners.rank))  # dropout, augmentation
        self.divergence = DivergenceWatch(task.chance_loss, recipe.warmup_steps(task.samples), self.total_steps)
        self.step = 0
        self._seconds_before = 0.0  # of the parts of this run that were interrupted
        if resume_from is not None:
            self._resume(resume_from)
        self.log: SilentRunLog = (
            RunLog(folder, recipe, self.step, self.total_steps) if learners.rank == 0 else SilentRunLog()
        )
        self._losses: list[Tensor] = []  # of the steps since the last log line
        self._step_seconds: list[float] = []
        self._exposed_seconds: list[float] = []
        self._waited_seconds = 0.0  # for the others, at log lines

    def train(self) -> dict[str, Any]:
        """Train to the end, or until the run has diverged; return what `result.json` holds."""
        self.started = time.perf_counter()
        self.model.train()
        batches = self._batches()
        while self.step < self.total_steps and not self.divergence.diverged:
            self._train_step(batches)
            self.step += 1
            if self._due(self.recipe.log_every) or self.step == self.total_steps:
                self._log_interval()
            if self._due(self.recipe.eval_every) and self.step < self.total_steps:  # at the end it is done anyway
                self._log_heldout(evaluate_averaged(self.algorithm, self.task))
            if self._due(self.recipe.checkpoint_every) or self.step == self.total_steps:
                self._save_checkpoint()
        self.divergence.end(self.step)
        result = self._result()
        self.log.result(result)
        return result

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def close(self) -> None:
        self.log.close()
        self.algorithm.close()

    def _batches(self) -> Iterator[Batch]:
        recipe, us = self.recipe, self.learners
        sampler = Sampler(
            self.task.samples, recipe.batch_size, us.rank, us.size, recipe.seed, self.step, self.total_steps
        )
        for batch in self.task.train_batches(sampler):
            yield to_device(batch, recipe.device)

    def _train_step(self, batches: Iterator[Batch]) -> None:
        start = time.perf_counter()
        batch = next(batches)
        optimizer = self.algorithm.optimizer
        lr = self.schedule(self.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.algorithm.begin_step()
        if self.recipe.diagnostics and self.step % self.recipe.diagnostics_every == 0:
            start += self._log_dynamics(batch, lr)  # the instruments are not part of the step
        optimizer.zero_grad()
        loss = self._loss(batch)
        loss.backward()
        self._losses.append(loss.detach())
        self._be_slow(time.perf_counter() - start)
        self.algorithm.end_step()
        self._step_seconds.append(time.perf_counter() - start)
        self._exposed_seconds.append(self.algorithm.exposed_seconds)

    def _loss(self, batch: Batch) -> Tensor:
        with torch.autocast(self.recipe.device, torch.bfloat16, enabled=self.recipe.amp):
            return self.task.loss(self.model, batch)

    def _be_slow(self, computed: float) -> None:
        rank, factor = self.recipe.slow_rank_and_factor
        if rank == self.learners.rank and factor > 1:
            time.sleep((factor - 1) * computed)

    def _log_interval(self) -> None:
        """Log the mean over learners of every loss since the last time. The only talk of all learners in training."""
        if not self._losses:
            return
        start = time.perf_counter()
        losses = self.learners.mean(torch.stack(self._losses).double().cpu()).tolist()
        self._waited_seconds += time.perf_counter() - start  # a learner that ran ahead waits here, and not in a step
        losses = self.learners.broadcast(losses)  # MPI need not give all the same bits, and all must decide alike
        first = self.step - len(losses)
        self.divergence.see(first, losses)
        values = {
            "epoch": self.step / self.recipe.steps_per_epoch(self.task.samples),
            "lr": self.schedule(self.step - 1),
            "train_loss": float(np.mean(losses)),
            "train_loss_max": float(np.max(losses)),
            "step_seconds": float(np.median(self._step_seconds[-len(losses) :])),
            "exposed_communication_seconds": float(np.median(self._exposed_seconds[-len(losses) :])),
        }
        self.log.metrics(self.step, values, advanced=len(losses))
        self._losses.clear()

    def _log_heldout(self, heldout: Heldout) -> None:
        self.log.metrics(self.step, {"heldout_loss": heldout.loss, "heldout_error_percent": heldout.error_percent})

    def _log_dynamics(self, batch: Batch, lr: float) -> float:
        """Measure and log the dynamics of the step that is under way; return the seconds it took."""
        start = time.perf_counter()
        us = self.learners
        with _undisturbed(self.model):
            train_shard = self._train_shard(us.rank, us.size)
            measured = dynamics.measure(self.algorithm, self._loss, batch, train_shard, lr)
        self.log.metrics(self.step + 1, measured)
        return time.perf_counter() - start

    def _train_shard(self, shard: int, shards: int) -> Iterator[Batch]:
        for batch in self.task.shard_batches("train", shard, shards):
            yield to_device(batch, self.recipe.device)

    def _save_checkpoint(self) -> None:
        self._log_interval()  # what is resumed from here has nothing left to log
        state = {
            "algorithm": self.algorithm.state_dict(),
            "divergence": self.divergence.state_dict(),
            "seconds": self._seconds(),
        }
        checkpoint.save(self.folder / "checkpoints", self.step, state, self.learners)

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self.started

    def _resume(self, manifest: checkpoint.Manifest) -> None:
        state = checkpoint.load(manifest, self.learners)
        self._seconds_before = state["seconds"]
        self.algorithm.load_state_dict(state["algorithm"])
        self.divergence.load_state_dict(state["divergence"])
        self.step = self.algorithm.step

    def _result(self) -> dict[str, Any]:
        recipe, us = self.recipe, self.learners
        seconds = self._seconds()
        heldout = evaluate_averaged(self.algorithm, self.task)
        own = evaluate_own(self.algorithm, self.task)
        self._log_heldout(heldout)
        step_seconds = us.mean_of(float(np.median(self._step_seconds))) if self._step_seconds else math.nan
        busy = us.mean_of(sum(self._step_seconds) + self._waited_seconds)
        return {
            "task": recipe.task,
            "model": recipe.model,
            "algo": recipe.algo,
            "topology": self.algorithm.topology.name if self.algorithm.topology else None,
            "optimizer": recipe.optimizer,
            "learners": us.size,
            "global_batch": recipe.batch_size,
            "lr": recipe.lr,
            "seed": recipe.seed,
            "data": self.task.data,
            "steps": self.step,
            "epochs": self.step / recipe.steps_per_epoch(self.task.samples),
            "diverged": self.divergence.diverged,
            "diverged_at_step": self.divergence.at_step,
            "heldout": {"loss": heldout.loss, "error_percent": heldout.error_percent},
            "heldout_by_learner": {"error_percent": [each.error_percent for each in own]},
            "consensus_distance": consensus_distance(self.algorithm),
            "samples_per_second": len(self._step_seconds) * recipe.batch_size / busy if busy else None,
            "step_seconds_median": step_seconds,
            "exposed_communication_seconds_median": us.mean_of(float(np.median(self._exposed_seconds or [math.nan]))),
            "bytes_sent_per_step": us.mean_of(self.algorithm.bytes_sent(0)),
            "wall_seconds": seconds,
            "versions": versions(),
            "hosts": list(us.hosts),
            "git": git_revision(),
            "config": recipe.model_dump(mode="json"),
        }


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Undo what extra forward passes do to BatchNorm statistics and to the random state."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        yield
    for b, saved in buffers:
        b.copy_(saved)
