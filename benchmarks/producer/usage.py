"""What this process has used: time, processor time of all its threads, memory."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass


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
