"""The algorithms on stacked networks: the equations of `horovod_dpsgd.algorithms`, with a matrix product for messages.

weights W [R, n, numel]: of R runs with n learners each

SSGD, SSGD*   W <- W - alpha mean_j g_j        all rows of a run stay alike
DPSGD         W <- T W - alpha g               T [n, n]: the step's mixing matrix
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.stacked.networks import Networks
from horovod_dpsgd import topology
from horovod_dpsgd.errors import RecipeError
from horovod_dpsgd.learners import seed_everything
from horovod_dpsgd.training import Batch, Recipe, Task
from horovod_dpsgd.training.task import Part, Sampler

ALGORITHMS = ("ssgd", "ssgd-star", "dpsgd")
EAGER_STEPS = 2  # before a step is captured: libraries set themselves up in the first
CLIP_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_'s
ADAM_EPSILON = 1e-8
# What runs of one stack may differ in; all else shapes the stack.
FREE = {
    "algo", "topology", "noise_std", "mix_moments", "lr", "base_lr", "momentum", "weight_decay", "betas", "clip_norm",
    "seed", "warmup", "warmup_epochs", "warmup_from", "decay", "decay_epochs", "decay_gamma",
}  # fmt: skip


@dataclass
class Outcome:
    """train_losses: of each step, the mean over learners; heldout_losses: of the mean weights, by how many steps were
    done; consensus: at the same times, the root mean square distance of the learners' weights from their mean."""

    recipe: Recipe
    train_losses: list[float] = field(default_factory=list)
    heldout_losses: dict[int, float] = field(default_factory=dict)
    consensus: dict[int, float] = field(default_factory=dict)


def check(recipe: Recipe, learners: int) -> None:
    """Raise RecipeError for what stacked networks cannot be trained by."""
    recipe.check_learners(learners)
    if recipe.algo not in ALGORITHMS:
        raise RecipeError(f"algo {recipe.algo}: stacked networks know {', '.join(ALGORITHMS)}")
    if recipe.algo == "dpsgd" and recipe.topology == topology.Hierarchical.name:
        raise RecipeError("stacked networks are on no nodes, so that topology hierarchical would be complete")
    if recipe.optimizer not in ("sgd", "adam") or recipe.nesterov or recipe.exempt_vectors:
        raise RecipeError("stacked networks know optimizer sgd, without nesterov, and adam, and exempt no vectors")
    if recipe.compression != "none" or recipe.accumulate != 1 or recipe.compile:
        raise RecipeError("stacked networks know neither compression nor accumulate nor compile")


