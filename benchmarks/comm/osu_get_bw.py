"""Bandwidth of MPI_Get between two learners, through the gossip window and a plain one, printed as osu_get_bw does.

    mpirun -np 2 python benchmarks/comm/osu_get_bw.py [-m 1:4M] [-i ITERATIONS] [-x WARM_UP]
    mpirun -np 2 -H host1:1,host2:1 python benchmarks/comm/osu_get_bw.py

64 reads are started before any is waited for. MB are 10^6 bytes, as in OSU's output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.comm import osu

READS_AT_ONCE = 64


def bandwidth(reads: osu.Reads, nbytes: int, iterations: int) -> float:
    """MB/s."""

    def in_volleys() -> None:
        for _ in range(iterations):
            for place in range(READS_AT_ONCE):
                reads.start(nbytes, place)
            reads.finish()

    return nbytes * READS_AT_ONCE * iterations / osu.seconds_of(in_volleys) / 1e6


def main() -> None:
    osu.main(__doc__, "Bandwidth", "Bandwidth (MB/s)", bandwidth, iterations=(100, 10), at_once=READS_AT_ONCE)


if __name__ == "__main__":
    main()
