"""The records' values: random bytes, so that nothing could be gained by compression."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from itertools import chain, cycle, islice

_DISTINCT = 1_000


def _made(size: int) -> list[bytes]:
    source = random.Random(size)
    return [source.randbytes(size) for _ in range(_DISTINCT)]


def endless(size: int) -> Iterator[bytes]:
    """Made before the clock starts: going through them costs the contestant next to nothing."""
    return cycle(_made(size))


def repeated(count: int, size: int) -> Iterator[bytes]:
    return islice(endless(size), count)


class Timed:
    """As many as are taken within some seconds from the first one on, in whole thousands."""

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._values = _made(size)
        self.taken = 0

    def __iter__(self) -> Iterator[bytes]:
        return chain.from_iterable(self._thousands())

    def _thousands(self) -> Iterator[list[bytes]]:
        end = time.perf_counter() + self._seconds
        while time.perf_counter() < end:
            self.taken += _DISTINCT
            yield self._values


def distinct(count: int, size: int) -> Iterator[bytes]:
    """Each made when it is sent: what a contestant keeps of it is the contestant's memory."""
    source = random.Random(size)
    return (source.randbytes(size) for _ in range(count))