class Training:
    """R runs in one stack: recipes that differ in nothing but `FREE`, and take every step together."""

    def __init__(self, recipes: Sequence[Recipe], task: Task, learners: int) -> None:
        # in the order of what is done to them, so that it is done to slices
        self.recipes = sorted(recipes, key=lambda recipe: (recipe.algo == "dpsgd", recipe.mix_moments))
        first = self.recipes[0]
        self.task, self.learners, self.device, self.amp = task, learners, first.device, first.amp
        self.steps, self.eval_every = first.total_steps(task.samples), first.eval_every
        self._averaging = sum(recipe.algo != "dpsgd" for recipe in recipes)
        self._keeping = sum(not recipe.mix_moments for recipe in recipes)
        self._schedules = [recipe.schedule(task.samples) for recipe in self.recipes]
        self._mixers = [(r.topology, r.seed) for r in self.recipes[self._averaging :]]  # runs often share theirs
        self._topologies = {(name, seed): topology.create(name, learners, seed) for name, seed in self._mixers}
        self.weights = self._start()
        self.networks = Networks(task, task.make_model(), self.device)
        self._decay = self._column([recipe.weight_decay for recipe in self.recipes])
        self._clip = self._column([recipe.clip_norm or math.inf for recipe in self.recipes])
        self._noise = self._column([recipe.noise_std for recipe in self.recipes])
        self._optimizer = (_Adam if first.optimizer == "adam" else _SGD)(self)
        # What a step reads and writes stays in one place: a captured step is bound to it
        self._seed_of, self._data = self._batches()
        self._batch = self._batch_of(0)
        self._lr, self._mixing = self._column(self._rates(0)), self._matrices(0).to(self.device)
        self._losses = torch.zeros(len(recipes), learners, device=self.device)

    def _column(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)

    def _start(self) -> Tensor:
        starts = {}
        for seed in {recipe.seed for recipe in self.recipes}:
            seed_everything(seed)
            starts[seed] = Networks.flat(self.task.make_model())
        start = torch.stack([starts[recipe.seed] for recipe in self.recipes])
        return start.to(self.device).unsqueeze(1).repeat(1, self.learners, 1)

    def _batches(self) -> tuple[Tensor, Batch]:
        """Each run's number among the seeds [R], and all batches, in tensors [seeds, steps, n, B, ...]."""
        seeds = sorted({recipe.seed for recipe in self.recipes})
        parts = [Part(step, part) for step in range(self.steps) for part in range(self.learners)]
        of_seeds = []
        for seed in seeds:
            sampler = Sampler(self.task.samples, self.recipes[0].batch_size, self.learners, seed, self.task.order)
            batches = self.task.train_batches(sampler.indices(part) for part in parts)
            of_seeds.append([torch.stack(tensors) for tensors in zip(*batches, strict=True)])
        data = [torch.stack(tensors).unflatten(1, (self.steps, -1)) for tensors in zip(*of_seeds, strict=True)]
        chosen = torch.tensor([seeds.index(recipe.seed) for recipe in self.recipes], device=self.device)
        return chosen, tuple(tensor.to(self.device) for tensor in data)

    def _batch_of(self, step: int) -> Batch:
        """In tensors [R n, B, ...]."""
        return tuple(tensor[:, step][self._seed_of].flatten(0, 1) for tensor in self._data)

    def _rates(self, step: int) -> list[float]:
        return [schedule(step) for schedule in self._schedules]

    def _matrices(self, step: int) -> Tensor:
        """Those of the runs that mix, [runs, n, n]."""
        matrices = {mixer: torch.from_numpy(each.matrix(step)).float() for mixer, each in self._topologies.items()}
        of_runs = [matrices[mixer] for mixer in self._mixers]
        return torch.stack(of_runs) if of_runs else torch.zeros(0, self.learners, self.learners)

    # ---- steps ----

    def run(self) -> list[Outcome]:
        outcomes = [Outcome(recipe) for recipe in self.recipes]
        heldout = self._heldout()
        step_once: Callable[[], None] = self._step
        losses = []
        for step in tqdm(range(self.steps)):
            if step == EAGER_STEPS and self.device == "cuda":
                step_once = self._captured()
            self._load(step)
            step_once()
            losses.append(self._losses.mean(1))
            done = step + 1
            if done == self.steps or (self.eval_every and done % self.eval_every == 0):
                self._evaluate(done, heldout, outcomes)
        for outcome, of_run in zip(outcomes, torch.stack(losses).T.tolist(), strict=True):
            outcome.train_losses = of_run
        return outcomes

    def _load(self, step: int) -> None:
        for place, tensor in zip(self._batch, self._batch_of(step), strict=True):
            place.copy_(tensor)
        self._lr.copy_(self._column(self._rates(step)))
        self._mixing.copy_(self._matrices(step))
        self._optimizer.load(step)

    def _captured(self) -> Callable[[], None]:
        """The step as a CUDA graph: a small network's thousands of kernels take less time than their launches."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _step(self) -> None:
        at = self.weights
        if any(recipe.noise_std for recipe in self.recipes):
            at = at + self._noise * torch.randn_like(at)
        at = at.detach().requires_grad_()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.amp):
            losses = self.networks.losses(at.flatten(0, 1), self._batch)
        (gradients,) = torch.autograd.grad(losses.sum(), at)
        self._losses.copy_(losses.detach().unflatten(0, self._losses.shape))
        with torch.no_grad():
            self._update(gradients)

    def _update(self, gradients: Tensor) -> None:
        averaging, keeping = self._averaging, self._keeping
        gradients[:averaging] = gradients[:averaging].mean(1, keepdim=True)
        if any(recipe.clip_norm for recipe in self.recipes):
            norms = gradients.norm(dim=2, keepdim=True)
            gradients.mul_((self._clip / (norms + CLIP_EPSILON)).clamp(max=1))
        self._mix(self.weights[averaging:], self._mixing)
        for moments in self._optimizer.moments:
            self._mix(moments[keeping:], self._mixing[keeping - averaging :])
        if any(recipe.weight_decay for recipe in self.recipes):
            gradients.addcmul_(self._decay, self.weights)
        self.weights.addcmul_(self._lr, self._optimizer.direction(gradients), value=-1)

    @staticmethod
    def _mix(rows: Tensor, matrices: Tensor) -> None:
        """rows [runs, n, numel] <- T rows, never rounded to fewer bits than they have."""
        if len(rows):
            tf32, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, False
            for row, matrix in zip(rows, matrices, strict=True):
                row.copy_(matrix @ row)
            torch.backends.cuda.matmul.allow_tf32 = tf32

    # ---- evaluation ----

    def _heldout(self) -> list[Batch]:
        """Held-out batches as large as a step's, so that they fit as it does."""
        whole = [torch.cat(tensors) for tensors in zip(*self.task.shard_batches("heldout", 0, 1), strict=True)]
        return list(zip(*(tensor.to(self.device).split(self.recipes[0].batch_size) for tensor in whole), strict=True))

    @torch.no_grad()
    def _evaluate(self, done: int, heldout: Sequence[Batch], outcomes: Sequence[Outcome]) -> None:
        mean = self.weights.mean(1)
        total = torch.zeros(len(mean), dtype=torch.float64, device=mean.device)
        for batch in heldout:
            total += self.networks.losses(mean, batch, shared=True).double() * len(batch[0])
        losses = (total / sum(len(batch[0]) for batch in heldout)).tolist()
        for index, outcome in enumerate(outcomes):
            outcome.heldout_losses[done] = losses[index]
            outcome.consensus[done] = float((self.weights[index] - mean[index]).square().sum(1).mean().sqrt())


