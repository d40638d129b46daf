"""What this machine's MPI can and cannot do, and the flags to use. Start it as the training will be started:

    python -m horovod_dpsgd.doctor                                    this machine alone
    mpirun -np 16 -H host1:8,host2:8 python -m horovod_dpsgd.doctor   the whole job; horovodrun and srun likewise

One line a check. Exit status 0; 1 if something cannot work (FAIL); 2 for an argument that is not understood.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import NoReturn

import torch
from torch import Tensor

from horovod_dpsgd import __version__
from horovod_dpsgd.gossip.progress import Job, ProgressEngine, completion
from horovod_dpsgd.gossip.window import Window
from horovod_dpsgd.learners import Learners, abort, describe, environment_rank, start, use_threads
from horovod_dpsgd.waiting import wait_until

DEFAULT_MODEL = "507MB"  # VGG11, the largest of the paper's
GET_BYTES = 4 * 2**20
HEAD_START = 0.2  # seconds after which the target of a Get is surely computing
TIME_LIMIT = 60.0  # seconds for a check, beside what it computes on purpose
RDMA_DEVICES = ("/sys/class/infiniband", "/sys/class/cxi")
WORLD_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


@dataclass(frozen=True)
class Finding:
    level: str  # ok, warn, FAIL, or skip: not tried, and why
    title: str
    detail: str

    def __str__(self) -> str:
        return f"{self.level:<5} {self.title:<16} {self.detail}"


@dataclass(frozen=True)
class Facts:
    """What a learner knows of its surroundings before anything is tried."""

    host: str
    node: int
    cores: frozenset[int]  # those it may run on
    machine_cores: int
    gpus: int
    versions: Mapping[str, str]


def collect(us: Learners, library: str) -> Facts:
    versions = {"horovod_dpsgd": __version__, "python": platform.python_version()}
    for package in ("torch", "mpi4py", "numpy", "horovod"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    versions["MPI"] = " ".join(parse_library(library))
    cores, node = frozenset(os.sched_getaffinity(0)), us.node_of[us.rank]
    return Facts(us.hosts[us.rank], node, cores, os.cpu_count() or 1, torch.cuda.device_count(), versions)


# What the facts mean: pure functions.


def parse_library(text: str) -> tuple[str, str]:
    """Family and version of an MPI library, from what MPI_Get_library_version says."""
    for family, pattern in {
        "Open MPI": r"Open MPI v(\d[\d.]*)",
        "Intel MPI": r"Intel\(R\) MPI Library (\d[\d.]*)",
        "Cray MPICH": r"CRAY MPICH version (\d[\d.]*)",
        "MVAPICH": r"MVAPICH\d? Version\s*:\s*(\d[\d.]*)",
        "MPICH": r"MPICH Version:\s*(\d[\d.]*)",
    }.items():
        if match := re.search(pattern, text):
            return family, match[1]
    return text.split("\n")[0].strip("\0 ") or "unknown", ""


def judge_library(library: str, nodes: int, multiple: bool, osc: str, rdma: bool) -> Finding:
    """multiple: thread level; osc: Open MPI's parameter of that name, or ""; rdma: whether there are RDMA devices."""
    family, version = parse_library(library)
    numbers = tuple(int(number) for number in version.split(".") if number)
    name = f"{family} {version}".strip()
    if family == "Open MPI" and numbers < (5,):
        # Over TCP osc/pt2pt refuses threads, and osc/rdma finds no transport: open-mpi/ompi#2614, #5242, #11466.
        if nodes > 1 and multiple and not rdma and not leaves_ucx_alone(osc):
            words = "cannot make a window over TCP with MPI_THREAD_MULTIPLE (MPI_ERR_WIN, or an abort in btl/ofi)"
            return Finding("FAIL", "MPI library", f"{name} {words}: use Open MPI 5, or MPICH, or add --mca osc ucx")
        if numbers < (4, 1, 6):
            words = "has a data corruption bug in osc/rdma (4.1.5's NEWS): use 4.1.6 or newer"
            return Finding("warn", "MPI library", f"{name} {words}")
    if family == "MPICH" and numbers[:2] == (4, 2):
        words = "may hang where threads meet shared memory (pmodels/mpich#7171): use 4.3"
        return Finding("warn", "MPI library", f"{name} {words}")
    if family not in ("Open MPI", "MPICH"):
        return Finding("warn", "MPI library", f"{name}: this library has never been tried; trust the checks below only")
    return Finding("ok", "MPI library", name)


