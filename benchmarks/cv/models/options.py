"""Checks of model options, which come from recipe files: each raises RecipeError in one line."""

from __future__ import annotations

import math
from typing import Any

from horovod_dpsgd.errors import RecipeError


def fraction(name: str, value: Any) -> float:
    """A probability below 1, such as dropout's."""
    if not _is_number(value) or not 0 <= value < 1:
        raise RecipeError(f"model_options.{name}: {value!r} is not a number from 0 to below 1")
    return float(value)


def factor(name: str, value: Any) -> float:
    """A finite number."""
    if not _is_number(value):
        raise RecipeError(f"model_options.{name}: {value!r} is not a number")
    return float(value)


def flag(name: str, value: Any) -> bool:
    """True or false."""
    if not isinstance(value, bool):
        raise RecipeError(f"model_options.{name}: {value!r} is neither true nor false")
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of some words."""
    if value not in choices:
        raise RecipeError(f"model_options.{name}: choose one of {', '.join(choices)}")
    return str(value)


def widths(name: str, value: Any) -> list[int]:
    """Numbers of units, one for each layer."""
    if not isinstance(value, list | tuple) or not all(type(width) is int and width > 0 for width in value):
        raise RecipeError(f"model_options.{name}: {value} is not a list of widths")
    return list(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
