"""The records' values: random bytes, so that nothing could be gained by compression."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import cycle, islice

_DISTINCT = 1_000


def repeated(count: int, size: int) -> Iterator[bytes]:
    """Made before the clock starts: going through them costs the contestant next to nothing."""
    source = random.Random(size)
    return islice(cycle([source.randbytes(size) for _ in range(_DISTINCT)]), count)


def distinct(count: int, size: int) -> Iterator[bytes]:
    """Each made when it is sent: what a contestant keeps of it is the contestant's memory."""
    source = random.Random(size)
    return (source.randbytes(size) for _ in range(count))