def leaves_ucx_alone(osc: str) -> bool:
    """Whether this value of Open MPI's parameter leaves UCX, and no other component, for windows over the network."""
    names = set(osc.removeprefix("^").split(","))
    others = names & {"rdma", "pt2pt"}
    return len(others) == 2 and "ucx" not in names if osc.startswith("^") else "ucx" in names and not others


def judge_threads(level: str, nodes: int) -> Finding:
    if level == "multiple":
        return Finding("ok", "thread level", "multiple")
    words = f"{level}, but the progress engine and Horovod call MPI from threads of their own, which needs multiple: "
    words += "unset MPI4PY_RC_THREAD_LEVEL and mpi4py.rc, else this MPI was built without threads"
    return Finding("FAIL" if nodes > 1 else "warn", "thread level", words)


def judge_launch(everyone: Sequence[Facts], environment: Mapping[str, str]) -> Finding:
    n, started = len(everyone), next((int(environment[name]) for name in WORLD_SIZES if name in environment), 1)
    if n == 1 < started:
        words = f"{started} processes were started, but each finds itself alone: the launcher belongs to another MPI than "
        return Finding("FAIL", "learners", words + "the one mpi4py loads (python -m mpi4py --mpi-library)")
    hosts, nodes = Counter(f.host for f in everyone), len({f.node for f in everyone})
    words = f"{n} on {len(hosts)} host{'s' * (len(hosts) > 1)} ({places(hosts)}), {nodes} node{'s' * (nodes > 1)}"
    if nodes > len(hosts):
        return Finding("warn", "learners", words + ": learners of one host that do not share memory")
    return Finding("ok", "learners", words)


def judge_cores(everyone: Sequence[Facts]) -> Finding:
    problems = []
    for host, count in Counter(f.host for f in everyone).items():
        here = [f for f in everyone if f.host == host]
        cores = len(frozenset.union(*(f.cores for f in here)))
        if cores < count:
            problems.append(f"{host} is over-subscribed, {count} learners on {cores} cores: right, but slow")
        if cores < here[0].machine_cores:
            problems.append(f"{host}: bound to {cores} of {here[0].machine_cores} cores (if all are yours: --bind-to none)")
    words = f"{cores_a_learner(everyone):.3g} a learner"
    return Finding("warn" if problems else "ok", "cores", "; ".join([words, *problems]))


def cores_a_learner(everyone: Sequence[Facts]) -> float:
    """On the host that has the fewest for each."""
    hosts = Counter(f.host for f in everyone)
    return min(len(frozenset.union(*(f.cores for f in everyone if f.host == host))) / n for host, n in hosts.items())


def judge_gpus(everyone: Sequence[Facts]) -> Finding:
    if not any(f.gpus for f in everyone):
        return Finding("ok", "GPUs", "torch sees none: training on the CPU")
    hosts = Counter(f.host for f in everyone)
    short = sorted({f.host for f in everyone if f.gpus < hosts[f.host]})
    words = f"{min(f.gpus for f in everyone)} a host" + "; fewer than learners on " * bool(short) + ", ".join(short)
    return Finding("warn" if short else "ok", "GPUs", words)


def judge_versions(everyone: Sequence[Facts]) -> Finding:
    differing = {}
    for name in sorted({name for f in everyone for name in f.versions}):
        hosts = {f.versions.get(name, "none"): f.host for f in everyone}
        if len(hosts) > 1:
            differing[name] = f"{name} is " + ", ".join(f"{version} on {host}" for version, host in hosts.items())
    if differing:
        level = "FAIL" if differing.keys() & {"MPI", "horovod_dpsgd"} else "warn"
        return Finding(level, "versions", "not the same everywhere: " + "; ".join(differing.values()))
    return Finding("ok", "versions", ", ".join(f"{name} {version}" for name, version in everyone[0].versions.items()))


def judge_memory(model: int, given: bool, local: int, folder: str, free: int) -> Finding:
    """Whether two slots for each of a node's `local` learners fit into `free` bytes."""
    need = 2 * model * local
    words = f"2 slots x {human(model)} x {local} on a node = {human(need)}; {human(free)} free in {folder or 'memory'}"
    if need <= free:
        return Finding("ok", "shared memory", words)
    advice = f"; fewer learners a node, or enlarge {folder} (docker: --shm-size)" if folder else "; fewer learners a node"
    return Finding("FAIL" if given else "warn", "shared memory", f"too little: {words}{advice}")


