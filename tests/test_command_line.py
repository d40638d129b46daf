"""Any command line ends in one line and status 2, or gets as far as starting the learners; never in a traceback."""

import argparse
import re
import sys
from importlib import import_module
from pathlib import Path
from unittest import mock

import pytest
from conftest import REPOSITORY, run
from hypothesis import given, settings
from hypothesis import strategies as st

from horovod_dpsgd import training
from horovod_dpsgd.command_line import bytes_of, count
from horovod_dpsgd.training import cli

RECIPES = REPOSITORY / "benchmarks/cv/recipes"
OPTIONS = sorted(
    {word for action in cli.parser("", "mnist")._actions for word in action.option_strings} - {"-h", "--help"}
)
VALUES = [
    "0",
    "-1",
    "3",
    "1e400",
    "nan",
    "1.5",
    "dpsgd",
    "ssgd",
    "adpsgd",
    "ring",
    "sgd",
    "lamb",
    "cuda",
    "auto",
    "mnist",
]
SETTINGS = [
    "momentum=0.9",
    "betas=[0.1]",
    "decay=cosine",
    "model_options.hidden=[3]",
    "model_options=1",
    "x",
    "=",
    "a.b=1",
]
WORDS = st.one_of(
    st.sampled_from(OPTIONS), st.sampled_from(VALUES), st.sampled_from(SETTINGS), st.text(max_size=8), st.just("--set")
)


class Started(BaseException):
    """The command line is right: learners would start now."""


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=8))
def test_any_command_line(words):
    said: list[str] = []
    with (
        mock.patch.object(sys, "argv", ["train.py", *words]),
        mock.patch.object(cli.learners_module, "start", side_effect=Started),
        mock.patch("builtins.print", lambda *line, **_: said.append(" ".join(map(str, line)))),
        pytest.raises((Started, SystemExit)) as end,
    ):
        training.main("", {"mnist": None}, RECIPES, "mnist")
    if isinstance(end.value, Started):
        assert not said
    else:
        assert end.value.code == 2
        assert len(said) == 1
        assert said[0].startswith("train.py: error: ")
        assert "\n" not in said[0]


def test_a_right_command_line_gets_through():
    """Else the test above would show nothing."""
    words = ["--algo", "dpsgd", "--topology", "ring", "--lr", "0.1", "--set", "momentum=0.9", "--output", "x"]
    with (
        mock.patch.object(sys, "argv", ["train.py", *words]),
        mock.patch.object(cli.learners_module, "start", side_effect=Started),
        pytest.raises(Started),
    ):
        training.main("", {"mnist": None}, Path(RECIPES), "mnist")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [
        ("1KB", 1024),
        ("44MB", 44 * 2**20),
        ("4M", 4 * 2**20),
        ("64", 64),
        ("507MB", 507 * 2**20),
        ("507MiB", 507 * 2**20),
        ("1.5G", 3 * 2**29),
        ("64 kb", 2**16),
        ("9TB", 9 * 2**40),
        ("9007199254740993", 2**53 + 1),
        ("7", 7),
    ],
)
def test_sizes_are_bytes(text, nbytes):
    assert bytes_of(text) == nbytes


@pytest.mark.parametrize("text", ["", "MB", "507XB", "-1MB", "1e3", "1.5.2KB", "nan", "infMB", "64 ", "B"])
def test_what_is_no_size_is_said(text):
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(text))):
        bytes_of(text)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", ""])
def test_what_is_no_count_is_said(text):
    assert count("16") == 16
    with pytest.raises(argparse.ArgumentTypeError, match=re.escape(f"{text!r} is not a whole number of 1 or more")):
        count(text)


def test_commands_that_start_others_do_not_wait_for_torchvision():
    commands = ("benchmarks.reproduce", "benchmarks.headroom_check", "benchmarks.stacked.__main__")
    script = f"import sys, {', '.join(commands)}; sys.exit('torchvision' in sys.modules)"
    run([sys.executable, "-c", script], timeout=300, status=0)


COMMANDS = [
    "horovod_dpsgd.doctor.__main__",
    "horovod_dpsgd.export",
    "horovod_dpsgd.headroom.__main__",
    "horovod_dpsgd.report.__main__",
    "horovod_dpsgd.restart",
    "benchmarks.asr.frequencies",
    "benchmarks.asr.prepare",
    "benchmarks.comm.exchange",
    "benchmarks.comm.run",
    "benchmarks.cv.mnist",
    "benchmarks.headroom_check",
    "benchmarks.landscape",
    "benchmarks.model_costs",
    "benchmarks.nlp.prepare",
    "benchmarks.reliability.__main__",
    "benchmarks.reproduce",
    "benchmarks.runtime.__main__",
    "benchmarks.stacked.__main__",
    "benchmarks.stacked.summary",
    "benchmarks.two_hosts.__main__",
]


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_refuses_in_one_line(module, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--nope"])
    with pytest.raises(SystemExit) as ended:
        import_module(module).main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert ": error: " in line
