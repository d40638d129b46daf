"""Between two hosts: what crosses the network when 44 MB are moved by a Get, a Put, a message or a gossip exchange?

    mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/wire_bytes.py
    python -m benchmarks.two_hosts mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/wire_bytes.py

An MPI library may emulate one-sided operations, and need more traffic for them than the data. Bytes are those that the
kernel counts at its network interfaces (all but loopback), so a transport that goes past the kernel shows none.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import torch
from torch import nn

from benchmarks.comm import arguments, measure
from benchmarks.comm.output import Output
from horovod_dpsgd import gossip, learners, topology
from horovod_dpsgd.learners import Learners
from horovod_dpsgd.parameters import FlatParameters

HEADER = ("operation", "sent by learner 0", "received by learner 0", "of which data")


def main() -> None:
    parser = arguments.parser(__doc__, turns=3)
    parser.add_argument("--size", type=arguments.weights_size, default="44MB", help="default: %(default)s")
    given = parser.parse_args()
    us = learners.start()
    arguments.need_two_nodes(us)
    output = Output(given, "wire_bytes", us)
    measure.use_cores(us)
    nbytes = given.size
    rows = []
    for name, (work, out, into, done) in _operations(us, nbytes).items():
        sent, received = min(_traffic(us, work) for _ in range(given.turns))  # more may be of others
        output.row(operation=name, bytes=nbytes, sent=sent / nbytes, received=received / nbytes, data=[out, into])
        rows.append([name, f"{sent / nbytes:.2f} x", f"{received / nbytes:.2f} x", f"{out} x and {into} x"])
        done()
    output.table(HEADER, rows)
    output.close()


def _traffic(us: Learners, work: Callable[[], object]) -> tuple[int, int]:
    """Bytes that left and that reached this host meanwhile. Collective."""
    us.barrier("the start of an operation")
    before = _counted()
    work()
    us.barrier("the end of an operation")
    after = _counted()
    return after[0] - before[0], after[1] - before[1]


def _counted() -> tuple[int, int]:
    found = [each for name, each in psutil.net_io_counters(pernic=True, nowrap=False).items() if name != "lo"]
    return sum(each.bytes_sent for each in found), sum(each.bytes_recv for each in found)


Operation = tuple[Callable[[], object], int, int, Callable[[], object]]


def _operations(us: Learners, nbytes: int) -> dict[str, Operation]:
    """By name: the work of this learner, the data that learner 0 sends and receives in it (x `nbytes`), and the end."""
    from mpi4py import MPI

    window = MPI.Win.Allocate(nbytes, 1, comm=us.world)
    window.Lock_all()
    memory, other = torch.zeros(nbytes, dtype=torch.uint8).numpy(), 1 - us.rank
    nothing = lambda: None  # noqa: E731

    def get() -> None:
        if us.rank == 0:
            window.Get(memory, other)
            window.Flush(other)

    def put() -> None:
        if us.rank == 0:
            window.Put(memory, other)
            window.Flush(other)

    def send() -> None:
        us.wait(us.world.Isend(memory, other) if us.rank == 0 else us.world.Irecv(memory, other), "a message")

    def close() -> None:
        window.Unlock_all()
        window.Free()

    exchange = gossip.NeighbourExchange(us, _weights(nbytes), topology.create("matching", us.size))

    def gossip_exchange() -> None:
        exchange.begin(exchange.step)
        exchange.mix()
        exchange.publish()

    return {
        "MPI_Get": (get, 0, 1, nothing),
        "MPI_Put": (put, 1, 0, nothing),
        "MPI_Isend": (send, 1, 0, close),
        "gossip exchange, both ways": (gossip_exchange, 1, 1, exchange.close),
    }


def _weights(nbytes: int) -> FlatParameters:
    model = nn.Module()
    model.weights = nn.Parameter(torch.zeros(nbytes // 4))
    return FlatParameters(model)


if __name__ == "__main__":
    main()
