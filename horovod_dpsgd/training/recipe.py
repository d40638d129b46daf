"""A recipe: every hyper-parameter of a training run, from a YAML file, overridden by the command line."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from horovod_dpsgd import schedules
from horovod_dpsgd.algorithms import ALGORITHMS, taking
from horovod_dpsgd.diagnostics import intervals
from horovod_dpsgd.errors import RecipeError
from horovod_dpsgd.lamb import LAMB, without_adaptation
from horovod_dpsgd.topology import TOPOLOGIES

OPTIMIZERS = ("sgd", "adam", "adamw", "lamb")
LENGTHS = {"epochs", "max_steps"}
RATES = {"lr", "lr_scale"}
WATCHING = {
    "log_every", "eval_every", "checkpoint_every", "checkpoint_minutes", "keep", "diagnostics", "diagnostics_every",
    "diagnostics_samples", "diagnostics_hessian",
}  # fmt: skip
FREE = LENGTHS | WATCHING | {"data_dir", "stall_timeout", "slow_learner", "jitter"}  # may change when a run is resumed
ELSEWHERE = "elsewhere"  # where validation is told that a recipe is run on another machine
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)  # what PyYAML raises, an impossible date among it


Fraction = Annotated[float, Field(ge=0, lt=1)]
Epoch = Annotated[float, Field(ge=0, le=1e6)]


class Recipe(BaseModel):
    """One run. What a number comes from is said in the recipe files, beside it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())

    # What is trained
    task: str
    model: str
    model_options: dict[str, Any] = {}
    data_options: dict[str, Any] = {}
    data_dir: Path | None = None
    synthetic: bool = False  # random data of the task's shapes, to measure speed

    # By which algorithm
    algo: str = "dpsgd"
    topology: str = "matching"
    compression: Literal["none", "bfloat16"] = "none"  # of the weights that are exchanged
    noise_std: float = Field(0.0, ge=0)  # SSGD*: standard deviation of the weight noise
    mix_moments: bool = False  # DPSGD: mix momentum, or Adam's moments, as the weights

    # By which optimizer
    optimizer: Literal["sgd", "adam", "adamw", "lamb"] = "sgd"
    lr: float = Field(gt=0)  # the peak rate, after scaling and warm-up
    base_lr: float | None = Field(None, gt=0)  # the rate at base_batch_size: where lr is not given, it follows from it
    base_batch_size: int | None = Field(None, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(0.0, ge=0)
    exempt_vectors: bool | None = None  # biases and normalization weights, from weight decay and LAMB's trust ratio;
    # null: under LAMB alone
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    clip_norm: float | None = Field(None, gt=0)  # of the gradient an update is made from: DPSGD's is the learner's own

    # For how long, and at which rate
    batch_size: int = Field(gt=0)  # global: of all learners together
    accumulate: int = Field(1, gt=0)  # parts in which a learner computes its share, one after the other
    epochs: float | None = Field(None, gt=0, le=1e6)
    max_steps: int | None = Field(None, gt=0)
    warmup: int = Field(0, ge=0)  # steps
    warmup_epochs: float = Field(0.0, ge=0, le=1e6)  # the same in epochs, for any batch size
    warmup_from: float = Field(0.0, ge=0)  # the rate that warm-up starts from
    decay: Literal["constant", "steps", "exponential", "cosine"] = "constant"
    decay_epochs: list[Epoch] = []  # steps: when; exponential: one, when it begins
    decay_gamma: float = Field(0.1, gt=0, le=1)  # the factor at each of them; exponential: at each epoch from then on

    # How
    seed: int = Field(0, ge=0, lt=2**63)
    device: Literal["cpu", "cuda"] = "cpu"
    amp: bool = False  # bfloat16 autocast
    compile: bool = False  # the network, by torch.compile
    slow_learner: str | None = Field(None, pattern=r"^\d+:[1-9]\d*(\.\d+)?$")  # RANK:FACTOR
    jitter: float = Field(0.0, ge=0)  # every step's random delay: its mean, in times that the step computes
    stall_timeout: float = Field(300.0, ge=0)  # seconds; 0: wait for ever

    # What is written, in steps; 0: never (evaluation always comes at the end)
    log_every: int = Field(50, gt=0)
    eval_every: int = Field(0, ge=0)
    checkpoint_every: int = Field(1000, ge=0)  # and at the end, unless it has diverged
    checkpoint_minutes: float = Field(0.0, ge=0, le=1e6)  # one also when there was none for so long; 0: not for that
    keep: int = Field(3, ge=0)  # so many checkpoints, the newest; 0: all
    diagnostics: bool = False
    diagnostics_every: int = Field(10, gt=0)
    diagnostics_samples: int | None = Field(None, gt=0)  # of the training set, drawn anew each time; None: all
    diagnostics_hessian: bool = False  # also eq. 5: as many Hessian-vector products over them as there are learners

    @model_validator(mode="after")
    def _fits_together(self) -> Recipe:
        if self.algo not in ALGORITHMS:
            raise ValueError(f"unknown algo {self.algo!r}: choose one of {', '.join(ALGORITHMS)}")
        if self.topology not in TOPOLOGIES:
            raise ValueError(f"unknown topology {self.topology!r}: choose one of {', '.join(TOPOLOGIES)}")
        if self.epochs is None and self.max_steps is None:
            raise ValueError("one of epochs and max_steps must be given")
        algorithm = ALGORITHMS[self.algo]
        if ("noise_std" in algorithm.takes) != (self.noise_std > 0):
            raise ValueError(f"noise_std must be above 0 for {taking('noise_std')}, and belongs to no other algo")
        if self.diagnostics and algorithm.asynchronous:
            raise ValueError(f"diagnostics need all learners at one step, where {self.algo}'s never are")
        if self.compression != "none" and ("compression" not in algorithm.takes or TOPOLOGIES[self.topology].summed):
            summed = " and ".join(name for name, topology in TOPOLOGIES.items() if topology.summed)
            raise ValueError(f"compression is for algo {taking('compression')}, and topologies other than {summed}")
        if self.mix_moments and ("mix_moments" not in algorithm.takes or self.compression != "none"):
            raise ValueError(f"mix_moments is for algo {taking('mix_moments')}, without compression")
        if self.mix_moments and self.optimizer == "sgd" and not self.momentum:
            raise ValueError("mix_moments: sgd without momentum has none")
        if (self.decay in ("steps", "exponential")) != bool(self.decay_epochs):
            raise ValueError("decay_epochs must be given for decay steps and exponential, and for no other")
        if self.decay == "exponential" and len(self.decay_epochs) > 1:
            raise ValueError("decay exponential begins once: decay_epochs must be one number")
        if self.warmup and self.warmup_epochs:
            raise ValueError("warmup (steps) and warmup_epochs exclude each other")
        if self.warmup_from > self.lr:
            raise ValueError(f"warmup_from {self.warmup_from:g} is above lr {self.lr:g}: give a smaller one, as 0")
        for key in ("model_options", "data_options"):
            if not _is_json(getattr(self, key)):
                raise ValueError(f"{key} must be numbers, strings, lists and mappings with string keys")
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum")
        if self.optimizer != "sgd" and self.momentum:
            raise ValueError(f"momentum is for sgd; {self.optimizer} has betas")
        in_step = "topology" in algorithm.takes and not algorithm.asynchronous
        if self.device == "cuda" and in_step and self.topology == "hierarchical":
            raise ValueError("topology hierarchical is for device cpu")
        return self

    @model_validator(mode="after")
    def _fits_this_machine(self, info: ValidationInfo) -> Recipe:
        if info.context == ELSEWHERE:
            return self
        if self.compile and self.device == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++"))):
            raise ValueError("compile needs a C++ compiler, and there is none here")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: PyTorch finds no GPU here")
        return self

    def check_installed(self) -> None:
        """Raise RecipeError if a package that the algorithm needs is not there."""
        needed = ALGORITHMS[self.algo].needs
        if needed and find_spec(needed) is None:
            raise RecipeError(f"algo {self.algo} needs the package {needed}, which is not installed here")

    def check_learners(self, size: int) -> None:
        """Raise RecipeError if the recipe cannot be run by `size` learners."""
        if self.batch_size % size:
            raise RecipeError(f"batch_size {self.batch_size} (global) is not divisible by {size} learners")
        if self.diagnostics_samples is not None and self.diagnostics_samples < 2 * max(intervals.GROUPS, size):
            raise RecipeError(
                f"diagnostics_samples {self.diagnostics_samples} are too few for an interval: "
                f"{2 * max(intervals.GROUPS, size)} is the least for {size} learners"
            )
        if self.batch_size // size % self.accumulate:
            raise RecipeError(
                f"accumulate {self.accumulate}: the {self.batch_size // size} samples of a learner cannot be cut so"
            )
        if self.slow_learner and self.slow_rank_and_factor[0] >= size:
            raise RecipeError(f"slow_learner {self.slow_learner}: the ranks are 0 to {size - 1}")

    def samples_at_once(self, size: int) -> int:
        """How many samples each of `size` learners computes gradients of at once: so many are known to fit."""
        return max(1, self.batch_size // size // self.accumulate)

    @property
    def slow_rank_and_factor(self) -> tuple[int, float]:
        rank, factor = (self.slow_learner or "0:1").split(":")
        return int(rank), float(factor)

    def steps_per_epoch(self, samples: int) -> int:
        """Whole global batches in an epoch. Raises RecipeError if there is none."""
        if samples < self.batch_size:
            raise RecipeError(f"batch_size {self.batch_size} is larger than the training set of {samples} samples")
        return samples // self.batch_size

    def total_steps(self, samples: int) -> int:
        """Steps of the run: all `epochs`, or `max_steps` if that is less. Raises RecipeError like `steps_per_epoch`."""
        steps_per_epoch = self.steps_per_epoch(samples)
        by_epochs = math.inf if self.epochs is None else round(self.epochs * steps_per_epoch)
        return int(max(1, min(by_epochs, math.inf if self.max_steps is None else self.max_steps)))

    def warmup_steps(self, samples: int) -> int:
        return self.warmup or round(self.warmup_epochs * self.steps_per_epoch(samples))

    def schedule(self, samples: int) -> schedules.Schedule:
        """The learning rate as a function of the step."""
        warmup = self.warmup_steps(samples)
        milestones = [round(epoch * self.steps_per_epoch(samples)) for epoch in self.decay_epochs]
        match self.decay:
            case "steps":
                after = schedules.step_decay(self.lr, milestones, self.decay_gamma)
            case "exponential":
                every = self.steps_per_epoch(samples)
                after = schedules.exponential_decay(self.lr, milestones[0], every, self.decay_gamma)
            case "cosine":
                after = schedules.cosine_decay(self.lr, warmup, self.total_steps(samples))
            case _:
                after = schedules.constant(self.lr)
        return schedules.linear_warmup(after, warmup, self.warmup_from)

    def make_optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        groups = without_adaptation(model)
        exempt = self.optimizer == "lamb" if self.exempt_vectors is None else self.exempt_vectors
        if not exempt:
            groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
        if self.optimizer == "lamb":
            return LAMB(groups, self.lr, self.betas, weight_decay=self.weight_decay)
        groups = [{key: value for key, value in group.items() if key != "adapt"} for group in groups]
        if self.optimizer == "sgd":
            return torch.optim.SGD(
                groups, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
            )
        kind = torch.optim.Adam if self.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, self.lr, self.betas, weight_decay=self.weight_decay)

    def text(self) -> str:
        """The whole recipe as YAML, defaults included, so that it can be run again."""
        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False))


