"""What this process has used: time, processor time of all its threads, memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    wall: float
    cpu: float

    @staticmethod
    def now() -> Usage:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return Usage(time.perf_counter(), used.ru_utime + used.ru_stime)

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.wall - earlier.wall, self.cpu - earlier.cpu)


def resident_bytes() -> int:
    import psutil  # not there in every environment, and not needed by every measurement

    resident: int = psutil.Process().memory_info().rss
    return resident


def peak_resident_bytes() -> int:
    """The most of this program. Linux counts the memory of who started it into getrusage's figure, hence not that."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("VmHWM is missing in /proc/self/status")
