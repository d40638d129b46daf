"""Two hosts on one machine, made of Linux namespaces, to launch real multi-host MPI jobs in tests and measurements.

    from benchmarks.two_hosts.netns import run_on_host1, why_not
    if (reason := why_not()): pytest.skip(reason)
    done = run_on_host1(["horovodrun", "-np", "4", "-H", "host1:2,host2:2", sys.executable, "train.py"], timeout=120)

Each call makes a world of its own: host1 and host2 have their own names, network, shared memory and IPC,
one cable between them (optionally rate-limited), and an `ssh` that gives the other host a bare environment: a real
one, with an sshd on each host, where we are root and it is installed, else a stand-in (as with TWO_HOSTS_SSH=fake).
The file system is common, as on a cluster with a network file system. The world ends with the command: no
process, interface or mount is left, and worlds that run at once do not see each other.
Works as root, and as anyone where unprivileged user namespaces are allowed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

_HERE = Path(__file__).resolve().parent
_PROGRAMS = ("setpriv", "unshare", "nsenter", "ip", "hostname")


def words(rate: str | None) -> list[str]:
    """Those that run the command behind them on host1. rate: as of `run_on_host1`."""
    return [sys.executable, "-m", "benchmarks.two_hosts", *(["--rate", rate] if rate else [])]


@cache
def why_not() -> str | None:
    """None if two hosts can be emulated here, else the reason in one line (for pytest.skip)."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"two hosts cannot be emulated: no {', '.join(missing)} on PATH (util-linux, iproute2)"
    try:
        trial = run_on_host1(["sh", "-c", "test $(hostname) = host1 && test $(ssh host2 hostname) = host2"], timeout=30)
    except subprocess.TimeoutExpired:
        return "two hosts cannot be emulated: the network between them does not come up"
    if trial.returncode != 0:
        return "two hosts cannot be emulated: " + (trial.stderr.strip().splitlines() or ["no reason given"])[-1]
    return None


def run_on_host1(
    cmd: Sequence[str],
    timeout: float,
    *,
    rate: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    capture: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run `cmd` on host1, as a user logged in there, and return its status and (text) output.

    rate: limit of the cable in each direction, as `tc` writes it ("1gbit"); needs the kernel's tbf.
    env: added to this process's environment. HOME is a scratch folder (horovodrun keeps the results of its
    network checks in ~/.horovod for an hour; they would be another world's), XDG_CACHE_HOME stays the user's.
    capture: False lets the output through to the terminal instead of returning it.
    Raises subprocess.TimeoutExpired after `timeout` seconds, with everything in the world killed.
    """
    with tempfile.TemporaryDirectory(prefix="two-hosts-") as scratch:
        return subprocess.run(
            [*_new_world(), "sh", str(_HERE / "world.sh"), scratch, rate or "-", sshd() or "-", *cmd],
            env=_environment(scratch) | dict(env or {}),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=capture,
            text=True,
            timeout=timeout,
        )


def sshd() -> str | None:
    """The ssh server that the hosts run; None if they make do with a stand-in."""
    if os.geteuid() != 0 or os.environ.get("TWO_HOSTS_SSH") == "fake":
        return None
    tools = [shutil.which(name, path=_path()) for name in ("sshd", "ssh", "ssh-keygen")]
    return tools[0] if all(tools) else None


def _new_world() -> list[str]:
    """The command that starts a process 1 whose end takes every process of the world with it."""
    as_root = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    die_with_us = ["setpriv", "--pdeathsig", "KILL"]  # a killed pytest leaves nothing behind either
    return [*die_with_us, "unshare", *as_root, "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net"]


def _environment(home: str) -> dict[str, str]:
    cache_home = os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache"))
    return {
        **os.environ,
        "PATH": _path(),
        "HOME": home,
        "XDG_CACHE_HOME": cache_home,
        # mpirun refuses root unless told twice; inside a world everybody is root
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        # both hosts run on one kernel, and UCX (MPICH's default) would find a way through its memory
        "UCX_TLS": "tcp,self",
    }


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin"  # ip and tc live there, off most users' PATH
