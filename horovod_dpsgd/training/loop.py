"""The training loop: one for all tasks and all algorithms.

batch -> algorithm.begin_step() -> forward, backward -> algorithm.end_step() -> log
"""

from __future__ import annotations

import math
import time
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from horovod_dpsgd import algorithms, machine, topology
from horovod_dpsgd.diagnostics import dynamics, intervals
from horovod_dpsgd.diagnostics.derivatives import same_draws
from horovod_dpsgd.gossip.counter import SharedCounter
from horovod_dpsgd.learners import Learners, generator, seed_everything, seed_for
from horovod_dpsgd.training import checkpoint
from horovod_dpsgd.training.delays import delay
from horovod_dpsgd.training.divergence import DivergenceWatch
from horovod_dpsgd.training.evaluation import Heldout, consensus_distance, evaluate_averaged, evaluate_own
from horovod_dpsgd.training.recipe import Recipe
from horovod_dpsgd.training.requests import Asked, Pace, Requests, Rounds
from horovod_dpsgd.training.run_log import RunLog, SilentRunLog, git_revision, versions
from horovod_dpsgd.training.task import Batch, Part, Sampler, Task, split, to_device

STEPS_OF_TRAFFIC = 64
MEETING_SECONDS = 30.0  # the longest that learners who do not keep step go without hearing of each other


