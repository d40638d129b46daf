"""Options inside a recipe: a class of pydantic's for each kind, and one line for the user where they are wrong."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from horovod_dpsgd.errors import RecipeError


class Options(BaseModel):
    """The base of all: no other keys, no NaN, and no words for numbers."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True, protected_namespaces=())


Kind = TypeVar("Kind", bound=Options)


def parse(kind: type[Kind], key: str, given: dict[str, Any]) -> Kind:
    """The options of `kind` that the recipe's `key` holds. Raises RecipeError naming every one that is wrong."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise RecipeError("; ".join(_line(key, kind, problem) for problem in error.errors())) from error


def _line(key: str, kind: type[Options], problem: Any) -> str:
    place = ".".join(map(str, (key, *problem["loc"])))
    if problem["type"] == "extra_forbidden":
        return f"{place}: unknown; known are {', '.join(kind.model_fields)}"
    return f"{place}: {problem['msg'].removeprefix('Value error, ')}"