def load(name_or_file: str, folder: Path, overrides: dict[str, Any], elsewhere: bool = False) -> Recipe:
    """The recipe `folder`/NAME.yaml, or a file, with `overrides` put over it (mappings key by key).

    A length given there, epochs or max_steps, is the whole length: the file's other one is dropped. So it is with lr
    and lr_scale, which is no key of a Recipe: lr is computed from it here. elsewhere: what this machine lacks is no
    matter, as it is not to be run here.

    Raises RecipeError, in one line, for a file that is missing or not YAML, an unknown key, or an impossible value.
    """
    path = Path(name_or_file) if name_or_file.endswith((".yaml", ".yml")) else folder / f"{name_or_file}.yaml"
    try:
        keys = yaml.safe_load(path.read_text())
    except OSError as error:
        known = ", ".join(sorted(p.stem for p in folder.glob("*.yaml")))
        raise RecipeError(f"recipe {name_or_file!r} cannot be read ({error.strerror}); known here: {known}") from error
    except NOT_YAML as error:
        raise RecipeError(f"{path} is not YAML: {_joined(error)}") from error
    if not isinstance(keys, dict):
        raise RecipeError(f"{path} must hold keys and values")
    for alternatives in (LENGTHS, RATES):
        if alternatives & overrides.keys():
            keys = {key: value for key, value in keys.items() if key not in alternatives}
    for key, value in overrides.items():
        both = isinstance(value, dict) and isinstance(keys.get(key), dict)
        keys[key] = keys[key] | value if both else value
    return _validated(_with_rate(keys), elsewhere)


