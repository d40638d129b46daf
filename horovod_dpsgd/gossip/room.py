"""How much room there is for windows: asked before they are written to, for what is not there shows as SIGBUS only."""

from __future__ import annotations

import os
import re
from pathlib import Path

MAPS = Path("/proc/self/maps")


def backing_folder(address: int, maps: str) -> str:
    """The folder of the file behind the memory at `address`, by the lines of /proc/self/maps; "" for private memory."""
    for line in maps.splitlines():
        first, end = (int(number, 16) for number in line.split()[0].split("-"))
        if first <= address < end:
            return os.path.dirname("".join(line.split(maxsplit=5)[5:]).removesuffix(" (deleted)"))
    return ""


def free_bytes(folder: str) -> int:
    """Of the file system, and of the machine's memory: a tmpfs may promise more than there is."""
    free = 1024 * int(re.findall(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[0])
    if not os.path.isdir(folder):  # one learner alone on its node gets private memory
        return free
    disk = os.statvfs(folder)
    return min(free, disk.f_bavail * disk.f_frsize)
