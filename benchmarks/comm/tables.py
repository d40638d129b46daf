"""The measured rows as Markdown, a file for each subject, each with what made it: commands, machine, versions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.comm.jobs import BITS_PER_SECOND, Measured
from benchmarks.comm.methods import Floor
from benchmarks.comm.output import duration, size_name
from horovod_dpsgd.report import table

Row = dict[str, Any]
NOTE = (
    "Contenders take turns (A B C A B C ...) and all learners start together; a time is until the last learner is "
    "done. Times are medians over the turns; ratios are taken turn by turn, median and quartiles. "
)


def write(measured: Sequence[Measured], folder: Path) -> list[Path]:
    """Write every file for which there is something; return them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, (title, groups, text_of) in FILES.items():
        chosen = [each for each in measured if each.job.group in groups and (each.rows or each.skipped)]
        if chosen:
            file = folder / f"{name}.md"
            parts = [f"# {title}", text_of(chosen), not_measured(chosen), provenance(chosen)]
            file.write_text("\n\n".join(part for part in parts if part) + "\n")
            files.append(file)
    return files


def exchange(measured: Sequence[Measured]) -> str:
    return "\n\n".join([NOTE + EXCHANGE_NOTE, *(_exchange_of(each) for each in measured if each.rows)])


def _exchange_of(measured: Measured) -> str:
    """One job: a row a size, a column a method, each cell time and ratio to the floor."""
    rows = measured.rows
    speed = BITS_PER_SECOND.get(measured.job.link or "")

    def wire(nbytes: int) -> list[str]:
        return [duration(8 * nbytes / speed)] if speed else []

    names = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for nbytes in dict.fromkeys(row["bytes"] for row in rows):
        found = {row["method"]: row for row in reversed(rows) if row["bytes"] == nbytes}  # the first of two floors
        lines.append([size_name(nbytes), *wire(nbytes), *(_time_and_ratio(found.get(name), name) for name in names)])
    phases = [
        [size_name(row["bytes"]), *(duration(seconds) for seconds in row["phases"].values())]
        for row in rows
        if "phases" in row
    ]
    return "\n\n".join(
        [
            f"## {_learners(measured)}",
            table.markdown(["size", *(["the link alone"] if speed else []), *names], lines),
            "The gossip exchange by its phases, on learner 0 (medians; `mix` includes waiting for the partner):",
            table.markdown(["size", "begin", "mix", "publish"], phases),
        ]
    )


def _time_and_ratio(row: Row | None, name: str) -> str:
    if row is None:
        return "-"
    return duration(row["seconds"]) + ("" if name == Floor.name else f" ({row['ratio']:.2f})")


def fused(measured: Sequence[Measured]) -> str:
    rows = [
        [
            row["measured_in"],
            row["optimizer"],
            str(row["threads"]),
            row["way"],
            duration(row["seconds"]),
            f"{row['x_default']:.2f}",
            f"{row['x_fused']:.2f}" if "x_fused" in row else "-",
        ]
        for each in measured
        for row in each.rows
    ]
    header = ["measured in", "optimizer", "threads", "way", "time", "x default", "x fused=True"]
    return NOTE + FUSED_NOTE + "\n\n" + table.markdown(header, rows)


def osu(measured: Sequence[Measured]) -> str:
    parts = ["Medians of the turns. MB are 10^6 bytes."]
    places: dict[str, list[Row]] = {}
    for each in measured:
        places.setdefault(each.job.place, []).extend(each.rows)
    for place, rows in places.items():
        if not rows:
            continue
        columns = list(dict.fromkeys((row["test"], row["window"], row["unit"]) for row in rows))
        values = {(row["test"], row["window"], row["bytes"]): row["value"] for row in rows}
        lines = [
            [str(nbytes), *(_number(values.get((test, window, nbytes))) for test, window, _ in columns)]
            for nbytes in sorted({row["bytes"] for row in rows})
        ]
        parts.append(f"## {place}")
        parts.append(table.markdown(["bytes", *(f"{unit}: {window}" for _, window, unit in columns)], lines))
    return "\n\n".join(parts)


