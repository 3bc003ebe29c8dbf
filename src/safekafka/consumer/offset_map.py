"""What is finished beyond the committed offset, as text for the commit's metadata: who has the partition next does not
handle it again. Pure.

Form: `safekafka1:` and base85 of zlib of: the topic's id, then numbers as LEB128: the frontier; the distance to the
end; the leader epochs (how many; each with its distance from the one before, and the epoch); the unfinished offsets
(how many; each as distance from the one before). Everything else between frontier and end is finished, or was never
there.

Guards: an offset counts as finished only in the topic with the same id (one created anew begins at 0 again), and only
if the message read now was written by the leader of the same epoch (a log that was cut may have other messages there).
Brokers take at most 4,096 bytes of metadata (`offset.metadata.max.bytes`). Text of another origin is no map.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

MAX_CHARACTERS = 4_096
_PREFIX = "safekafka1:"
_MAX_BYTES = 1 << 20  # unpacked: what is larger is not ours


class OffsetMap:
    """`open_`: ascending, all of them in `start` to `end`. `epochs`: ascending (first offset, leader epoch)."""

    def __init__(
        self, topic_id: str, start: int, end: int, open_: Sequence[int], epochs: Sequence[tuple[int, int]]
    ) -> None:
        self.topic_id = topic_id
        self.start = start
        self.end = end
        self.open = open_
        self.epochs = epochs
        self._epoch_starts = [first for first, _ in epochs]

    def is_finished(self, offset: int, epoch: int) -> bool:
        """Whether the message at `offset`, written in this leader epoch, need not be handled again."""
        if not self.start <= offset < self.end or epoch < 0:
            return False
        segment = bisect_right(self._epoch_starts, offset) - 1
        if segment < 0 or self.epochs[segment][1] != epoch:
            return False
        place = bisect_left(self.open, offset)
        return place == len(self.open) or self.open[place] != offset


def encode(map_: OffsetMap) -> str:
    """May be longer than `MAX_CHARACTERS`: then it is of no use."""
    packed = bytearray()
    name = map_.topic_id.encode()
    _put(packed, len(name))
    packed += name
    _put(packed, map_.start)
    _put(packed, map_.end - map_.start)
    _put(packed, len(map_.epochs))
    before = 0
    for first, epoch in map_.epochs:
        _put(packed, first - before)
        _put(packed, epoch + 1)  # -1: unknown
        before = first
    _put(packed, len(map_.open))
    before = map_.start
    for offset in map_.open:
        _put(packed, offset - before)
        before = offset
    return _PREFIX + base64.b85encode(zlib.compress(bytes(packed), 9)).decode()


def decode(text: str | None) -> OffsetMap | None:
    """None if the text is no map of ours, or a damaged one."""
    if not text or not text.startswith(_PREFIX):
        return None
    try:
        unpack = zlib.decompressobj()
        packed = unpack.decompress(base64.b85decode(text[len(_PREFIX) :]), _MAX_BYTES)
        if not unpack.eof:
            return None
        length, at = _get(packed, 0)
        name = packed[at : at + length].decode()
        numbers = _numbers(packed, at + length)
        start = next(numbers)
        end = start + next(numbers)
        epochs, first = [], 0
        for _ in range(next(numbers)):
            first += next(numbers)
            epochs.append((first, next(numbers) - 1))
        open_, offset = [], start
        for _ in range(next(numbers)):
            offset += next(numbers)
            open_.append(offset)
        if next(numbers, None) is not None:
            return None
    except (ValueError, zlib.error, binascii.Error, StopIteration, IndexError):
        return None
    return OffsetMap(name, start, end, open_, epochs)


def _put(packed: bytearray, number: int) -> None:
    while number > 0x7F:
        packed.append(number & 0x7F | 0x80)
        number >>= 7
    packed.append(number)


def _get(packed: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = packed[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7


def _numbers(packed: bytes, at: int) -> Iterator[int]:
    while at < len(packed):
        number, at = _get(packed, at)
        yield number
