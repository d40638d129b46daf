"""What signals ask of a run, and that all learners act on it at one step."""

import os
import signal
import time

import pytest
from conftest import PROGRAMS

from horovod_dpsgd.training.requests import SIGNALS, Asked, Requests


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_asks_once_and_only_while_it_is_listened_for(number):
    before = signal.getsignal(number)
    requests = Requests()
    with requests.listening():
        os.kill(os.getpid(), number)
        assert requests.take() is SIGNALS[number]
        assert requests.take() is Asked.NOTHING
        assert requests.by_signal == (number.name if SIGNALS[number] is Asked.END else "")
    assert signal.getsignal(number) is before


@pytest.fixture
def sigint_is_caught():
    """It is ignored by what a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("sigint_is_caught")
def test_the_end_counts_more_than_a_save_and_a_second_sigint_is_not_caught():
    requests = Requests()
    with requests.listening():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert requests.take() is Asked.END
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_checkpoint_is_asked_for_when_there_was_none_for_long():
    requests = Requests(save_seconds=0.05)
    assert requests.take() is Asked.NOTHING
    time.sleep(0.06)
    assert requests.take() is Asked.SAVE
    requests.saved()
    assert requests.take() is Asked.NOTHING


@pytest.mark.mpi
@pytest.mark.parametrize("n", [2, 3, 5])
def test_all_learners_act_at_the_same_step(mpirun, n):
    assert "asked together" in mpirun(n, PROGRAMS / "asked_together.py").stdout
