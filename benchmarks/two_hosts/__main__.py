"""Run a command on host1 of two emulated hosts, host1 and host2, with nothing but a cable between them.

    python -m benchmarks.two_hosts --rate 1gbit mpirun -np 2 -H host1:1,host2:1 python -m horovod_dpsgd.doctor

Ends with the command's status; with status 3, and the reason, where two hosts cannot be emulated.
"""

import argparse
import subprocess
import sys

from benchmarks.two_hosts.netns import run_on_host1, why_not
from horovod_dpsgd.command_line import OneLineParser

IMPOSSIBLE = 3


def main() -> None:
    parser = OneLineParser("python -m benchmarks.two_hosts", description=__doc__)
    parser.add_argument("--rate", help='limit of the cable in each direction, as "1gbit"; default: none')
    parser.add_argument("--timeout", type=float, default=3600, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    if not given.command:
        parser.error("no command")
    if reason := why_not():
        print(reason, file=sys.stderr)
        sys.exit(IMPOSSIBLE)
    try:
        done = run_on_host1(given.command, given.timeout, rate=given.rate, capture=False)
    except subprocess.TimeoutExpired:
        sys.exit(f"the command did not end within {given.timeout:.0f} s")
    sys.exit(done.returncode)


if __name__ == "__main__":
    main()
