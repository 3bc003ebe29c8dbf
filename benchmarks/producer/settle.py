"""Memory that is still growing."""

from __future__ import annotations

import time

from benchmarks.common.usage import resident_bytes

_SECONDS = 2.0


def highest_resident() -> int:
    """The most within the next seconds: a contestant may hand its records over to the client in the background."""
    highest, end = resident_bytes(), time.monotonic() + _SECONDS
    while time.monotonic() < end:
        time.sleep(0.05)
        highest = max(highest, resident_bytes())
    return highest
