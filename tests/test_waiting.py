"""Waiting, on a clock of our own: no test here sleeps."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace

import pytest

from horovod_dpsgd import waiting
from horovod_dpsgd.waiting import FIRST_SLEEP, LONGEST_SLEEP, YIELDS, Backoff, StallError, wait_until


class Clock:
    """A clock that only sleeping moves: by `seconds_a_sleep` where that is given (a machine that is busy)."""

    def __init__(self, seconds_a_sleep=None):
        self.now = 1000.0
        self.sleeps = []
        self.yields = 0
        self.seconds_a_sleep = seconds_a_sleep

    def perf_counter(self):
        return self.now

    def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += self.seconds_a_sleep or seconds

    def sched_yield(self):
        self.yields += 1

    def after(self, seconds):
        """Something that is done from so many seconds on."""
        return lambda end=self.now + seconds: self.now >= end


@pytest.fixture
def clock(monkeypatch):
    clock = Clock(seconds_a_sleep=1.0)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(perf_counter=clock.perf_counter, sleep=clock.sleep))
    monkeypatch.setattr(waiting, "os", SimpleNamespace(sched_yield=clock.sched_yield))
    return clock


def never():
    return False


def late():
    return "learner 3, step 1041: learner 7 has published 1040"


def test_what_is_done_costs_nothing(clock):
    wait_until(lambda: True, late, 300)
    assert (clock.yields, clock.sleeps) == (0, [])


@pytest.mark.parametrize("seconds", [1, 25, 299])
def test_it_waits_no_longer_than_it_takes(clock, seconds):
    wait_until(clock.after(seconds), late, 300)
    assert clock.now - 1000 == pytest.approx(seconds)


def test_a_stall_says_who_was_waited_for_and_how_long(clock):
    with pytest.raises(StallError, match="300 s") as raised:
        wait_until(never, late, 300)
    assert str(raised.value).startswith(late())
    assert clock.now - 1000 == pytest.approx(300)


def test_without_a_timeout_it_waits_for_ever(clock):
    wait_until(clock.after(20_000), late, 0)
    assert clock.now - 1000 == pytest.approx(20_000)


def test_warnings_come_after_10_20_40_seconds_with_what_is_known_then(clock, caplog):
    def describe():
        return f"learner 7 is {clock.now - 1000:.0f} s late"

    with caplog.at_level(logging.WARNING, "horovod_dpsgd.waiting"):
        wait_until(clock.after(100), describe, 300)
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 4
    expected = [f"learner 7 is {seconds} s late; waiting for {seconds} s" for seconds in (10, 20, 40, 80)]
    assert [record.getMessage() for record in caplog.records] == expected


def test_a_short_wait_neither_warns_nor_asks_who(clock, caplog):
    wait_until(clock.after(9), lambda: pytest.fail("asked"), 300)
    assert not caplog.records


def test_what_the_poll_raises_comes_through(clock):
    def broken():
        if clock.now > 1003:
            raise ZeroDivisionError
        return False

    with pytest.raises(ZeroDivisionError):
        wait_until(broken, late, 300)


def test_a_process_that_was_stopped_looks_again_before_it_gives_up(clock):
    clock.seconds_a_sleep = 400  # a laptop's lid, a suspended job: the partner was done long ago
    wait_until(clock.after(1), late, 300)
    assert clock.now - 1000 == pytest.approx(400)


def test_backoff_yields_then_doubles_its_sleeps_up_to_the_longest(clock):
    backoff = Backoff()
    for _ in range(YIELDS + 10):
        backoff.pause()
    assert clock.yields == YIELDS
    assert clock.sleeps == pytest.approx([min(FIRST_SLEEP * 2**i, LONGEST_SLEEP) for i in range(10)])


def test_a_wait_of_a_second_polls_no_more_than_a_thousand_times(clock):
    clock.seconds_a_sleep = None
    polls = 0

    def done(end=clock.now + 1):
        nonlocal polls
        polls += 1
        return clock.now >= end

    wait_until(done, late, 300)
    assert polls <= YIELDS + 2 + math.ceil(1 / LONGEST_SLEEP) + 6
