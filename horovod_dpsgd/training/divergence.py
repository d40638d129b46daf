"""Divergence is a result: it ends a run early, and is written down.

A run has diverged if a loss is not finite, or if the loss is back at chance (ln K, unless the task knows better) for
good. One that has not left chance yet may only be slow: it goes on, and has diverged if it is still there at the end.
"""

from __future__ import annotations

import math

AT_CHANCE = 0.98  # of the loss at chance and above counts as knowing nothing
PATIENCE = 0.2  # of the run's steps spent at chance, after warm-up, count as "for good",
SHORTEST_PATIENCE = 100  # but never less than so many


class DivergenceWatch:
    """Looks at the mean training loss of every step; all learners see the same numbers and decide alike."""

    def __init__(self, chance_loss: float, warmup: int, total_steps: int) -> None:
        self.limit = AT_CHANCE * chance_loss
        self.warmup = warmup
        self.patience = max(SHORTEST_PATIENCE, round(PATIENCE * total_steps))
        self.at_step: int | None = None
        self._chance_since: int | None = None
        self._left_chance = False

    @property
    def diverged(self) -> bool:
        return self.at_step is not None

    def state_dict(self) -> dict[str, int | None]:
        return {"at_step": self.at_step, "chance_since": self._chance_since, "left_chance": self._left_chance}

    def load_state_dict(self, state: dict[str, int | None]) -> None:
        self.at_step, self._chance_since = state["at_step"], state["chance_since"]
        self._left_chance = bool(state["left_chance"])

    def end(self, steps: int) -> None:
        """The run is over after so many steps: if it is at chance, and not just now, it has diverged too."""
        if self._chance_since is not None and steps - self._chance_since >= SHORTEST_PATIENCE and not self.diverged:
            self.at_step = self._chance_since

    def see(self, first_step: int, losses: list[float]) -> None:
        """The losses of the steps from `first_step` on. Sets `at_step` to the step from which on all was lost."""
        for step, loss in enumerate(losses, first_step):
            if self.diverged:
                return
            if not math.isfinite(loss):
                self.at_step = step
            elif loss < self.limit or step < self.warmup:
                self._chance_since = None
                self._left_chance |= loss < self.limit
            elif self._chance_since is None:
                self._chance_since = step
            elif self._left_chance and step - self._chance_since >= self.patience:
                self.at_step = self._chance_since
