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
WORLD_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
RDMA_DEVICES = ("/sys/class/infiniband", "/sys/class/cxi")
MAPS = Path("/proc/self/maps")


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
    cores = frozenset(os.sched_getaffinity(0))
    node = us.node_of[us.rank]
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
            return family, match[1].rstrip(".")
    return text.split("\n")[0].strip("\0 ") or "unknown", ""


def judge_launch(everyone: Sequence[Facts], environment: Mapping[str, str]) -> Finding:
    n, started = len(everyone), next((int(environment[name]) for name in WORLD_SIZES if name in environment), 1)
    if n == 1 < started:
        words = f"{started} processes were started, but each finds itself alone: the launcher belongs to another MPI"
        return Finding("FAIL", "learners", f"{words} than the one mpi4py loads (python -m mpi4py --mpi-library)")
    hosts, nodes = Counter(f.host for f in everyone), len({f.node for f in everyone})
    words = f"{n} on {len(hosts)} host{'s' * (len(hosts) > 1)} ({places(hosts)}), {nodes} node{'s' * (nodes > 1)}"
    if nodes > len(hosts):
        return Finding("warn", "learners", words + ": some on one host do not share memory (containers?)")
    return Finding("ok", "learners", words)


def judge_cores(everyone: Sequence[Facts]) -> Finding:
    problems = []
    for host, learners in Counter(f.host for f in everyone).items():
        cores = cores_of(host, everyone)
        machine = next(f.machine_cores for f in everyone if f.host == host)
        if cores < learners:
            problems.append(f"{host} is over-subscribed, {learners} learners on {cores} cores: correct, but slow")
        if cores < machine:
            problems.append(f"{host}: bound to {cores} of {machine} cores (if all are yours: --bind-to none)")
    words = f"{cores_a_learner(everyone):.3g} a learner"
    return Finding("warn" if problems else "ok", "cores", "; ".join([words, *problems]))


def cores_of(host: str, everyone: Sequence[Facts]) -> int:
    return len(frozenset.union(*(f.cores for f in everyone if f.host == host)))


def cores_a_learner(everyone: Sequence[Facts]) -> float:
    """On the host that has the fewest for each."""
    return min(cores_of(host, everyone) / n for host, n in Counter(f.host for f in everyone).items())


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


def judge_library(library: str, nodes: int, multiple: bool, osc: str | None, rdma: bool) -> Finding:
    """multiple: the thread level; osc: Open MPI's component for windows, if the user chose; rdma: there are devices."""
    family, version = parse_library(library)
    numbers = tuple(int(number) for number in version.split(".") if number)
    name = f"{family} {version}{f' with osc={osc}' if osc else ''}".strip()
    if family == "Open MPI" and osc and ("sm" in osc.lstrip("^").split(",")) == osc.startswith("^"):
        words = "cannot make a window in node-shared memory (MPI_ERR_INTERN): leave its component sm in"
        return Finding("FAIL", "MPI library", f"{name} {words}")
    if family == "Open MPI" and numbers < (5,) and nodes > 1 and multiple and not rdma and not osc:
        # osc/pt2pt refuses threads, osc/rdma finds no transport: open-mpi/ompi#2614, #5242, #11466; seen with 4.1.8.
        words = f"{name} cannot make a window over TCP with MPI_THREAD_MULTIPLE (MPI_ERR_WIN, or an abort in btl/ofi)"
        return Finding("FAIL", "MPI library", f"{words}: use Open MPI 5 or MPICH, or the flags below")
    if family == "Open MPI" and numbers < (4, 1, 6):
        words = "has bugs that corrupt data in osc/rdma (see the NEWS of 4.1.5): use 4.1.6 or newer"
        return Finding("warn", "MPI library", f"{name} {words}")
    if family == "MPICH" and numbers[:2] == (4, 2):
        words = "may hang where threads meet shared memory (pmodels/mpich#7171): use 4.3 or newer"
        return Finding("warn", "MPI library", f"{name} {words}")
    if family not in ("Open MPI", "MPICH"):
        return Finding("warn", "MPI library", f"{name}: never tried; only the checks below can tell")
    return Finding("ok", "MPI library", name)


def judge_threads(level: str, nodes: int) -> Finding:
    if level == "multiple":
        return Finding("ok", "thread level", "multiple")
    words = f"{level}, but the progress engine and Horovod call MPI from threads of their own, which needs multiple:"
    words += " unset MPI4PY_RC_THREAD_LEVEL and mpi4py.rc.thread_level; else this MPI was built without threads"
    return Finding("FAIL" if nodes > 1 else "warn", "thread level", words)


def judge_memory(model: int, given: bool, local: int, folder: str, free: int) -> Finding:
    """Whether two slots for each of a node's `local` learners fit into `free` bytes."""
    need = 2 * model * local
    words = f"2 slots x {human(model)} x {local} = {human(need)} a node; {human(free)} free in {folder or 'its memory'}"
    if need <= free:
        return Finding("ok", "shared memory", words)
    advice = "start fewer learners a node"
    if folder:
        advice += f", or enlarge {folder}, if memory allows (docker: --shm-size)"
    return Finding("FAIL" if given else "warn", "shared memory", f"{words}: {advice}")


