"""One exchange of weights by this library and by others, beside the floor of three memory passes.

    mpirun -np 2 python benchmarks/comm/exchange.py
    mpirun -np 4 --oversubscribe python benchmarks/comm/exchange.py --sizes 1MB,44MB --turns 15
    python -m benchmarks.two_hosts --rate 1gbit \\
        mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/exchange.py
    mpirun -np 4 --oversubscribe python benchmarks/comm/exchange.py --topology ring --compression bfloat16

All learners average at the same time, for they share the memory bus; a time is until the last one is done. Where
learners outnumber cores, all methods wait politely (non-blocking calls, polled with a back-off), else the peers wait as
MPI does, by spinning. Horovod is started when everything else has been measured, for its background thread takes a part
of a core from then on; the floor is then measured again beside it. --topology and --compression are of this library's
exchange; floor and peers, which average with one partner or with all, stay what they are.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import psutil

from benchmarks.comm import arguments, measure
from benchmarks.comm.methods import (
    WITH_HOROVOD,
    WITHOUT_HOROVOD,
    Buffers,
    Floor,
    Gossip,
    Method,
    SharedFloor,
    bytes_needed,
)
from benchmarks.comm.output import Output, duration, size_name
from horovod_dpsgd import learners
from horovod_dpsgd.learners import Learners

SIZES = "1KB,4KB,16KB,64KB,256KB,1MB,4MB,16MB,44MB,64MB,256MB,512MB"  # 44 MB: the weights of a ResNet-18
BYTES_A_TURN = 2**27  # small buffers are averaged several times a turn
MOST_CALLS = 50
MakeMethod = Callable[[Learners, Buffers, bool], Method]
HEADER = ("size", "method", "time", "quartiles", "x floor", "quartiles")


def main() -> None:
    parser = arguments.parser(__doc__)
    parser.add_argument("--sizes", type=arguments.weights_sizes, default=SIZES, help="default: %(default)s")
    parser.add_argument("--no-horovod", action="store_true", help="leave Horovod out")
    arguments.add_exchange(parser)
    given = parser.parse_args()
    arguments.check_exchange(parser, given)
    us = learners.start()
    measure.use_cores(us)
    output = Output(given, "exchange", us)
    stopwatch = measure.Stopwatch(us, given.turns, given.budget)
    sizes = _those_that_fit(given.sizes, given.compression != "none", us, output)
    gossip = partial(Gossip, topology_name=given.topology, compression=given.compression)
    kinds = [kind for kind in WITHOUT_HOROVOD if us.nodes == 1 or kind is not SharedFloor]
    compare([gossip if kind is Gossip else kind for kind in kinds], sizes, stopwatch, output)
    if given.no_horovod:
        output.skip("Horovod all-reduce", "left out by --no-horovod")
    elif not importlib.util.find_spec("horovod"):
        output.skip("Horovod all-reduce", "Horovod is not installed")
    else:
        _compare_horovod(sizes, stopwatch, output)
    output.close()


def compare(kinds: Sequence[MakeMethod], sizes: Sequence[int], stopwatch: measure.Stopwatch, output: Output) -> None:
    """Measure methods in turns at every size; the first of them is the floor."""
    us = stopwatch.learners
    polite = measure.crowded(us)
    rows = []
    for nbytes in sizes:
        buffers = Buffers(nbytes // 4)
        methods = [kind(us, buffers, polite) for kind in kinds]
        calls = max(1, min(MOST_CALLS, BYTES_A_TURN // nbytes))
        times = stopwatch.compare({method.name: method for method in methods}, calls)
        for method in methods:
            values = times[method.name].row(times[Floor.name]) | _of_gossip(method)
            output.row(method=method.name, bytes=nbytes, learners=us.size, nodes=us.nodes, polite=polite, **values)
            rows.append([size_name(nbytes), method.name, *_cells(values)])
            method.close()
    output.table(HEADER, rows)


def _compare_horovod(sizes: Sequence[int], stopwatch: measure.Stopwatch, output: Output) -> None:
    import horovod.torch as hvd

    output.say("# from here on Horovod's background thread runs")
    hvd.init(comm=stopwatch.learners.world)
    compare(WITH_HOROVOD, sizes, stopwatch, output)
    hvd.shutdown()


def _of_gossip(method: Method) -> dict[str, object]:
    """What was exchanged with whom, and the median seconds of each phase on this learner, warm-up included."""
    if not isinstance(method, Gossip):
        return {}
    phases = {phase: float(np.median(seconds)) for phase, seconds in method.seconds.items()}
    return {"topology": method.topology.name, "compression": method.compression, "phases": phases}


def _cells(values: dict) -> list[str]:
    low, high = values["seconds_quartiles"]
    ratio_low, ratio_high = values["ratio_quartiles"]
    spread = f"{duration(low)} - {duration(high)}"
    return [duration(values["seconds"]), spread, f"{values['ratio']:.2f}", f"{ratio_low:.2f} - {ratio_high:.2f}"]


def _those_that_fit(sizes: Sequence[int], compressed: bool, us: Learners, output: Output) -> list[int]:
    """The sizes for which every host has the memory; the others are named."""
    memory, shared = psutil.virtual_memory().available, shutil.disk_usage("/dev/shm").free
    hosts_here = us.nodes if measure.on_one_machine(us) else 1  # emulated hosts share it
    fitting = []
    for nbytes in sizes:
        needed, needed_shared = (each * us.local_size * hosts_here for each in bytes_needed(nbytes, compressed))
        fits = needed <= 0.7 * memory and needed_shared <= 0.9 * shared
        if all(us.gather(fits)):
            fitting.append(nbytes)
        else:
            output.skip(size_name(nbytes), f"{us.size} learners need {needed / 2**30:.0f} GiB for all methods at once")
    return fitting


if __name__ == "__main__":
    main()
