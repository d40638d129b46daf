"""Where on a ladder stability ends. Rungs are whole numbers, 0 the start, harder upwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Judge = Callable[[int, int], bool]  # is the run at this rung, with this seed, stable?


@dataclass(frozen=True)
class Boundary:
    """What was found, and between which rungs the end of stability is.

    stable: the hardest rung with every seed stable, below all at which a run failed; None: the ladder has none.
    fails: the easiest rung with every seed failing, above all at which a run was stable; None: the ladder has none.
    At rungs between the two, all tried, seeds disagree or outcomes are out of order.
    """

    stable: int | None
    fails: int | None


def find_boundary(judge: Judge, seeds: Sequence[int], easiest: int, hardest: int) -> Boundary:
    """Bracket the boundary and bisect by the first seed; then move both ends apart until all seeds agree on them.

    easiest <= 0 <= hardest: the ends of the ladder. `judge` is asked for the same run more than once.
    """
    stable, fails = _bracket(lambda rung: judge(rung, seeds[0]), easiest, hardest)
    while fails - stable > 1:
        middle = (stable + fails) // 2
        if judge(middle, seeds[0]):
            stable = middle
        else:
            fails = middle
    # Lists, not generators: how many seeds agree is worth knowing
    while stable >= easiest and not all([judge(stable, seed) for seed in seeds]):
        stable -= 1
    while fails <= hardest and any([judge(fails, seed) for seed in seeds]):
        fails += 1
    return Boundary(stable if stable >= easiest else None, fails if fails <= hardest else None)


def _bracket(is_stable: Callable[[int], bool], easiest: int, hardest: int) -> tuple[int, int]:
    """A stable rung and a harder one that fails, in strides that double; one beyond the ladder's end if it has none."""
    upwards = is_stable(0)
    end = hardest if upwards else easiest
    last, stride = 0, 1
    while last != end:
        rung = min(last + stride, end) if upwards else max(last - stride, end)
        if is_stable(rung) != upwards:
            return (last, rung) if upwards else (rung, last)
        last, stride = rung, 2 * stride
    return (last, hardest + 1) if upwards else (easiest - 1, last)
