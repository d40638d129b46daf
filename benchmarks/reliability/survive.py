"""Do survivors go on when a learner dies, by MPI's own means (ULFM)? The library does not: see results/reliability.

    for n in $(seq 20); do timeout 60 mpirun --with-ft ulfm --oversubscribe -np 4 \
        python benchmarks/reliability/survive.py; echo "status $?"; done

Learners read each other's node-shared window and meet in reductions. The last one kills itself; the others shrink the
communicator, make a new window on it, read each other there, and leave by MPI_Finalize (or, with --exit, without it).
Prints "survived" when that was well; the status says whether the end was, too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from typing import cast

import numpy as np
from mpi4py import MPI

STEPS = 200


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--exit", action="store_true", help="leave by os._exit, without MPI_Finalize")
    given = p.parse_args()
    world = MPI.COMM_WORLD.Dup()
    fatal_at = random.Random(os.environ.get("PMIX_NAMESPACE")).randrange(20, STEPS)
    window = None
    step = 0
    while step < STEPS:
        try:
            if window is None:
                window, exchange = open_window(world)
            if world.size == MPI.COMM_WORLD.size and world.rank == world.size - 1 and step == fatal_at:
                os.kill(os.getpid(), signal.SIGKILL)
            exchange[0] = step
            window.Sync()
            total = np.array([1], np.int64)
            request = world.Iallreduce(MPI.IN_PLACE, total)
            while not request.Test():
                time.sleep(1e-4)
            assert total[0] == world.size
            step += 1
        except MPI.Exception as error:
            world.Revoke()
            world = cast(MPI.Intracomm, world.Shrink())
            assert world.size == MPI.COMM_WORLD.size - 1, "more than one is gone"
            if world.rank == 0:
                print(f"step {step}: {error}; {world.size} are left", flush=True)
            step = world.allreduce(step, MPI.MAX)  # some had ended it when the others failed in it
            window = None  # the old one cannot be freed: one of its owners is gone
    assert world.size == MPI.COMM_WORLD.size - 1
    if world.rank == 0:
        print("survived", flush=True)
    if given.exit:
        os._exit(0)


def open_window(world: MPI.Intracomm) -> tuple[MPI.Win, memoryview]:
    window = MPI.Win.Allocate_shared(4096, 1, comm=world)
    window.Lock_all()
    return window, window.tomemory().cast("q")


if __name__ == "__main__":
    main()
