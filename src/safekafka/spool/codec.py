"""A record as bytes in the journal, and back. Pure.

`partition` (-1: by the partitioner) i32, `timestamp` in ms i64, then the lengths of topic, value and key and the number
of headers, i32 each (-1 stands for None, so None and empty differ), then topic, value and key, then for each header its
two lengths, name and value. Little-endian.
"""

from __future__ import annotations

import struct
import zlib

from safekafka.record import Fields, HeaderList

_HEAD = struct.Struct("<iqiiii")
_PAIR = struct.Struct("<ii")


def encode(fields: Fields) -> bytes:
    topic, value, key, headers, partition, timestamp = fields
    name = topic.encode()
    if headers is None and value is not None:  # the commonest, in few steps
        if key is None:
            return _HEAD.pack(partition, timestamp, len(name), len(value), -1, -1) + name + value
        return _HEAD.pack(partition, timestamp, len(name), len(value), len(key), -1) + name + value + key
    head = _HEAD.pack(
        partition,
        timestamp,
        len(name),
        -1 if value is None else len(value),
        -1 if key is None else len(key),
        -1 if headers is None else len(headers),
    )
    if not headers:
        return b"".join((head, name, value or b"", key or b""))
    parts = [head, name, value or b"", key or b""]
    for header, content in headers:
        encoded = header.encode()
        content = content.encode() if isinstance(content, str) else content
        parts += (_PAIR.pack(len(encoded), -1 if content is None else len(content)), encoded, content or b"")
    return b"".join(parts)


def decode(data: bytes) -> Fields:
    partition, timestamp, topic_length, value_length, key_length, count = _HEAD.unpack_from(data)
    position = _HEAD.size + topic_length
    topic = data[_HEAD.size : position].decode()
    value = key = None
    if value_length >= 0:
        value = data[position : position + value_length]
        position += value_length
    if key_length >= 0:
        key = data[position : position + key_length]
        position += key_length
    if count < 0:
        return topic, value, key, None, partition, timestamp
    headers: HeaderList = []
    for _ in range(count):
        name_length, length = _PAIR.unpack_from(data, position)
        position += _PAIR.size
        name = data[position : position + name_length].decode()
        position += name_length
        headers.append((name, None if length < 0 else data[position : position + length]))
        position += max(0, length)
    return topic, value, key, headers, partition, timestamp


def checksum(seq: int, data: bytes) -> int:
    """CRC-32 over the record and its sequence number: a record in the wrong place is damaged as well."""
    return zlib.crc32(data, seq & 0xFFFFFFFF)
