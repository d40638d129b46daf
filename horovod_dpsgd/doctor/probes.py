"""What only trying tells: windows, reads in place, and messages whose sender computes. All learners take part."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata

import torch

from horovod_dpsgd import __version__
from horovod_dpsgd.doctor.judgement import (
    MESSAGE_BYTES,
    WORLD_WINDOW,
    Facts,
    Finding,
    judge_counter,
    judge_memory,
    judge_message,
    parse_library,
)
from horovod_dpsgd.gossip.counter import SharedCounter
from horovod_dpsgd.gossip.progress import ProgressEngine
from horovod_dpsgd.gossip.room import MAPS, backing_folder, free_bytes
from horovod_dpsgd.gossip.window import Window
from horovod_dpsgd.learners import Learners, abort
from horovod_dpsgd.waiting import wait_until

HEAD_START = 0.2  # seconds after which the sender of a message is surely computing
TIME_LIMIT = 60.0  # seconds for a check, beside what it computes on purpose
TAKEN = 10  # numbers, by each learner


def collect(us: Learners, library: str) -> Facts:
    versions = {"horovod_dpsgd": __version__, "python": platform.python_version()}
    for package in ("torch", "mpi4py", "numpy", "horovod"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    versions["MPI"] = " ".join(parse_library(library))
    cores = frozenset(os.sched_getaffinity(0))
    node = us.node_of[us.rank]
    return Facts(us.hosts[us.rank], node, cores, os.cpu_count() or 1, torch.cuda.device_count(), versions)


def attempt(
    us: Learners, title: str, work: Callable[[], list[Finding]], limit: float = TIME_LIMIT, level: str = "FAIL"
) -> list[Finding]:
    """What `work` finds, or a finding of `level` if it raises on any learner. Ends the job, in words, if it hangs."""
    problem, found = "", []

    def give_up() -> None:
        time.sleep(0 if problem else 1 + (us.rank > 0))  # let those speak first who know more
        abort(f"{title}: {problem or f'no end after {limit:g} s'}")

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        found = work()  # mpi4py has MPI return its errors and raises them here; where MPI aborts, nothing helps
    except Exception as error:
        problem = f"learner {us.rank}: {type(error).__name__}: {error}"
    problems = [its for its in us.gather(problem) if its]  # if others hang in `work`, the timer says what is known
    timer.cancel()
    return [Finding(level, title, f"{problems[0]} ({len(problems)} of {us.size} learners)")] if problems else found


def check_window(us: Learners, model: int, given: bool) -> list[Finding]:
    """Make a small window, read a node-local partner's slot in place, and see what lies behind the memory."""
    start = time.perf_counter()
    window = Window(us, lambda _: [1024], torch.float32)
    made = Finding("ok", "window", f"node-shared memory, in {1e3 * (time.perf_counter() - start):.1f} ms")
    window.areas[0].fill_(us.rank + 1)
    window.post(0, 1)
    neighbours = [rank for rank in range(us.size) if us.shares_memory_with(rank)]
    partner = neighbours[(us.local_rank + 1) % len(neighbours)]
    wait_until(lambda: window.counters(partner)[0] == 1, lambda: f"for learner {partner} to publish", 0)
    right = bool((window.area(partner, 0) == partner + 1).all())
    folder = backing_folder(window.areas[0].data_ptr(), MAPS.read_text())
    room, local, folder = min(us.gather((free_bytes(folder) // us.local_size, us.local_size, folder)))
    wrong = [rank for rank, its in enumerate(us.gather(right)) if not its]
    window.free()
    if us.nodes == us.size:
        read = Finding("skip", "in-place reading", "each learner is alone on its node")
    elif wrong:
        read = Finding("FAIL", "in-place reading", f"learners {wrong} see other values than their partners wrote")
    else:
        read = Finding("ok", "in-place reading", f"{us.size} of {us.size} learners see what their partners wrote")
    return [made, read, judge_memory(model, given, local, folder, room * local)]


def check_message(us: Learners, seconds: float) -> list[Finding]:
    """A message from another node whose sender computes, without and with the progress engine."""
    idle = time_message(us, None, 0.0)
    alone = time_message(us, None, seconds)
    engine = ProgressEngine(us)
    driven = time_message(us, engine, seconds)
    engine.close()
    return judge_message(idle, alone, driven, seconds)


def time_message(us: Learners, engine: ProgressEngine | None, seconds: float) -> float:
    """Seconds in which learner 0 receives from the first learner on another node, which computes meanwhile."""
    sender = us.node_of.index(1)
    weights = torch.full((MESSAGE_BYTES // 4,), us.rank + 1.0)
    elapsed = 0.0
    us.barrier("the doctor's message")
    if us.rank == sender:
        sent = engine.send(weights, 0, 0).done if engine else us.world.Isend(weights.numpy(), 0).Test
        compute(seconds)
        wait_until(sent, lambda: "for learner 0 to receive", 0)
    elif us.rank == 0:
        time.sleep(HEAD_START)
        start = time.perf_counter()
        came = engine.receive(weights, sender, 0).done if engine else us.world.Irecv(weights.numpy(), sender).Test
        wait_until(came, lambda: f"for a message from learner {sender}", 0)
        elapsed = time.perf_counter() - start
        if not bool((weights == sender + 1).all()):
            raise RuntimeError(
                f"a message from learner {sender} on {us.hosts[sender]} brought other values than it sent"
            )
    us.barrier("the doctor's message")
    return float(us.broadcast(elapsed))


def attempt_world_window(us: Learners) -> list[Finding]:
    """A window of all learners, on all nodes: only AD-PSGD needs one, so that going without is no failure."""
    engine = ProgressEngine(us) if us.nodes > 1 else None  # as in training
    found = attempt(us, WORLD_WINDOW, lambda: check_counter(us), level="warn")
    if engine:
        engine.close()
    return found


def check_counter(us: Learners) -> list[Finding]:
    """All learners take numbers from AD-PSGD's counter."""
    counter = SharedCounter(us)
    start = time.perf_counter()
    taken = [counter.take() for _ in range(TAKEN)]
    seconds = (time.perf_counter() - start) / TAKEN
    everyone = us.gather((taken, seconds))
    counter.free()
    return [judge_counter([its for its, _ in everyone], max(its for _, its in everyone))]


def compute(seconds: float) -> None:
    """Keep this learner's cores busy outside MPI, as forward and backward do."""
    end = time.perf_counter() + seconds
    matrix = torch.full((256, 256), 1e-3)
    while time.perf_counter() < end:
        matrix = torch.tanh(matrix @ matrix)


def check_horovod() -> Finding:
    """Its build flags. It is imported, on this learner alone, but not started."""
    if importlib.util.find_spec("horovod") is None:
        return Finding("warn", "Horovod", "not installed: --algo ssgd needs it, DPSGD does not")
    try:
        import horovod.torch as hvd

        built = {"MPI": hvd.mpi_built(), "Gloo": hvd.gloo_built(), "NCCL": hvd.nccl_built()}
    except Exception as error:
        return Finding("warn", "Horovod", f"cannot be imported, and --algo ssgd needs it: {error}")
    words = ", ".join(f"{'with' if yes else 'without'} {name}" for name, yes in built.items())
    words = f"{metadata.version('horovod')}, built {words}"
    libraries = sorted(set(re.findall(r"/\S*/libmpi(?:ch)?\.so\S*", MAPS.read_text())))
    if len(libraries) > 1:
        return Finding("FAIL", "Horovod", f"{words}, for another MPI than mpi4py's: {' and '.join(libraries)}")
    if not built["MPI"]:
        return Finding("warn", "Horovod", f"{words}: --algo ssgd needs MPI")
    return Finding("ok", "Horovod", words)