def judge_get(idle: float, alone: float, driven: float, seconds: float) -> list[Finding]:
    """Seconds of a Get from a learner that waits in MPI; that computes; that computes while progress engines run."""
    words = f"{human(GET_BYTES)} while the target computes for {seconds:g} s: {1e3 * alone:.1f} ms without the progress engine, "
    words += f"{1e3 * driven:.1f} ms with it ({1e3 * idle:.1f} ms from a target that waits in MPI)"
    waited = seconds / 2  # so long a Get has waited for its target to end computing
    if driven > waited:
        need = "does not help here: a step waits for its partner's whole forward and backward pass"
    elif alone > waited:
        need = "needed: yes, a Get waits until its target enters MPI; it starts by itself"
    else:
        need = "needed: no, a Get ends while its target computes; it starts all the same on more than one node"
    level = "warn" if driven > waited else "ok"
    return [Finding(level, "Get", words), Finding(level, "progress engine", need)]


def backing_folder(address: int, maps: str) -> str:
    """The folder of the file behind the memory at `address`, by the lines of /proc/self/maps; "" for private memory."""
    for line in maps.splitlines():
        span, *_, path = line.split(maxsplit=5) + [""] * (len(line.split(maxsplit=5)) < 6)
        first, end = (int(number, 16) for number in span.split("-"))
        if first <= address < end:
            return os.path.dirname(path.removesuffix(" (deleted)"))
    return ""


