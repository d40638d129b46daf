"""Latency of MPI_Get between two learners, through the gossip window and a plain one, printed as osu_get_latency does.

    mpirun -np 2 python benchmarks/comm/osu_get_latency.py [-m 1:4M] [-i ITERATIONS] [-x WARM_UP]
    mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/osu_get_latency.py

A read at a time, each completed before the next. Python's and mpi4py's cost is in it, a microsecond or so a call.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import osu


def latency(reads: osu.Reads, nbytes: int, iterations: int) -> float:
    """Microseconds a read."""

    def one_by_one() -> None:
        for _ in range(iterations):
            reads.start(nbytes)
            reads.finish()

    return osu.seconds_of(one_by_one) / max(1, iterations) * 1e6


def main() -> None:
    osu.main(__doc__, "Latency", "Latency (us)", latency, iterations=(1000, 100))


if __name__ == "__main__":
    main()
