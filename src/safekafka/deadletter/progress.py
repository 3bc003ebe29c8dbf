"""What of a dead letter topic has been replayed or discarded, for each of its partitions. Pure.

It is kept as the committed offset of a consumer group: all letters below it are done. A replay with a filter leaves
letters behind, and does others beyond them; those are in the commit's metadata, as runs of offsets. Without them, the
next replay would send them a second time, or this one would have to forget what it left behind. In front of them is
the id of the topic: in one made anew under its name, the offsets are those of other letters.

Form: `safekafka-replay-2:`, the id (or nothing, where it is not known), `:`, and the runs (or nothing) as base85 of
zlib of LEB128 numbers.
"""

from __future__ import annotations

import base64
import math
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

MAX_METADATA = 4_096  # bytes; the broker's offset.metadata.max.bytes
_FORM = "safekafka-replay-2:"


class Progress:
    """`position`: all letters below it are done. `metadata`: as committed; another's counts as none. `topic_id`: goes
    into what is committed from now on."""

    def __init__(self, position: int, metadata: str = "", topic_id: str = "") -> None:
        self.position = position
        self._topic_id = topic_id
        # What is done beyond the position: (start, stop), apart from each other, ascending.
        self._runs = _decode(position, metadata)
        self._lowest_open: int | None = None
        self._last: tuple[int, bool] | None = None  # the letter passed last, and whether it is done

    def is_done(self, offset: int) -> bool:
        after = bisect_right(self._runs, (offset, math.inf))
        return offset < self.position or (after > 0 and offset < self._runs[after - 1][1])

    def passed(self, offset: int, done: bool) -> None:
        """A letter was looked at; all from `position` on are, in ascending order. `done` is for good."""
        if done:
            # Between two letters in a row there is none, whatever the numbers say (compaction, transactions).
            start = self._last[0] if self._last is not None and self._last[1] else offset
            _join(self._runs, start, offset + 1)
        elif self._lowest_open is None:
            self._lowest_open = offset
        self._last = offset, done

    def at_end(self, end: int) -> None:
        """There is no further letter below `end`."""
        if self._last is None:
            self.position = max(self.position, end)
        elif self._last[1]:
            _join(self._runs, self._last[0], max(end, self._last[0] + 1))

    def expire(self, beginning: int) -> int:
        """Retention has removed what is below `beginning`. How many offsets of that were not done."""
        if beginning <= self.position:
            return 0
        done = sum(min(stop, beginning) - start for start, stop in self._runs if start < beginning)
        left = beginning - self.position - done
        self.position = beginning
        return left

    def to_commit(self) -> tuple[int, str]:
        """The offset, and the metadata."""
        position, runs = self._frontier(self._runs)
        return position, _encode(self._topic_id, position, runs)

    def fits(self, offsets: Iterable[int]) -> bool:
        """Whether these can be remembered as well."""
        runs = self._runs.copy()
        for offset in offsets:
            _join(runs, offset, offset + 1)
        return len(_encode(self._topic_id, *self._frontier(runs))) <= MAX_METADATA

    def _frontier(self, runs: list[tuple[int, int]]) -> tuple[int, list[tuple[int, int]]]:
        position = self.position
        if self._lowest_open is not None:
            position = max(position, self._lowest_open)
        else:
            if self._last is not None:
                position = max(position, self._last[0] + 1)
            for start, stop in runs:
                if start > position:
                    break
                position = max(position, stop)
        return position, [(start, stop) for start, stop in runs if stop > position]


def _join(runs: list[tuple[int, int]], start: int, stop: int) -> None:
    """Put it in its place, and make one of those that touch."""
    first = bisect_right(runs, (start, math.inf))
    if first and runs[first - 1][1] >= start:
        first -= 1
        start = runs[first][0]
    last = first
    while last < len(runs) and runs[last][0] <= stop:
        stop = max(stop, runs[last][1])
        last += 1
    runs[first:last] = [(start, stop)]


def topic_id_of(metadata: str) -> str:
    """The id of the topic that it was written for; empty where it is another's, or was not known."""
    return _parts(metadata)[0]


def _parts(metadata: str) -> tuple[str, str]:
    """The topic's id and the runs. Neither holds a colon."""
    topic_id, colon, runs = metadata.removeprefix(_FORM).partition(":")
    return (topic_id, runs) if metadata.startswith(_FORM) and colon else ("", "")


def _encode(topic_id: str, position: int, runs: list[tuple[int, int]]) -> str:
    """Distances, since they are small numbers."""
    head = f"{_FORM}{topic_id}:"
    if not runs:
        return head
    edges = [position, *(edge for run in runs for edge in run)]
    data = b"".join(_varint(later - earlier) for earlier, later in pairwise(edges))
    return head + base64.b85encode(zlib.compress(data, 9)).decode()


def _decode(position: int, metadata: str) -> list[tuple[int, int]]:
    try:
        distances = list(_varints(zlib.decompress(base64.b85decode(_parts(metadata)[1]))))
    except (ValueError, zlib.error):
        return []
    edges = []
    for distance in distances:
        position += distance
        edges.append(position)
    return list(zip(edges[::2], edges[1::2], strict=False))


def _varint(number: int) -> bytes:
    data = bytearray()
    while number > 0x7F:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _varints(data: bytes) -> Iterator[int]:
    number = shift = 0
    for byte in data:
        number |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            yield number
            number = shift = 0