def _with_rate(keys: dict[str, Any]) -> dict[str, Any]:
    """`keys` with lr: where it is missing, base_lr times lr_scale, which is batch_size / base_batch_size by default
    (linear scaling: Goyal et al. 2017, Section 2.1). Raises RecipeError where neither lr nor these give a rate."""
    scale = keys.get("lr_scale")
    rest = {key: value for key, value in keys.items() if key != "lr_scale"}
    if "lr" in keys:
        if scale is not None:
            raise RecipeError("lr and lr_scale exclude each other")
        return rest
    if keys.get("base_lr") is None:
        raise RecipeError("lr must be given, or base_lr" + (", which lr_scale multiplies" if scale is not None else ""))
    if scale is None:
        numbers: list[Any] = [keys.get(key) for key in ("base_lr", "batch_size", "base_batch_size")]
        if not all(isinstance(number, int | float) and number > 0 for number in numbers):
            raise RecipeError("lr: base_lr x batch_size / base_batch_size gives none: all three must be above 0")
        return rest | {"lr": numbers[0] * numbers[1] / numbers[2]}
    try:
        return rest | {"lr": float(keys["base_lr"]) * float(str(scale).removesuffix("x"))}
    except (TypeError, ValueError) as error:
        raise RecipeError(f"lr_scale: {scale!r} is not a factor on base_lr, such as 16x") from error


