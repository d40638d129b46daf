"""Where the emulated hosts are now; for test_doctor.py."""

from benchmarks.two_hosts.netns import run_on_host1, why_not

__all__ = ["run_on_host1", "why_not"]
