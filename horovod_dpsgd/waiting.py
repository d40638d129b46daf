"""Waiting that leaves the cores to those who compute, and that says for whom it waits.

MPI libraries spin while they wait. With more learners than cores a spinning learner takes the core of the very learner
it waits for, so every wait of this library polls here, and backs off.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

YIELDS = 20  # polls that only give the core away, before the first sleep
FIRST_SLEEP = 20e-6  # seconds
LONGEST_SLEEP = 1e-3
FIRST_WARNING = 10.0  # seconds; the next ones come after twice the time


class StallError(RuntimeError):
    """Another learner did not do its part within the stall timeout."""


class Backoff:
    """Call `pause()` after every unsuccessful poll: first it yields, then it sleeps from 20 us up to 1 ms."""

    def __init__(self) -> None:
        self.polls = 0
        self.sleep = FIRST_SLEEP

    def pause(self) -> None:
        self.polls += 1
        if self.polls <= YIELDS:
            os.sched_yield()
        else:
            time.sleep(self.sleep)
            self.sleep = min(2 * self.sleep, LONGEST_SLEEP)


def wait_until(done: Callable[[], bool], describe: Callable[[], str], stall_timeout: float) -> None:
    """Poll `done` until it is true.

    `describe()` is one line that names who is waited for. It is logged as a warning after 10 s, 20 s, 40 s, ..., and is
    the message of the `StallError` raised after `stall_timeout` seconds (0: wait for ever).
    """
    if done():  # as most often, in every step
        return
    start = time.perf_counter()
    next_warning = FIRST_WARNING
    backoff = Backoff()
    while not done():
        backoff.pause()
        waited = time.perf_counter() - start
        if 0 < stall_timeout <= waited and not done():  # asked again: this process may have been the one asleep
            raise StallError(f"{describe()}; gave up after {waited:.0f} s")
        if waited >= next_warning:
            log.warning("%s; waiting for %.0f s", describe(), waited)
            next_warning *= 2