def step_overhead(measured: Sequence[Measured]) -> str:
    parts = [NOTE + STEP_NOTE, _steps_table([each for each in measured if each.job.group == "step-overhead"])]
    loops = [row for each in measured if each.job.group == "loop" for row in each.rows]
    if loops:
        rows = [
            [row["loop"], str(row["batch"]), duration(row["seconds"]), f"{row['ratio']:.3f}", _range(row)]
            for row in loops
        ]
        header = ["loop", "batch", "step", "x bare", "quartiles"]
        parts += ["## The training loop itself, one learner, MNIST network", table.markdown(header, rows)]
    slow = [row for each in measured if each.job.group == "slow-learner" for row in each.rows]
    if slow:
        title = f"## One learner of {slow[0]['learners']} computes {slow[0]['factor']:g} times slower"
        parts += [f"{title} (computation emulated by sleeping, as if an accelerator did it)", _slow(slow)]
    return "\n\n".join(parts)


def _steps_table(measured: Sequence[Measured]) -> str:
    rows = [
        [
            row["model"],
            str(row["learners"]),
            row["algo"],
            duration(row["seconds"]),
            f"{row['ratio']:.3f}",
            _range(row),
            f"{row['ratio_to_alone']:.3f}",
            f"{row['background_cost']:.3f}",
            duration(row["exposed"]),
        ]
        for each in measured
        for row in each.rows
    ]
    header = ["model", "learners", "algorithm", "step", "x local beside it", "quartiles", "x local alone"]
    return table.markdown([*header, "local beside / alone", "exposed"], rows)


def _slow(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["algo"],
            duration(row["seconds"]),
            duration(row["seconds_slowed"]),
            f"{row['ratio']:.2f}",
            f"{row['steps_per_second']:.1f}",
            f"{row['steps_per_second_slowed']:.1f}",
        ]
        for row in rows
    ]
    header = ["algorithm", "the others' step", "one slowed down", "ratio", "steps/s of all", "one slowed down"]
    return table.markdown(header, lines)


def progress(measured: Sequence[Measured]) -> str:
    rows = []
    for each in measured:
        alone = next((row for row in _with_the_same_mpi(each, measured) if row["progress"] == "nothing"), None)
        for row in each.rows:
            slow_downs = [alone[key] / row[key] if alone else None for key in ("speed", "speed_serving")]
            rows.append(
                [
                    each.job.place,
                    row["progress"],
                    duration(row["read_seconds"]),
                    f"{row['bytes_per_second'] / 1e6:.0f}",
                    f"{100 * row['idle']:.1f} %",
                    f"{100 * row['serving']:.0f} %",
                    *map(_number, slow_downs),
                ]
            )
    header = ["between", "progress by", "read, target computing", "MB/s, target asleep", "core used, idle"]
    header += ["core used, serving", "slow-down idle", "slow-down serving"]
    return PROGRESS_NOTE + "\n\n" + table.markdown(header, rows)


def _with_the_same_mpi(measured: Measured, others: Sequence[Measured]) -> list[Row]:
    """The rows of all measurements at the same place and by the same MPI library."""
    mpi = measured.about.get("versions", {}).get("mpi_library")
    same = [each for each in others if each.rows and each.job.place == measured.job.place]
    return [row for each in same if each.about["versions"]["mpi_library"] == mpi for row in each.rows]


def two_hosts(measured: Sequence[Measured]) -> str:
    parts = [NOTE + (EMULATED_NOTE if any(each.job.link for each in measured) else HOSTS_NOTE)]
    for each in measured:
        if each.rows and each.job.script == "exchange.py":
            parts.append(_exchange_of(each))
    for each in measured:
        if each.rows and each.job.script == "step_overhead.py":
            parts += [f"## A training step; {each.job.place}", _steps_table([each])]
    for each in measured:
        if each.rows and each.job.script == "wire_bytes.py":
            parts += ["## What crosses the network", _wire_table(each.rows)]
    return "\n\n".join(parts)


def _wire_table(rows: Sequence[Row]) -> str:
    lines = [
        [
            row["operation"],
            size_name(row["bytes"]),
            f"{row['sent']:.2f} x",
            f"{row['received']:.2f} x",
            "{} x and {} x".format(*row["data"]),
        ]
        for row in rows
    ]
    return table.markdown(["operation", "size", "sent by learner 0", "received by it", "of which data"], lines)


def peers(measured: Sequence[Measured]) -> str:
    rows = [
        [
            row["model"],
            row["by"],
            duration(row["seconds"]),
            f"{row['ratio']:.2f}",
            _range(row),
            "-" if row["by"] == "local" else duration(max(0.0, row["beyond_local"])),
        ]
        for each in measured
        for row in each.rows
    ]
    header = ["model", "step by", "time", "x local", "quartiles", "beyond the local step"]
    return NOTE + PEER_NOTE + "\n\n" + table.markdown(header, rows)


