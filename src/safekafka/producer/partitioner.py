"""Which partition the client will choose for a key: its partitioners once more, for the one question that it does not
answer, whether a record would go to a partition that is stuck. Pure.

Sources: librdkafka's rdkafka_msg.c (rd_kafka_msg_partitioner_*), rdmurmur2.c, rdfnv1a.c. A test compares each with
what the client does.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable


def _murmur2(key: bytes) -> int:
    mask, multiplier = 0xFFFFFFFF, 0x5BD1E995
    length = len(key)
    value = (0x9747B28C ^ length) & mask
    whole = length & ~3
    for position in range(0, whole, 4):
        k = int.from_bytes(key[position : position + 4], "little") * multiplier & mask
        value = (value * multiplier & mask) ^ ((k ^ (k >> 24)) * multiplier & mask)
    if length & 3:
        value = (value ^ int.from_bytes(key[whole:], "little")) * multiplier & mask
    value = (value ^ (value >> 13)) * multiplier & mask
    return value ^ (value >> 15)


def _fnv1a(key: bytes) -> int:
    value = 0x811C9DC5
    for byte in key:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    if value >= 1 << 31:  # the client takes the absolute value of a signed number
        value = (1 << 32) - value
    return value


def _java(key: bytes) -> int:
    return _murmur2(key) & 0x7FFFFFFF


# name: the hash, and whether an empty key counts as none
_HASHES: dict[str, tuple[Callable[[bytes], int], bool]] = {
    "consistent": (zlib.crc32, False),
    "consistent_random": (zlib.crc32, True),
    "murmur2": (_java, False),
    "murmur2_random": (_java, False),
    "fnv1a": (_fnv1a, False),
    "fnv1a_random": (_fnv1a, False),
}


def partition_of(partitioner: str, key: bytes | None, partitions: int) -> int | None:
    """None where chance decides."""
    known = _HASHES.get(partitioner)
    if known is None:
        return None
    hashed, empty_is_none = known
    if key is None:
        if partitioner.endswith("_random"):
            return None
        key = b""
    if not key and empty_is_none:
        return None
    return hashed(key) % partitions
