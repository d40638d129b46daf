"""What the command lines share: a user's mistake is one line, from one process of a job, and exit status 2."""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from horovod_dpsgd.errors import UserError
from horovod_dpsgd.processes import environment_rank

BAD_INPUT = 2  # exit status, as of argparse
Number = TypeVar("Number", int, float)


class _Parser(argparse.ArgumentParser):
    """Shows its description, a module's docstring, as it is; takes no abbreviations, which the next option may make
    ambiguous."""

    def __init__(self, *positional: Any, **named: Any) -> None:
        super().__init__(*positional, **named)
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        self.allow_abbrev = False


class RaisingParser(_Parser):
    """Raises UserError, for programs that also find mistakes elsewhere and end by `give_up` for all of them."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


class OneLineParser(_Parser):
    """Ends the program without printing its usage. Every learner finds the error before it starts MPI; one speaks."""

    def error(self, message: str) -> NoReturn:
        give_up(message, self.prog, speaks=environment_rank() == 0)


def give_up(reason: object, program: str | None = None, *, speaks: bool = True) -> NoReturn:
    """End this process with status 2, after the line that says why, if it is this one that speaks.

    program: its name in the line (default: the script's).
    """
    if speaks:
        complain(reason, program)
    sys.exit(BAD_INPUT)


def complain(reason: object, program: str | None = None) -> None:
    """The line alone, for learners that must end together."""
    words = " ".join(str(reason).split())
    print(f"{program or Path(sys.argv[0]).name}: error: {words}", file=sys.stderr, flush=True)


def split_arguments(words: list[str]) -> tuple[list[str], list[str]]:
    """What is before "--", and what is behind it: arguments for the training runs."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


# Types of values


def count(text: str) -> int:
    """A whole number, 1 or more. Raises argparse.ArgumentTypeError for anything else."""
    return number(text, int, 1)


def count_or_none(text: str) -> int:
    """A whole number, 0 or more. Raises argparse.ArgumentTypeError for anything else."""
    return number(text, int, 0)


def amount(text: str) -> float:
    """A finite number, 0 or more. Raises argparse.ArgumentTypeError for anything else."""
    return number(text, float, 0)


def number(text: str, kind: Callable[[str], Number], least: float) -> Number:
    """A finite one of this kind, not below `least`. Raises argparse.ArgumentTypeError for anything else."""
    words = "a whole number" if kind is int else "a number"
    wrong = argparse.ArgumentTypeError(f"{text!r} is not {words} of {least} or more")
    try:
        found = kind(text)
    except ValueError:
        raise wrong from None
    if not least <= found < math.inf:
        raise wrong
    return found


def bytes_of(text: str) -> int:
    """Bytes of "64", "16KB" or "1.5 GiB". Units are powers of 1024, as in OSU's benchmarks, the paper's model sizes and
    docker's --shm-size.

    Raises argparse.ArgumentTypeError for anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(?: ?([KMGT])?i?B| ?([KMGT]))?", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 64, 16KB or 1.5GB")
    unit = (match[2] or match[3] or "_").upper()
    return int(Fraction(match[1]) * 1024 ** "_KMGT".index(unit))