def not_measured(measured: Sequence[Measured]) -> str:
    lines = [f"* {each.job.name}: {line['what']}: {line['reason']}" for each in measured for line in each.skipped]
    return "\n".join(["Not measured:", *lines]) if lines else ""


def provenance(measured: Sequence[Measured]) -> str:
    """Commands, machine, code and versions."""
    done = [each for each in measured if each.rows]
    if not done:
        return ""
    turns = sorted({row["turns"] for each in done for row in each.rows if "turns" in row})
    about = done[0].about
    commands = "\n".join(each.command for each in done)
    machines, dates, commits = (sorted({str(each.about[key]) for each in done}) for key in ("machine", "date", "git"))
    repeated = f"{turns[0]} to {turns[-1]} turns. " if turns else ""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"Commands (all by `python benchmarks/comm/run.py`):\n\n```\n{commands}\n```\n\n"
        f"{repeated}Machine: {'; '.join(machines)}. Measured {', '.join(dates)}. Code: {', '.join(commits)}.\n"
        f"Versions: {versions}."
    )


def _learners(measured: Measured) -> str:
    about = measured.about
    crowded = measured.rows[0].get("polite")
    waiting = "all wait politely" if crowded else "MPI's own waits spin, gossip waits politely"
    return f"{about['learners']} learners; {measured.job.place}; {waiting}"


def _range(row: Row) -> str:
    low, high = row["ratio_quartiles"]
    return f"{low:.3f} - {high:.3f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


EXCHANGE_NOTE = (
    "In brackets: times the floor. The floor is `torch.lerp(a, b, 0.5, out=c)` in private memory, done by all learners "
    "at once, for they share caches and memory bus: dividing by the floor of as many learners is what accounts for "
    "learners that have to share a core. Below 1 are methods whose learners find each other's weights in a shared "
    "cache. Horovod was measured last, beside a floor of its own, because its background thread disturbs the others."
)
FUSED_NOTE = (
    "`x default` compares with mixing, then `optimizer.step()` with torch's default flags; `x fused=True` with the "
    "same and torch's fused kernels. In one process `torch.lerp` of two buffers stands for the exchange; `DPSGD` is "
    "`begin_step` and `end_step` of two learners on one node."
)
STEP_NOTE = (
    "`x local beside it`: over steps without communication that took turns with it, while the algorithm's threads (if "
    "it has any) were idle; `x local alone`: over such steps timed before the algorithm was started (and after it was "
    "closed); `local beside / alone`: what those idle threads cost. `exposed`: communication that computation did not "
    "hide. SGD with momentum, everywhere by torch's fused kernel."
)
PROGRESS_NOTE = (
    "Learner 0 receives 44 MB of learner 1 again and again; learner 1, with a core of its own, multiplies matrices "
    "and never calls MPI, or sleeps. `core used`: processor time of learner 1's process while its main thread sleeps. "
    "`slow-down`: of its matrix products, against nothing driving progress. Where nothing does, a message arrives "
    "when the sender next enters MPI, here after a second. Medians."
)
EMULATED_NOTE = (
    "Two learners, one on each of two hosts emulated by network namespaces on this machine; each has its share of the "
    "machine's cores, for its threads and its progress engine."
)
HOSTS_NOTE = "Two learners, one on each of two hosts."
PEER_NOTE = (
    "`weights-only:` is a model of those weights that computes next to nothing. decent-dp (gloo) updates and averages "
    "in its backward hooks, so its exchange cannot be timed apart from the step; what a step takes beyond a local one "
    "is the last column."
)

FILES: dict[str, tuple[str, tuple[str, ...], Callable[[Sequence[Measured]], str]]] = {
    "exchange": ("One exchange of weights", ("exchange",), exchange),
    "fused": ("Mixing and update in one pass over the cache", ("fused",), fused),
    "osu": ("MPI_Get, as the OSU benchmarks measure it", ("osu",), osu),
    "step-overhead": ("A training step", ("step-overhead", "loop", "slow-learner"), step_overhead),
    "progress": ("What drives messages between nodes", ("progress",), progress),
    "two-hosts": ("Between two hosts", ("two-hosts",), two_hosts),
    "peers": ("Beside decent-dp", ("peers",), peers),
}
