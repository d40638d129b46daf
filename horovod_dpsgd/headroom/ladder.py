"""The rungs of a ladder: ever larger rates or batches, or ever shorter warm-ups, in equal factors from the recipe's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from horovod_dpsgd.report.runs import Run

LONGEST_WARMUP = 2 / 3  # of a run


class Rung(NamedTuple):
    """A peak rate, a global batch, or steps of warm-up, and the arguments that ask for it."""

    value: float
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.value:.10g}"


class Recipe:
    """What a short run of the user's training says about it."""

    def __init__(self, pilot: Run) -> None:
        self.config: dict[str, Any] = pilot.result["config"]
        self.learners: int = pilot.result["learners"]
        self.lr, self.batch = self.config["lr"], self.config["batch_size"]
        steps_per_epoch = round(pilot.result["steps"] / pilot.result["epochs"])
        self.samples: int = steps_per_epoch * self.batch  # those of whole batches
        self.warmup = self.warmup_at(self.batch)

    def warmup_at(self, batch: int) -> int:
        """Steps."""
        return self.config["warmup"] or round(self.config["warmup_epochs"] * (self.samples // batch))


def ladder(over: str, recipe: Recipe, steps: int, factor: float, rungs: int) -> dict[int, Rung]:
    """Rungs by number, 0 the recipe's own: up to `rungs` to each side, each `factor` times harder than the one before.

    over: "lr", "batch" (the rate grows with it, Goyal et al. 2017, Section 2.1) or "warmup". A ladder ends early where
    its values do: at the training set, at two samples a learner (BatchNorm), at no warm-up, or a warm-up
    of 2/3 of `steps`.
    """
    made = {number: MAKERS[over](recipe, factor**number, steps) for number in range(-rungs, rungs + 1)}
    found: dict[int, Rung] = {}
    for numbers in (range(rungs + 1), range(0, -rungs - 1, -1)):
        for number in numbers:
            rung = made[number]
            if rung is None or (number and rung.value in [other.value for other in found.values()]):
                break
            found[number] = rung
    return found


def _rate(recipe: Recipe, harder: float, _steps: int) -> Rung:
    lr = float(f"{recipe.lr * harder:.4g}")
    return Rung(lr, _rate_words(recipe, lr))


def _batch(recipe: Recipe, harder: float, steps: int) -> Rung | None:
    unit = recipe.learners * recipe.config["accumulate"]
    batch = round(recipe.batch * harder / unit) * unit
    words = ("--batch-size", str(batch), *_rate_words(recipe, recipe.lr * batch / recipe.batch))
    fits = 2 * unit <= batch <= recipe.samples and recipe.warmup_at(batch) <= LONGEST_WARMUP * steps
    return Rung(batch, words) if harder == 1 or fits else None


def _warmup(recipe: Recipe, harder: float, steps: int) -> Rung | None:
    """Of one step: none."""
    warmup = max(1, round(max(1, recipe.warmup) / harder))
    words = ("--warmup", str(warmup), "--set", "warmup_epochs=0")
    return Rung(warmup, words) if harder == 1 or warmup <= LONGEST_WARMUP * steps else None


def _rate_words(recipe: Recipe, lr: float) -> tuple[str, ...]:
    return ("--lr", f"{lr:.6g}", "--set", f"warmup_from={min(lr, recipe.config['warmup_from']):.6g}")


MAKERS: dict[str, Callable[[Recipe, float, int], Rung | None]] = {"lr": _rate, "batch": _batch, "warmup": _warmup}