def bytes_of(size: str) -> int:
    """A size like 507MB in bytes. Units are powers of 1024, as in the paper's model sizes and docker's --shm-size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", size, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{size!r} is not a size such as 98MB or 1.5GB")
    return int(float(match[1]) * 1024 ** "_KMGT".index(match[2].upper() or "_"))


def human(count: float) -> str:
    units = iter(("B", "KB", "MB", "GB", "TB"))
    unit = next(units)
    while count >= 1000 and unit != "TB":
        count, unit = count / 1024, next(units)
    return f"{count:.3g} {unit}" if count < 1000 else f"{count:.0f} {unit}"


def places(hosts: Mapping[str, int]) -> str:
    return ",".join(f"{host}:{count}" for host, count in hosts.items())


def flags(library: str, hosts: Sequence[str], cores: int, env: Collection[str], rdma: bool, root: bool) -> str:
    """The lines that start a job placed like this one; env: names of the variables that the other hosts need."""
    family, version = parse_library(library)
    slots, n = Counter(hosts), len(hosts)
    on = places(slots) if len(slots) > 1 else f"localhost:{n}"
    over_tcp = family == "Open MPI" and len(slots) > 1 and not rdma
    # Version 4 has nothing but UCX there; in 5, osc/rdma is far faster (open-mpi/ompi#10573).
    mca = ("--mca osc ucx" if version < "5" else "--mca pml ob1 --mca osc ^ucx") if over_tcp else ""
    if family == "Open MPI":
        exports = [f"-x {name}" for name in env] if len(slots) > 1 else []
        how = [f"-np {n} -H {on} --bind-to none --map-by slot", mca, *exports, "--allow-run-as-root" * root]
        slurm = ["env" * over_tcp, *(f"OMPI_MCA_{word.strip().replace(' ', '=')}" for word in mca.split("--mca ")[1:])]
    else:
        how, slurm = [f"-np {n} -hosts {on}"], []
    plugin = "pmix" if family == "Open MPI" else "pmi2"
    slurm += [f"srun --mpi={plugin} -N {len(slots)} -n {n} --cpus-per-task={cores}"]
    lines = [
        ["mpirun", *how],
        [f"horovodrun -np {n} -H {on}", f'--mpi-args="{mca}"' if mca else ""],
        slurm,
    ]
    text = "\nFlags to use on this cluster:"
    text += "".join("\n  " + " ".join(filter(None, [*line, "python TRAIN.py"])) for line in lines)
    if over_tcp:
        text += "\nHosts on several networks: add --mca btl_tcp_if_include NETWORK/BITS, the one that joins them."
    return text


# Trying it out. All learners take part, and all get the same answer.


def attempt(us: Learners, title: str, work: Callable[[], list[Finding]], limit: float = TIME_LIMIT) -> list[Finding]:
    """What `work` finds, or a FAIL if it raises on any learner. Ends the job, in words, if it hangs."""
    problem, found = "", []

    def give_up() -> None:
        time.sleep(0 if problem else 1 + (us.rank > 0))  # let those speak first who know more
        abort(f"{title}: {problem or f'no end after {limit:.0f} s'}")

    timer = threading.Timer(limit, give_up)
    timer.daemon = True
    timer.start()
    try:
        found = work()  # mpi4py has MPI return its errors, and raises them here; where MPI aborts, nothing helps
    except Exception as error:
        problem = f"learner {us.rank}: {type(error).__name__}: {error}"
    problems = [its for its in us.gather(problem) if its]  # if others hang in `work`, the timer says what is known
    timer.cancel()
    return [Finding("FAIL", title, f"{problems[0]} ({len(problems)} of {us.size} learners)")] if problems else found


def check_window(us: Learners, model: int, given: bool) -> list[Finding]:
    """Make a small window, read a node-local partner's slot in place, and see what lies behind the memory."""
    start = time.perf_counter()
    window = Window(us, 1024, torch.float32)
    kind = "node-shared memory, exposed to all nodes" if us.nodes > 1 else "node-shared memory"
    made = Finding("ok", "window", f"{kind}, in {1e3 * (time.perf_counter() - start):.1f} ms")
    window.slots[1].fill_(us.rank + 1)
    window.publish(1, 1)
    neighbours = [rank for rank in range(us.size) if us.shares_memory_with(rank)]
    partner = neighbours[(us.local_rank + 1) % len(neighbours)]
    wait_until(lambda: window.counters(partner).last_published == 1, lambda: f"for learner {partner} to publish", 0)
    right = bool((window.slot(partner, 1) == partner + 1).all())
    folder = backing_folder(window.slots[0].data_ptr(), Path("/proc/self/maps").read_text())
    memory = min(us.gather((free_bytes(folder) / us.local_size, us.local_size, folder)))
    wrong = [rank for rank, its in enumerate(us.gather(right)) if not its]
    window.free()
    if len(neighbours) == 1 and us.nodes == us.size:
        read = Finding("skip", "in-place reading", "no two learners share a node (two on one host would try it)")
    elif wrong:
        read = Finding("FAIL", "in-place reading", f"learners {wrong} see other values than their partners wrote")
    else:
        read = Finding("ok", "in-place reading", f"{us.size} of {us.size} learners see what their partners wrote")
    return [made, read, judge_memory(model, given, memory[1], memory[2], int(memory[0] * memory[1]))]


def free_bytes(folder: str) -> int:
    """Of the file system, and of the machine's memory: a tmpfs may promise more than there is."""
    free = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    if not os.path.isdir(folder):  # one learner alone on its node has private memory
        return free
    disk = os.statvfs(folder)
    return min(free, disk.f_bavail * disk.f_frsize)


def check_get(us: Learners, seconds: float) -> list[Finding]:
    """A Get from another node whose target computes, with and without the progress engine."""
    window = Window(us, GET_BYTES // 4, torch.float32)
    window.slots[0].fill_(us.rank + 1)
    idle = time_get(us, window, None, 0.0)
    alone = time_get(us, window, None, seconds)
    engine = ProgressEngine(us)
    driven = time_get(us, window, engine, seconds)
    engine.close()
    window.free()
    return judge_get(idle, alone, driven, seconds)


def time_get(us: Learners, window: Window, engine: ProgressEngine | None, seconds: float) -> float:
    """Seconds in which learner 0 gets a slot of the first learner on another node, which computes meanwhile."""
    target = us.node_of.index(1)
    elapsed = 0.0
    us.barrier("the doctor's Get")
    if us.rank == target:
        compute(seconds)
    elif us.rank == 0:
        time.sleep(HEAD_START)
        out = torch.zeros_like(window.slots[0])
        start = time.perf_counter()
        job = get(window, target, out)
        if engine:
            wait_until(engine.submit(job).done, lambda: f"for a Get from learner {target}", 0)
        else:
            for pause in job:
                time.sleep(pause)
        elapsed = time.perf_counter() - start
        if not bool((out == target + 1).all()):
            raise RuntimeError(f"a Get from learner {target} on {us.hosts[target]} brought other values than it wrote")
    us.barrier("the doctor's Get")
    return float(us.broadcast(elapsed))


def get(window: Window, target: int, out: Tensor) -> Job:
    yield from completion(window.get_slot(target, 0, out))


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
    words = f"{metadata.version('horovod')}, built " + ", ".join(f"{'with' if on else 'without'} {name}" for name, on in built.items())
    libraries = sorted(set(re.findall(r"/\S*/libmpi(?:ch)?\.so\S*", Path("/proc/self/maps").read_text())))
    if len(libraries) > 1:
        return Finding("FAIL", "Horovod", f"{words}, for another MPI than mpi4py's: {' and '.join(libraries)} are loaded")
    return Finding("ok", "Horovod", words) if built["MPI"] else Finding("warn", "Horovod", f"{words}: --algo ssgd needs MPI")


# The command.


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"horovod_dpsgd.doctor: {message}\n" if environment_rank() == 0 else None)


