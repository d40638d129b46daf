"""The machine that this process is on, in words, for results."""

from __future__ import annotations

import os
from pathlib import Path


def in_words() -> str:
    """CPU, cores, memory: "AMD EPYC 7763, 16 cores, 128 GiB of memory"."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{_cpu()}, {os.cpu_count()} cores, {memory:.0f} GiB of memory"


def _cpu() -> str:
    """Its maker's name for it; not every kind of CPU has one there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "CPU of unknown make"