class _SGD:
    """torch.optim.SGD's direction. moments: its state; load: what changes by step; direction: of these gradients."""

    def __init__(self, training: Training) -> None:
        momentum = [recipe.momentum for recipe in training.recipes]
        self.moments = [torch.zeros_like(training.weights)] if any(momentum) else []
        self._momentum = training._column(momentum)

    def load(self, step: int) -> None:
        return None

    def direction(self, gradients: Tensor) -> Tensor:
        return self.moments[0].mul_(self._momentum).add_(gradients) if self.moments else gradients


class _Adam:
    """torch.optim.Adam's, in the same form."""

    def __init__(self, training: Training) -> None:
        self.moments = [torch.zeros_like(training.weights) for _ in range(2)]
        self._betas = [training._column([recipe.betas[k] for recipe in training.recipes]) for k in range(2)]
        self._corrections = [torch.ones_like(beta) for beta in self._betas]

    def load(self, step: int) -> None:
        for correction, beta in zip(self._corrections, self._betas, strict=True):
            correction.copy_(1 - beta.double() ** (step + 1))

    def direction(self, gradients: Tensor) -> Tensor:
        first, second = self.moments
        beta_1, beta_2 = self._betas
        first.lerp_(gradients, 1 - beta_1)
        second.mul_(beta_2).addcmul_(gradients * gradients, 1 - beta_2)
        of_first, of_second = self._corrections
        return first / of_first / ((second / of_second).sqrt_().add_(ADAM_EPSILON))