def arguments() -> argparse.Namespace:
    p = Parser("python -m horovod_dpsgd.doctor", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words = f"one learner's weights; units are powers of 1024 (default: {DEFAULT_MODEL}, VGG11, which only warns)"
    p.add_argument("--model-size", type=bytes_of, metavar="SIZE", help=words)
    p.add_argument("--seconds", type=float, default=3.0, help="that the target of a Get computes (default: 3)")
    p.add_argument("--pretend-nodes", action="store_true", help=argparse.SUPPRESS)  # each learner a node of its own
    return p.parse_args()


class Report:
    """The findings so far. They are printed as they come, so that they outlive an abort by MPI."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.failed: list[str] = []  # titles

    def add(self, *findings: Finding) -> None:
        for finding in findings:
            self.failed += [finding.title] * (finding.level == "FAIL")
            self.say(str(finding))

    def say(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)


def main() -> int:
    args = arguments()
    try:
        us = start()
    except (ImportError, RuntimeError) as error:
        reason = f"mpi4py cannot load one: {error}".replace("\n", "; ")
        Report(environment_rank() == 0).add(Finding("FAIL", "MPI library", reason))
        return 1
    report = Report(us.rank == 0 and (us.size > 1 or environment_rank() == 0))
    examine(us, args, report)
    if {"window", "Get"} & set(report.failed) and us.rank == 0:
        abort("after a failed check MPI may not end in order")
    return 1 if report.failed else 0


def examine(us: Learners, args: argparse.Namespace, report: Report) -> None:
    from mpi4py import MPI

    library, rdma = MPI.Get_library_version(), any(map(os.path.exists, RDMA_DEVICES))
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    level = levels.get(MPI.Query_thread(), "multiple")
    everyone = us.gather(collect(us, library))
    use_threads(us)
    if args.pretend_nodes:
        us = describe(us.world, MPI.COMM_SELF.Dup())

    report.add(judge_library(library, us.nodes, level == "multiple", os.environ.get("OMPI_MCA_osc", ""), rdma))
    report.add(judge_threads(level, us.nodes), judge_launch(everyone, os.environ), judge_cores(everyone))
    report.add(judge_gpus(everyone), judge_versions(everyone))
    if report.failed:
        report.add(Finding("skip", "window", "not tried, nor what builds on it: see what failed above"))
    else:
        try_out(us, args, report)
    report.add(us.broadcast(check_horovod() if us.rank == 0 else None))
    env = [name for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH") if name in os.environ]
    report.say(flags(library, us.hosts, int(max(1, cores_a_learner(everyone))), env, rdma, os.geteuid() == 0))


def try_out(us: Learners, args: argparse.Namespace, report: Report) -> None:
    given = args.model_size is not None
    model = args.model_size if given else bytes_of(DEFAULT_MODEL)
    report.add(*attempt(us, "window", lambda: check_window(us, model, given)))
    if us.nodes == 1:
        report.add(Finding("skip", "Get", "one node: partners are read in place"))
        report.add(Finding("ok", "progress engine", "needed: no, on one node partners are read in place; it is not started"))
    elif "window" not in report.failed:
        limit = TIME_LIMIT + 3 * args.seconds
        report.add(*attempt(us, "Get", lambda: check_get(us, args.seconds), limit))


if __name__ == "__main__":
    sys.exit(main())
