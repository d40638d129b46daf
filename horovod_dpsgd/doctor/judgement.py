"""What the facts of a job mean for it: pure functions, from facts to findings and flags."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

MESSAGE_BYTES = 4 * 2**20  # what is sent to see whether messages get on
WORLD_WINDOW = "AD-PSGD window"  # the title of its finding
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
    family, numbers, version = _numbered(library)
    name = f"{family} {version}{f' with osc={osc}' if osc else ''}".strip()
    if family == "Open MPI" and osc and ("sm" in osc.lstrip("^").split(",")) == osc.startswith("^"):
        words = "cannot make a window in node-shared memory (MPI_ERR_INTERN): leave its component sm in"
        return Finding("FAIL", "MPI library", f"{name} {words}")
    if cannot_make_world_window(library, nodes, multiple, osc, rdma):
        words = f"{name} cannot make a window over TCP with MPI_THREAD_MULTIPLE (MPI_ERR_WIN, or an abort in btl/ofi)"
        return Finding("warn", "MPI library", f"{words}: for --algo adpsgd use Open MPI 5 or MPICH, or the flags below")
    if family == "Open MPI" and numbers < (4, 1, 6):
        words = "has bugs that corrupt data in osc/rdma (see the NEWS of 4.1.5): use 4.1.6 or newer"
        return Finding("warn", "MPI library", f"{name} {words}")
    if family == "MPICH" and numbers[:2] == (4, 2):
        words = "may hang where threads meet shared memory (pmodels/mpich#7171): use 4.3 or newer"
        return Finding("warn", "MPI library", f"{name} {words}")
    if family not in ("Open MPI", "MPICH"):
        return Finding("warn", "MPI library", f"{name}: never tried; only the checks below can tell")
    return Finding("ok", "MPI library", name)


def cannot_make_world_window(library: str, nodes: int, multiple: bool, osc: str | None, rdma: bool) -> bool:
    """Whether a window over all nodes, which AD-PSGD needs, is known to end in an error or an abort here."""
    # osc/pt2pt refuses threads, osc/rdma finds no transport: open-mpi/ompi#2614, #5242, #11466; seen with 4.1.8.
    family, numbers, _ = _numbered(library)
    return family == "Open MPI" and numbers < (5,) and nodes > 1 and multiple and not rdma and not osc


def _numbered(library: str) -> tuple[str, tuple[int, ...], str]:
    family, version = parse_library(library)
    return family, tuple(int(number) for number in version.split(".") if number), version


def judge_counter(taken: Sequence[Sequence[int]], seconds: float) -> Finding:
    """taken: what each learner took of a counter in the window of all; seconds: of one taking."""
    numbers = sorted(number for its in taken for number in its)
    if numbers != list(range(len(numbers))):
        return Finding("warn", WORLD_WINDOW, f"no --algo adpsgd here: numbers to be taken once each came as {numbers}")
    words = f"a counter in memory of learner 0: {len(numbers)} numbers, each taken by one learner"
    return Finding("ok", WORLD_WINDOW, f"{words}, in {1e3 * seconds:.3g} ms a number")


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


def judge_message(idle: float, alone: float, driven: float, seconds: float) -> list[Finding]:
    """Seconds of a message whose sender waits in MPI; computes; and computes while progress engines run."""
    words = (
        f"{human(MESSAGE_BYTES)} in {1e3 * alone:.1f} ms without the progress engine, {1e3 * driven:.1f} ms with it,"
    )
    words += f" while the sender computes for {seconds:g} s; {1e3 * idle:.1f} ms from a sender that waits in MPI"
    waited = seconds / 2  # a message that took so long has waited for its sender to end computing
    if driven > waited:
        need = "does not help here: a step waits for its partner's whole forward and backward pass"
    elif alone > waited:
        need = "needed: yes, a message waits until its sender enters MPI; it starts by itself"
    else:
        need = "needed: no, a message ends while its sender computes; on more than one node it starts all the same"
    level = "warn" if driven > waited else "ok"
    return [Finding(level, "message", words), Finding(level, "progress engine", need)]


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
    hints = "srun: only with an MPI built for Slurm, not one from PyPI; there use mpirun in the batch script.\n" + hints
    mca = " ".join(f"--mca {name} {value}" for name, value in parameters.items())
    exported = "".join(f"OMPI_MCA_{name}={value} " for name, value in parameters.items())
    return f"""
Flags to use on this cluster:
  {mpirun} python TRAIN.py
  horovodrun -np {n} -H {on}{f' --mpi-args="{mca}"' if mca else ""} python TRAIN.py
  {exported}srun --mpi={plugin} -N {len(slots)} -n {n} --cpus-per-task={cores} python TRAIN.py
{hints}""".rstrip()