class Trainer:
    """One run of a recipe on a task, in `folder`, gone on with from a checkpoint if one is given.

    from_mean: start all learners from the mean of those of the checkpoint, of which there may be another number.
    requests: what signals ask, if somebody listens for them. interrupted: by which of them the run was asked to end;
    empty if it was not.

    All methods are collective.
    """

    def __init__(
        self,
        recipe: Recipe,
        task: Task,
        learners: Learners,
        folder: Path,
        resume_from: checkpoint.Manifest | None = None,
        from_mean: bool = False,
        requests: Requests | None = None,
    ) -> None:
        self.recipe = recipe
        self.task = task
        self.learners = learners
        self.folder = folder
        self.total_steps = recipe.total_steps(task.samples)
        self.schedule = recipe.schedule(task.samples)
        seed_everything(recipe.seed)
        self.model = learners.all_or_none(task.make_model, "making the model").to(recipe.device)
        settings = algorithms.Settings(
            topology=topology.create(recipe.topology, learners.size, recipe.seed, learners.node_of),
            compressed=recipe.compression == "bfloat16",
            noise_std=recipe.noise_std,
            seed=recipe.seed,
            clip_norm=recipe.clip_norm,
            accumulate=recipe.accumulate,
            mix_moments=recipe.mix_moments,
        )
        optimizer = recipe.make_optimizer(self.model)
        # The same weights, and called as the model is
        self._network = cast(torch.nn.Module, torch.compile(self.model)) if recipe.compile else self.model
        self.algorithm = algorithms.find(recipe.algo)(optimizer, self.model, learners, settings)
        seed_everything(seed_for("learner", recipe.seed, learners.rank))  # dropout, augmentation
        self.divergence = DivergenceWatch(task.chance_loss, recipe.warmup_steps(task.samples), self.total_steps)
        self.step = 0
        self.interrupted = ""
        self.requests = requests or Requests()
        self.requests.save_seconds = 60 * recipe.checkpoint_minutes
        self._seconds_before = 0.0  # of the parts of this run that were interrupted
        self._code = [git_revision()]  # of those parts and this one; now, and not when it may have been changed
        if resume_from is not None:
            self._resume(resume_from, from_mean)
        self._counter = SharedCounter(learners, self.step * learners.size) if self.algorithm.asynchronous else None
        self.log: SilentRunLog = (
            RunLog(folder, recipe, self.step, self.total_steps) if learners.rank == 0 else SilentRunLog()
        )
        self._pace = Pace(MEETING_SECONDS)
        self._next_meeting = self._meeting_after(self.step)
        self._logged = self.step  # up to which the mean losses are logged
        self._losses: list[tuple[int, Tensor]] = []  # this learner's since then, with the step they belong to
        self._step_seconds, self._exposed_seconds = array("d"), array("d")
        self._waited_seconds = 0.0  # for the others, between steps

    def train(self) -> dict[str, Any] | None:
        """Train to the end, or until the run has diverged; return what `result.json` holds.

        None if the run was interrupted: there is a checkpoint to go on from, and no result.
        """
        self.started = time.perf_counter()
        self.model.train()
        if self.algorithm.asynchronous:
            self._train_apart()
        else:
            self._train_together()
        if self.interrupted:
            self.log.interrupted(self.step, self.interrupted)
            return None
        self.divergence.end(self.step)
        result = self._result()
        self.log.result(result)
        return result

    def _train_together(self) -> None:
        """Every learner takes its part of every global batch."""
        batches = self._batches()
        rounds = Rounds(self.learners, self.requests)
        while not self._ended():
            start = time.perf_counter()
            part, batch = next(batches)
            self._train_step(part.step, batch, start)
            done = part.step + 1
            with self._waiting():
                asked = rounds.asked(done)
            if asked or done >= self._next_meeting:  # before the next batch is drawn, so that it is not drawn twice
                self._meet(done, asked)
        rounds.close()

    def _train_apart(self) -> None:
        """Every learner takes the next part of a global batch that nobody has taken."""
        batches = self._batches()
        while not self._ended():
            start = time.perf_counter()
            part, batch = next(batches, (Part(self.total_steps, 0), None))
            while part.step >= self._next_meeting and not self._ended():  # other learners are there, or on their way
                with self._waiting():
                    mine = self.requests.take(), self._pace.microseconds(self._next_meeting - self.step)
                    asked, slowest = map(max, zip(*self.learners.gather(mine), strict=True))
                self._pace.adapt(slowest)
                self._meet(self._next_meeting, asked)
                start = time.perf_counter()
            if batch is not None and not self._ended():
                self._train_step(part.step, batch, start)

    def _ended(self) -> bool:
        return self.step >= self.total_steps or self.divergence.diverged or bool(self.interrupted)

    def _meet(self, step: int, asked: Asked) -> None:
        """All learners have done their parts of the steps before `step`: log, evaluate, save, as is due or asked."""
        self.step = step
        with self._waiting():
            self.algorithm.settle()  # and then all learners have
        at_end = self.step == self.total_steps
        if self._due(self.recipe.log_every) or at_end:
            self._log_interval()
        if self._due(self.recipe.eval_every) and not at_end:  # at the end it is done anyway
            self._log_heldout(evaluate_averaged(self.algorithm, self.task))
        if self._due(self.recipe.checkpoint_every) or at_end or asked:
            self._save_checkpoint()
        if asked:
            self.log.say(f"checkpoint after step {self.step}, as it was asked for")
        if asked is Asked.END and not at_end:
            self.interrupted = next(filter(None, self.learners.gather(self.requests.by_signal)))
        self._next_meeting = self._meeting_after(step)

    def _meeting_after(self, step: int) -> int:
        """The step before which all learners come together next: to log, evaluate, or save, or at the end.

        Where they do not keep step, also to hear what they were asked.
        """
        recipe = self.recipe
        intervals = [every for every in (recipe.log_every, recipe.eval_every, recipe.checkpoint_every) if every]
        soon = step + self._pace.steps if self.algorithm.asynchronous else self.total_steps
        return min(self.total_steps, soon, *(step - step % every + every for every in intervals))

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Time spent inside the block is time waited for others."""
        start = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - start

    def _due(self, every: int) -> bool:
        return bool(every) and self.step % every == 0

    def close(self) -> None:
        self.log.close()
        self.algorithm.close()
        if self._counter:
            self._counter.free()

    def _batches(self) -> Iterator[tuple[Part, Batch]]:
        recipe = self.recipe
        sampler = Sampler(self.task.samples, recipe.batch_size, self.learners.size, recipe.seed, self.task.order)
        taken: deque[Part] = deque()  # a task may ask for batches ahead of their use

        def indices() -> Iterator[Tensor]:
            for part in self._parts():
                taken.append(part)
                yield sampler.indices(part)

        for batch in self.task.train_batches(indices()):
            yield taken.popleft(), to_device(batch, recipe.device)

    def _parts(self) -> Iterator[Part]:
        """The parts of global batches this learner takes: its own of every step, or, asynchronously, the next one that
        nobody has taken. All parts of all steps are taken once either way."""
        us = self.learners
        if self._counter is None:
            yield from (Part(step, us.rank) for step in range(self.step, self.total_steps))
            return
        while (ticket := self._counter.take()) < self.total_steps * us.size:
            yield Part(*divmod(ticket, us.size))

    def _train_step(self, step: int, batch: Batch, start: float) -> None:
        optimizer = self.algorithm.optimizer
        lr = self.schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        self.algorithm.begin_step()
        if self.recipe.diagnostics and step % self.recipe.diagnostics_every == 0:
            start += self._log_dynamics(step, batch, lr)  # the instruments are not part of the step
        optimizer.zero_grad()
        self._losses.append((step, self._backward(batch)))
        self._be_slow(time.perf_counter() - start)
        self.algorithm.end_step()
        self._step_seconds.append(time.perf_counter() - start)
        self._exposed_seconds.append(self.algorithm.exposed_seconds)

    def _backward(self, batch: Batch) -> Tensor:
        """Add the gradient of the batch's mean loss to `p.grad`, part by part if so asked; return that loss."""
        parts = self.recipe.accumulate
        if parts == 1:
            loss = self._loss(batch)
            loss.backward()
            return loss.detach()
        losses = []
        for part in split(batch, parts):
            loss = self._loss(part) / parts
            loss.backward()
            losses.append(loss.detach())
        return sum(losses[1:], losses[0])

    def _loss(self, batch: Batch) -> Tensor:
        if not self.recipe.amp:
            return self.task.loss(self._network, batch)
        with torch.autocast(self.recipe.device, torch.bfloat16):
            return self.task.loss(self._network, batch)

    def _be_slow(self, computed: float) -> None:
        recipe, us = self.recipe, self.learners
        rank, factor = recipe.slow_rank_and_factor
        late = delay(factor if rank == us.rank else 1.0, recipe.jitter, recipe.seed, us.rank, self.algorithm.step)
        if late > 0:
            time.sleep(late * computed)

    def _log_interval(self) -> None:
        """Log every step's mean loss since the last time."""
        if self._logged == self.step:
            return
        own = torch.zeros(self.step - self._logged, dtype=torch.float64)
        if self._losses:
            steps, values = zip(*self._losses, strict=True)
            own.index_add_(0, torch.tensor(steps) - self._logged, torch.stack(values).double().cpu())
        with self._waiting():  # a learner that ran ahead waits here, and not in a step
            losses = self.learners.mean(own).tolist()  # a step has as many parts as there are learners
        losses = self.learners.broadcast(losses)  # MPI need not give all the same bits, and all must decide alike
        self.divergence.see(self._logged, losses)
        mine = len(self._losses)  # 0: too slow for a part of its own
        metrics = {
            "epoch": self.step / self.recipe.steps_per_epoch(self.task.samples),
            "lr": self.schedule(self.step - 1),
            "train_loss": float(np.mean(losses)),
            "train_loss_max": float(np.max(losses)),
            "step_seconds": median(self._step_seconds[-mine:] if mine else []),
            "exposed_communication_seconds": median(self._exposed_seconds[-mine:] if mine else []),
        }
        self.log.metrics(self.step, metrics, advanced=len(losses))
        self._log_staleness()
        self._logged = self.step
        self._losses.clear()

    def _log_staleness(self) -> None:
        if self.algorithm.staleness is not None:
            self.log.histogram(self.step, "staleness", self._staleness())

    def _staleness(self) -> dict[int, int]:
        """How many steps of all learners, since the run was started or resumed, had which staleness."""
        everyone: Counter[int] = sum(self.learners.gather(self.algorithm.staleness), Counter())
        return dict(sorted(everyone.items()))

    def _log_heldout(self, heldout: Heldout) -> None:
        metrics = {"heldout_loss": heldout.loss, "heldout_error_percent": heldout.error_percent}
        metrics |= {f"heldout_{name}": percent for name, percent in heldout.other_error_percents.items()}
        for name, group in heldout.groups.items():
            metrics |= {f"heldout_{name}_loss": group.loss, f"heldout_{name}_error_percent": group.error_percent}
        self.log.metrics(self.step, metrics)

    def _log_dynamics(self, step: int, batch: Batch, lr: float) -> float:
        """Measure and log the dynamics of the step that is under way; return the seconds it took."""
        start = time.perf_counter()
        recipe = self.recipe
        with _undisturbed(self.model), same_draws(self.algorithm.parameters):  # loaders draw a number when they start
            samples, hessian = recipe.diagnostics_samples, recipe.diagnostics_hessian
            shard = self._train_share(step, samples)
            if hessian:
                shard = list(shard)  # for it is read again and again
            parts = split(batch, recipe.accumulate)
            measured = dynamics.measure(self.algorithm, self._loss, parts, shard, lr, samples is not None, hessian)
        self.log.metrics(step + 1, measured)
        return time.perf_counter() - start

    def _train_share(self, step: int, samples: int | None) -> Iterable[Batch]:
        """This learner's share of the training set, or of so many random samples of it, as it trains on them
        (augmented: g is the gradient of what is minimised), in batches no larger."""
        us, recipe = self.learners, self.recipe
        order, least = torch.arange(self.task.samples), 1
        if samples is not None:
            order = torch.randperm(self.task.samples, generator=generator("diagnostics", recipe.seed, step))[:samples]
            least = intervals.groups_of_a_learner(us.size)
        share = order[us.rank :: us.size]
        batches = max(least, -(-len(share) // recipe.samples_at_once(us.size)))
        for batch in self.task.train_batches(iter(share.tensor_split(batches))):
            yield to_device(batch, recipe.device)

    def _save_checkpoint(self) -> None:
        self._log_interval()  # what is resumed from here has nothing left to log
        state = {
            "algorithm": self.algorithm.state_dict(),
            "divergence": self.divergence.state_dict(),
            "seconds": self._seconds(),
            "code": self._code,
        }
        checkpoint.save(self.folder / "checkpoints", self.step, state, self.learners, self.recipe.keep)
        self.requests.saved()

    def _seconds(self) -> float:
        return self._seconds_before + time.perf_counter() - self.started

    def _resume(self, manifest: checkpoint.Manifest, from_mean: bool) -> None:
        if from_mean:
            state = checkpoint.load_mean(manifest)
            state["algorithm"]["step"] = manifest.step  # where learners do not keep step, each had its own
            seed_everything(seed_for("learner", self.recipe.seed, self.learners.rank, manifest.step))
        else:
            state = checkpoint.load(manifest, self.learners)
        self._seconds_before = state["seconds"]
        self._code = [*(each for each in state["code"] if each not in self._code), *self._code]
        self.algorithm.load_state_dict(state["algorithm"])
        self.divergence.load_state_dict(state["divergence"])
        self.step = manifest.step

    def _result(self) -> dict[str, Any]:
        recipe, us = self.recipe, self.learners
        seconds = self._seconds()
        heldout = evaluate_averaged(self.algorithm, self.task)
        own = evaluate_own(self.algorithm, self.task)
        self._log_heldout(heldout)
        step_seconds = us.gather(median(self._step_seconds))
        parts = us.gather(len(self._step_seconds))
        exposed = us.gather(median(self._exposed_seconds))
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
            "chance_loss": self.task.chance_loss,
            "steps": self.step,
            "epochs": self.step / recipe.steps_per_epoch(self.task.samples),
            "ended": "diverged" if self.divergence.diverged else "completed",
            "diverged": self.divergence.diverged,
            "diverged_at_step": self.divergence.at_step,
            "heldout": {
                "loss": heldout.loss,
                "error_percent": heldout.error_percent,
                **heldout.other_error_percents,
                **self.task.heldout_figures(heldout.loss),
                "groups": {
                    name: {"loss": group.loss, "error_percent": group.error_percent}
                    for name, group in heldout.groups.items()
                }
                or None,
            },
            "heldout_by_learner": {"error_percent": [each.error_percent for each in own]},
            "consensus_distance": consensus_distance(self.algorithm),
            "samples_per_second": sum(parts) * recipe.batch_size / us.size / busy if busy else None,
            "step_seconds_median": mean(step_seconds),
            "step_seconds_by_learner": step_seconds,
            "steps_by_learner": us.gather(self.algorithm.step),
            "exposed_communication_seconds_median": mean(exposed),
            "staleness": None if self.algorithm.staleness is None else self._staleness(),
            "skipped_averages": self._skipped_averages(),
            "bytes_sent_per_step": self._bytes_sent(between_nodes=False),
            "bytes_sent_between_nodes_per_step": self._bytes_sent(between_nodes=True),
            "wall_seconds": seconds,
            "versions": versions(),
            "hosts": list(us.hosts),
            "machine": "; ".join(dict.fromkeys(us.gather(machine.in_words()))),
            "git": " then ".join(map(str, self._code)) if any(self._code) else None,
            "config": recipe.model_dump(mode="json"),
        }

    def _skipped_averages(self) -> int | None:
        skipped = self.learners.gather(self.algorithm.skipped_averages)
        return None if None in skipped else sum(skipped)

    def _bytes_sent(self, between_nodes: bool) -> float:
        """A step and learner, mean over learners and over steps enough to know a random topology by."""
        sent = [self.algorithm.bytes_sent(step, between_nodes) for step in range(STEPS_OF_TRAFFIC)]
        return self.learners.mean_of(float(np.mean(sent)))


def median(values: Sequence[float]) -> float:
    """NaN of no values."""
    return float(np.median(values)) if len(values) else math.nan


def mean(values: list[float]) -> float:
    """Of those that are not NaN: of the learners that took a step."""
    numbers = [value for value in values if not math.isnan(value)]
    return float(np.mean(numbers)) if numbers else math.nan


@contextmanager
def _undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Undo what extra forward passes do to BatchNorm statistics."""
    buffers = [(b, b.clone()) for b in model.buffers()]
    yield
    for b, saved in buffers:
        b.copy_(saved)
