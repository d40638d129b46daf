"""Start a training job again when it fails, from its last checkpoint, on the hosts that are left; with any launcher.

    python -m horovod_dpsgd.restart --max-restarts 3 -- \\
        mpirun -np 16 --hostfile HOSTS python benchmarks/cv/train.py --output runs/a --resume auto

    python -m horovod_dpsgd.restart --max-restarts 3 --hosts host1:8,host2:8 --sizes 16,8 -- \\
        horovodrun -np {np} -H {hosts} python benchmarks/cv/train.py --output runs/a --resume auto --resume-average

With --hosts each of them is asked before every start whether it answers; {hosts} are those that do, and {np} is the
largest of --sizes that they have slots for. If they are too few they are asked again after --pause, which counts as a
restart. A job that was asked to end (status 143), that was given bad input (2), or whose command is not there (127) is
not started again. With --done FILE, as runs/a/result.json, a job has ended when the file is there:
Open MPI's mpirun may end with status 0 when a host is lost. SIGTERM, SIGINT, SIGUSR1 and SIGUSR2 are passed on to the
launcher. Ends with its last status.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from horovod_dpsgd.command_line import BAD_INPUT, OneLineParser, amount, count, count_or_none
from horovod_dpsgd.processes import end_with_parent

INTERRUPTED, NOT_STARTED, LOST = 143, 127, 1  # statuses
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
CHECK = "ssh -o BatchMode=yes -o ConnectTimeout=10 {host} true"
CHECK_SECONDS = 20.0


class Launcher:
    """Starts the job, passes signals on to it, and knows whether it was told to end."""

    def __init__(self) -> None:
        self.told_to_end = False
        self._early: list[int] = []  # signals that came while there was no job
        self._job: subprocess.Popen[bytes] | None = None
        for each in FORWARDED:
            signal.signal(each, self._forward)

    def run(self, command: Sequence[str]) -> int:
        """The status of `command`, as shells report it: 128 + N if signal N ended it, 127 if it cannot start."""
        try:
            # In a session of its own, where signals reach it by us alone; and it is not to outlive us.
            job = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)
        except OSError as error:
            say(f"{command[0]} cannot be started: {error.strerror}")
            return NOT_STARTED
        self._job = job  # from here on signals go to it
        while self._early:
            job.send_signal(self._early.pop(0))
        status = job.wait()
        self._job = None
        return 128 - status if status < 0 else status

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        self.told_to_end |= number != signal.SIGUSR1
        if self._job is None:
            if number != signal.SIGUSR1:  # without a job there is nothing to save
                self._early.append(number)
        elif self._job.poll() is None:
            self._job.send_signal(number)


def main() -> int:
    given, command = _arguments()
    launcher = Launcher()
    for restarts in range(given.max_restarts + 1):
        hosts = [host for host in given.hosts if _answers(host, given.check)]
        words = fill(command, hosts, given.sizes) if given.hosts else command
        if launcher.told_to_end:
            return INTERRUPTED
        if words is None:  # perhaps a host will be back
            needed = min(given.sizes or [1])
            say(f"no start: {sum(slots for _, slots in hosts)} slots are left, and the job needs {needed}")
            status = LOST
        else:
            say(f"{'restart ' + str(restarts) if restarts else 'start'}: {shlex.join(words)}")
            began = time.monotonic()
            status = launcher.run(words)
            if status in (BAD_INPUT, INTERRUPTED, NOT_STARTED) or launcher.told_to_end:
                return status
            if status == 0 and (given.done is None or given.done.exists()):
                return status
            lost = "" if status else f", but {given.done} is not there"
            say(f"the job ended with status {status}{lost} after {time.monotonic() - began:.0f} s")
            status = status or LOST
        if restarts < given.max_restarts:
            time.sleep(given.pause)
    say(f"giving up after {given.max_restarts} restart(s)")
    return status


def fill(command: Sequence[str], hosts: Sequence[tuple[str, int]], sizes: Sequence[int]) -> list[str] | None:
    """The command with {np} and {hosts} filled in; None if the hosts have too few slots for any of `sizes`.

    sizes: numbers of learners that the job may have; none given: as many as there are slots.
    """
    slots = sum(each for _, each in hosts)
    fitting = [size for size in sizes or [slots] if 0 < size <= slots]
    if not fitting:
        return None
    values = {"{np}": str(max(fitting)), "{hosts}": ",".join(f"{host}:{each}" for host, each in hosts)}
    filled = list(command)
    for name, value in values.items():
        filled = [word.replace(name, value) for word in filled]
    return filled


def say(line: str) -> None:
    print(f"horovod_dpsgd.restart: {line}", file=sys.stderr, flush=True)


def _answers(host: tuple[str, int], check: str) -> bool:
    command = shlex.split(check.replace("{host}", host[0]))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        answers = False
    else:
        answers = done.returncode == 0
    if not answers:
        say(f"{host[0]} does not answer to `{shlex.join(command)}`: left out")
    return answers


def _arguments() -> tuple[argparse.Namespace, list[str]]:
    p = OneLineParser("python -m horovod_dpsgd.restart", description=__doc__)
    p.add_argument("--max-restarts", type=count_or_none, default=3, metavar="N", help="default: %(default)s")
    p.add_argument("--pause", type=amount, default=5.0, metavar="SECONDS", help="before each (default: %(default)s)")
    p.add_argument("--hosts", type=_hosts, default=[], metavar="HOST:SLOTS,...", help="fills in {hosts} and {np}")
    p.add_argument("--sizes", type=_sizes, default=[], metavar="N,...", help="allowed {np} (default: all slots)")
    p.add_argument("--check", default=CHECK, metavar="COMMAND", help="status 0 if {host} lives (default: %(default)s)")
    p.add_argument("--done", type=Path, metavar="FILE", help="status 0 counts only if this file is there")
    p.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="the job, launcher and all")
    given = p.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        p.error("no command is given: ... -- mpirun ...")
    if not given.hosts and any("{np}" in word or "{hosts}" in word for word in command):
        p.error("{np} and {hosts} in the command need --hosts")
    return given, command


def _sizes(words: str) -> list[int]:
    return [count(word) for word in words.split(",")]


def _hosts(words: str) -> list[tuple[str, int]]:
    pairs = [word.rpartition(":") for word in words.split(",")]
    if not all(host for host, _, _ in pairs):
        raise argparse.ArgumentTypeError(f"{words!r} is not HOST:SLOTS,HOST:SLOTS")
    return [(host, count(slots)) for host, _, slots in pairs]


if __name__ == "__main__":
    sys.exit(main())
