"""The command lines of the measurements: what they share, and how they refuse what cannot be measured.

A refusal is one line, from one learner, and exit status 2 on all.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from benchmarks.comm import models
from horovod_dpsgd.command_line import BAD_INPUT, OneLineParser, amount, bytes_of, complain, count, number
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.topology import TOPOLOGIES, Matching

BFLOAT16 = "bfloat16"


def parser(description: str | None, turns: int | None = 9) -> OneLineParser:
    """The options that all measurements share; turns None: without --turns."""
    p = OneLineParser(description=description)
    p.add_argument("--output", type=Path, metavar="FILE", help="JSON lines; default: the terminal alone")
    if turns is not None:
        p.add_argument("--turns", type=count, default=turns, help="repetitions, interleaved (default: %(default)s)")
    p.add_argument(
        "--budget",
        type=amount,
        default=60.0,
        metavar="SECONDS",
        help="stop a comparison after so long, if three turns are done (default: %(default)s)",
    )
    return p


def refuse(us: Learners, reason: str) -> NoReturn:
    """End all learners, each of which has found the reason. Collective."""
    if us.rank == 0:
        complain(reason)
    us.barrier("the end")  # so that no launcher ends learner 0 before it has spoken
    sys.exit(BAD_INPUT)


def need_two_nodes(us: Learners) -> None:
    """Refuse all but one learner on each of two nodes. Collective."""
    if us.size != 2 or us.nodes != 2:
        refuse(us, f"this is about 2 learners on 2 nodes, not {us.size} on {us.nodes} (see --help)")


# What gossip.create is asked for


def add_exchange(p: argparse.ArgumentParser, concerns: str = "the gossip exchange") -> None:
    """--topology and --compression; concerns: what they are options of."""
    p.add_argument(
        "--topology", choices=list(TOPOLOGIES), default=Matching.name, help=f"of {concerns} (default: %(default)s)"
    )
    p.add_argument("--compression", choices=["none", BFLOAT16], default="none", help="of the weights exchanged by it")


def check_exchange(p: argparse.ArgumentParser, given: argparse.Namespace) -> None:
    """Refuse a topology that exchanges no compressed weights with --compression."""
    if given.compression != "none" and TOPOLOGIES[given.topology].summed:
        p.error(f"--compression {given.compression}: topology {given.topology} exchanges no compressed weights")


def exchange_name(what: str, topology: str, compression: str) -> str:
    """Plain `what` for the exchange that is measured if nothing is said, else for instance "`what` (ring)"."""
    words = [topology] + [compression] * (compression != "none")
    return what if words == [Matching.name] else f"{what} ({', '.join(words)})"


# Types of values


def some_seconds(text: str) -> float:
    """Long enough to count something in them."""
    return number(text, float, 0.01)


def weights_size(text: str) -> int:
    """Bytes of a buffer of float32."""
    nbytes = bytes_of(text)
    if nbytes < 4:
        raise argparse.ArgumentTypeError(f"{text!r} is too small for a weight, which takes 4 bytes")
    return nbytes


def weights_sizes(text: str) -> list[int]:
    return [weights_size(size) for size in text.split(",")]


def model(text: str) -> str:
    try:
        models.check(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def names(known: Iterable[str], separator: str = ",") -> Callable[[str], list[str]]:
    """Some of the names that are known, each given once."""

    def some(text: str) -> list[str]:
        given = text.split(separator)
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(map(repr, known))}")
        if len(set(given)) < len(given):
            raise argparse.ArgumentTypeError(f"{text!r} names one twice")
        return given

    return some