def judge_get(idle: float, alone: float, driven: float, seconds: float) -> list[Finding]:
    """Seconds of a Get from a learner that waits in MPI; that computes; that computes while progress engines run."""
    words = f"{human(GET_BYTES)} in {1e3 * alone:.1f} ms without the progress engine, {1e3 * driven:.1f} ms with it,"
    words += f" while the target computes for {seconds:g} s; {1e3 * idle:.1f} ms from a target that waits in MPI"
    waited = seconds / 2  # a Get that took so long has waited for its target to end computing
    if driven > waited:
        need = "does not help here: a step waits for its partner's whole forward and backward pass"
    elif alone > waited:
        need = "needed: yes, a Get waits until its target enters MPI; it starts by itself"
    else:
        need = "needed: no, a Get ends while its target computes; on more than one node it starts all the same"
    level = "warn" if driven > waited else "ok"
    return [Finding(level, "Get", words), Finding(level, "progress engine", need)]


def backing_folder(address: int, maps: str) -> str:
    """The folder of the file behind the memory at `address`, by the lines of /proc/self/maps; "" for private memory."""
    for line in maps.splitlines():
        first, end = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < end:
            return os.path.dirname("".join(line.split(maxsplit=5)[5:]).removesuffix(" (deleted)"))
    return ""


def bytes_of(size: str) -> int:
    """A size like 507MB in bytes. Units are powers of 1024, as in the paper's model sizes and docker's --shm-size."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:i?B)?", size, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"{size!r} is not a size such as 98MB or 1.5GB")
    return int(float(match[1]) * 1024 ** "_KMGT".index(match[2].upper() or "_"))


def human(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} TB" if count < 1000 else f"{count:.0f} TB"


def places(hosts: Mapping[str, int]) -> str:
    return ",".join(f"{host}:{count}" for host, count in hosts.items())


def flags(library: str, hosts: Sequence[str], cores: int, env: Collection[str], rdma: bool, root: bool) -> str:
    """The lines that start a job placed like this one; env: names of the variables that the other hosts need."""
    family, version = parse_library(library)
    slots, n = Counter(hosts), len(hosts)
    many = len(slots) > 1
    on = places(slots) if many else f"localhost:{n}"
    mpirun, plugin, hints = f"mpirun -np {n} -hosts {on}", "pmi2", ""
    parameters: dict[str, str] = {}
    if family == "Open MPI":
        if many and not rdma and int(version.split(".")[0]) < 5:  # only UCX is left, and must be talked into TCP
            parameters = {"osc": "sm,ucx", "opal_common_ucx_tls": "any", "opal_common_ucx_devices": "any"}
        elif many and not rdma:  # over TCP osc/rdma is far faster than osc/ucx: open-mpi/ompi#10573
            parameters = {"pml": "ob1", "osc": "^ucx"}
        mpirun = f"mpirun -np {n} -H {on} --bind-to none --map-by slot" + " --allow-run-as-root" * root
        mpirun += "".join(f" --mca {name} {value}" for name, value in parameters.items())
        mpirun += "".join(f" -x {name}" for name in env) * many
        plugin = "pmix"
        hints += "Software that comes from modules: add -x LD_LIBRARY_PATH to mpirun's.\n" * many
        hints += "Hosts on several networks: add --mca btl_tcp_if_include NETWORK/BITS.\n" * (many and not rdma)
    mca = " ".join(f"--mca {name} {value}" for name, value in parameters.items())
    exported = "".join(f"OMPI_MCA_{name}={value} " for name, value in parameters.items())
    return f"""
Flags to use on this cluster:
  {mpirun} python TRAIN.py
  horovodrun -np {n} -H {on}{f' --mpi-args="{mca}"' if mca else ""} python TRAIN.py
  {exported}srun --mpi={plugin} -N {len(slots)} -n {n} --cpus-per-task={cores} python TRAIN.py
{hints}""".rstrip()


# Trying it out. All learners take part, and all get the same answer.


def attempt(us: Learners, title: str, work: Callable[[], list[Finding]], limit: float = TIME_LIMIT) -> list[Finding]:
    """What `work` finds, or a FAIL if it raises on any learner. Ends the job, in words, if it hangs."""
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
    return [Finding("FAIL", title, f"{problems[0]} ({len(problems)} of {us.size} learners)")] if problems else found


def check_window(us: Learners, model: int, given: bool) -> list[Finding]:
    """Make a small window, read a node-local partner's slot in place, and see what lies behind the memory."""
    start = time.perf_counter()
    window = Window(us, 1024, torch.float32)
    kind = "node-shared memory" + ", exposed to all nodes" * (us.nodes > 1)
    made = Finding("ok", "window", f"{kind}, in {1e3 * (time.perf_counter() - start):.1f} ms")
    window.slots[1].fill_(us.rank + 1)
    window.publish(1, 1)
    neighbours = [rank for rank in range(us.size) if us.shares_memory_with(rank)]
    partner = neighbours[(us.local_rank + 1) % len(neighbours)]
    wait_until(lambda: window.counters(partner).last_published == 1, lambda: f"for learner {partner} to publish", 0)
    right = bool((window.slot(partner, 1) == partner + 1).all())
    folder = backing_folder(window.slots[0].data_ptr(), MAPS.read_text())
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


