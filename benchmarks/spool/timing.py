"""Calling for a time, from any number of threads."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

from benchmarks.common.usage import Usage


def call_for(seconds: float, calls: Sequence[Callable[[], object]], most: int) -> tuple[int, Usage, Usage]:
    """Each of the calls on a thread of its own, again and again, until the time is over or it was made `most` times.
    How often they were made, all together, and the usage at the start and at the end."""
    gc.collect()
    going, ready = True, threading.Barrier(len(calls) + 1)

    def work(call: Callable[[], object]) -> int:
        made = 0
        ready.wait()
        while going and made < most:
            call()
            made += 1
        return made

    with ThreadPoolExecutor(len(calls)) as pool:
        working = [pool.submit(work, call) for call in calls]
        start = Usage.now()
        ready.wait()
        wait(working, timeout=seconds)
        going = False
        made = sum(thread.result() for thread in working)
        return made, start, Usage.now()