def check_resumable(before: Recipe, now: Recipe) -> None:
    """Raise RecipeError if a run that began by one recipe would go on by another in what shapes its result.

    A cosine ends where the run does: a longer one would have had other rates from the start.
    """
    free = FREE - LENGTHS if before.decay == "cosine" else FREE
    old, new = (shaping(recipe.model_dump(), free) for recipe in (before, now))
    changed = [key for key, value in old.items() if new[key] != value]
    if changed:
        words = ", ".join(f"{key} {old[key]!r}, now {new[key]!r}" for key in changed)
        raise RecipeError(f"the run cannot be resumed by another recipe: it was begun with {words}")


def shaping(keys: Mapping[str, Any], free: Collection[str]) -> dict[str, Any]:
    """Of a recipe's keys those that shape a run's result; `free` do not. Nor does by whom data are read: tasks see to
    that."""
    data_options = {key: value for key, value in keys["data_options"].items() if key != "workers"}
    return {key: value for key, value in keys.items() if key not in free} | {"data_options": data_options}


def parse_settings(settings: list[str]) -> dict[str, Any]:
    """Overrides from KEY=VALUE words: values in YAML, a dot in a key for a key inside a key.

    Raises RecipeError for a word without "=".
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"--set {setting}: KEY=VALUE is expected")
        outer, dot, inner = key.partition(".")
        try:
            parsed = yaml.safe_load(value)
        except NOT_YAML as error:
            raise RecipeError(f"--set {setting}: {_joined(error)}") from error
        if not dot:
            overrides[key] = parsed
        elif isinstance(overrides.setdefault(outer, {}), dict):
            overrides[outer][inner] = parsed
        else:
            raise RecipeError(f"--set {setting}: {outer} is given as a value too")
    return overrides


def _is_json(thing: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(thing, allow_nan=False)) == thing)
    except (TypeError, ValueError, RecursionError):
        return False


def _joined(error: BaseException) -> str:
    return " ".join(str(error).split())


def _validated(keys: dict[str, Any], elsewhere: bool) -> Recipe:
    try:
        return Recipe.model_validate(keys, context=ELSEWHERE if elsewhere else None)
    except ValidationError as error:
        problems = "; ".join(_one_line(problem) for problem in error.errors())
        raise RecipeError(problems) from error


def _one_line(problem: Any) -> str:
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"unknown key {place!r}"
    if problem["type"] == "string_pattern_mismatch":  # the one pattern there is
        return f"{place}: RANK:FACTOR is expected, with a factor of at least 1, such as 1:4"
    return f"{place}: {message}" if place else message