def free_bytes(folder: str) -> int:
    """Of the file system, and of the machine's memory: a tmpfs may promise more than there is."""
    free = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    if not os.path.isdir(folder):  # one learner alone on its node gets private memory
        return free
    disk = os.statvfs(folder)
    return min(free, disk.f_bavail * disk.f_frsize)


def check_get(us: Learners, seconds: float) -> list[Finding]:
    """A Get from another node whose target computes, without and with the progress engine."""
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
    words = ", ".join(f"{'with' if yes else 'without'} {name}" for name, yes in built.items())
    words = f"{metadata.version('horovod')}, built {words}"
    libraries = sorted(set(re.findall(r"/\S*/libmpi(?:ch)?\.so\S*", MAPS.read_text())))
    if len(libraries) > 1:
        return Finding("FAIL", "Horovod", f"{words}, for another MPI than mpi4py's: {' and '.join(libraries)}")
    if not built["MPI"]:
        return Finding("warn", "Horovod", f"{words}: --algo ssgd needs MPI")
    return Finding("ok", "Horovod", words)


# The command.


class Parser(argparse.ArgumentParser):
    """Errors are one line, from one learner."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"horovod_dpsgd.doctor: {message}\n" if environment_rank() == 0 else None)


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    p = Parser("python -m horovod_dpsgd.doctor", description=__doc__, formatter_class=layout, allow_abbrev=False)
    words = f"one learner's weights; units are powers of 1024 (default: {DEFAULT_MODEL}, VGG11, which only warns)"
    p.add_argument("--model-size", type=bytes_of, metavar="SIZE", help=words)
    p.add_argument("--seconds", type=float, default=3.0, help="that the target of a Get computes (default: 3)")
    p.add_argument("--pretend-nodes", action="store_true", help=argparse.SUPPRESS)  # each learner a node of its own
    args = p.parse_args()
    if not 2 * HEAD_START <= args.seconds <= 60:
        p.error(f"argument --seconds: {args.seconds:g} is not between {2 * HEAD_START:g} and 60")
    return args


class Report:
    """The findings so far. They are printed as they come, so that they outlive an abort by MPI."""

    def __init__(self, speaks: bool) -> None:
        self.speaks = speaks
        self.failed: set[str] = set()  # titles

    def add(self, *findings: Finding) -> None:
        for finding in findings:
            if finding.level == "FAIL":
                self.failed.add(finding.title)
            self.say(str(finding))

    def say(self, text: str) -> None:
        if self.speaks:
            print(text, flush=True)


def examine(us: Learners, args: argparse.Namespace, report: Report) -> None:
    from mpi4py import MPI

    library, rdma = MPI.Get_library_version(), any(map(os.path.exists, RDMA_DEVICES))
    levels = {MPI.THREAD_SINGLE: "single", MPI.THREAD_FUNNELED: "funneled", MPI.THREAD_SERIALIZED: "serialized"}
    level = levels.get(MPI.Query_thread(), "multiple")
    environment = dict(os.environ)
    everyone = us.gather(collect(us, library))
    use_threads(us)
    report.add(judge_launch(everyone, environment))
    if report.failed:
        return  # what each process finds alone says nothing about the job
    if args.pretend_nodes:
        us = describe(us.world, MPI.COMM_SELF.Dup())
        report.add(Finding("warn", "nodes", "each learner is taken for a node of its own, as you ask"))
    report.add(judge_library(library, us.nodes, level == "multiple", environment.get("OMPI_MCA_osc"), rdma))
    report.add(judge_threads(level, us.nodes), judge_cores(everyone), judge_gpus(everyone), judge_versions(everyone))
    if report.failed:
        report.add(Finding("skip", "window", "not tried, nor what needs it: see what failed above"))
    else:
        try_out(us, args, report)
    report.add(us.broadcast(check_horovod() if us.rank == 0 else None))
    env = [name for name in ("PATH", "PYTHONPATH") if name in environment]
    cores = max(1, int(cores_a_learner(everyone)))
    report.say(flags(library, us.hosts, cores, env, rdma, os.geteuid() == 0))


def try_out(us: Learners, args: argparse.Namespace, report: Report) -> None:
    given = args.model_size is not None
    model = args.model_size if given else bytes_of(DEFAULT_MODEL)
    report.add(*attempt(us, "window", lambda: check_window(us, model, given)))
    if us.nodes == 1:
        reason = "one node: partners are read in place"
        report.add(Finding("skip", "Get", reason), Finding("ok", "progress engine", f"needed: no, {reason}"))
    elif "window" not in report.failed:
        report.add(*attempt(us, "Get", lambda: check_get(us, args.seconds), TIME_LIMIT + 2 * args.seconds))


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
    if report.failed & {"window", "Get"} and us.rank == 0:
        abort("after a failed check MPI may not end in order")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
