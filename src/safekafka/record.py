"""What is sent: `Record`, and the checks made before anything is queued.

The hot path works on the plain tuple `Fields`; `Record` is its face towards the user.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from safekafka.errors import InvalidRecordError

Bytes: TypeAlias = "bytes | str | None"
Headers: TypeAlias = "Mapping[str, Bytes] | Sequence[tuple[str, Bytes]]"
HeaderList: TypeAlias = (
    "list[tuple[str, str | bytes | None]]"  # bytes or None by the time they are here; list is invariant
)
# topic, value, key, headers, partition (-1: by the partitioner), timestamp in ms (0: now, set by the client)
Fields: TypeAlias = "tuple[str, bytes | None, bytes | None, HeaderList | None, int, int]"

_MAX_TOPIC = 249  # org.apache.kafka.common.internals.Topic.MAX_NAME_LENGTH
_TOPIC_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
_MAX_PARTITION = 2**31 - 1
_MAX_TIMESTAMP = 2**63 - 1
# What the client adds to key, value and headers when it weighs a record against message.max.bytes: the largest varints
# that may surround them (librdkafka's rdkafka_proto.h, RD_KAFKAP_MESSAGE_V2_MAXOVERHEAD).
OVERHEAD = 36
known_topics: set[str] = set()  # names that passed the check; bounded, see topic_problem


class Record(NamedTuple):
    """One outgoing record. Strings are encoded as UTF-8; `timestamp` is in ms since the epoch; `partition` None lets
    the partitioner choose."""

    topic: str
    value: Bytes = None
    key: Bytes = None
    headers: Headers | None = None
    partition: int | None = None
    timestamp: int | None = None


def as_record(fields: Fields) -> Record:
    topic, value, key, headers, partition, timestamp = fields
    return Record(
        topic,
        value,
        key,
        headers,
        None if partition < 0 else partition,
        None if timestamp == 0 else timestamp,
    )


def checked(
    topic: str,
    value: Bytes,
    key: Bytes,
    headers: Headers | None,
    partition: int | None,
    timestamp: int | None,
    max_bytes: int | None = None,
    overhead: int = OVERHEAD,
) -> Fields:
    """The record's fields in the form that the client and the spool take; `InvalidRecordError` names every problem at
    once.

    `max_bytes`: the client's message.max.bytes, to refuse before anything is queued what the client would refuse.
    `overhead`: what is added to key, value and headers on the way.
    """
    # The commonest record, which needs no conversion, first and in few steps. What follows checks all of it as well.
    if (
        not headers
        and partition is None
        and timestamp is None
        and type(topic) is str
        and topic in known_topics
        and type(value) is bytes
    ):
        if key is None:
            if max_bytes is None or len(value) <= max_bytes - overhead:
                return topic, value, None, None, -1, 0
        elif type(key) is bytes and (max_bytes is None or len(value) + len(key) <= max_bytes - overhead):
            return topic, value, key, None, -1, 0
    problems: list[str] = []
    if type(topic) is not str or topic not in known_topics:
        problem = topic_problem(topic)
        if problem:
            problems.append(problem)
    if value is not None and type(value) is not bytes:
        value = _as_bytes("value", value, problems)
    if key is not None and type(key) is not bytes:
        key = _as_bytes("key", key, problems)
    pairs = None if not headers else _header_list(headers, problems)
    if max_bytes is not None:
        # As librdkafka's rd_kafka_msg_max_wire_size: what the record may need in a request, before compression.
        size = len(value or b"") + len(key or b"") + overhead
        if pairs:
            size += _header_bytes(pairs)
        if size > max_bytes:
            problems.append(_too_large(size, max_bytes, value, key))
    if partition is None:
        partition = -1
    else:
        number = _as_int(partition)
        if number is None or not 0 <= number <= _MAX_PARTITION:
            problems.append(
                f"partition {partition!r} is not a number from 0 on: leave it out to let the partitioner choose"
            )
        else:
            partition = number
    if timestamp is None:
        timestamp = 0
    else:
        number = _as_int(timestamp)
        if number is None or not 0 < number <= _MAX_TIMESTAMP:
            problems.append(
                f"timestamp {timestamp!r} is not a positive int: give whole milliseconds since the epoch, "
                "or leave it out for the present time"
            )
        else:
            timestamp = number
    if problems:
        raise InvalidRecordError(topic, problems)
    return topic, value, key, pairs, partition, timestamp


def _header_bytes(headers: HeaderList) -> int:
    """As librdkafka's rd_kafka_headers_serialized_size."""
    size = 0
    for name, value in headers:
        name_size, value_size = len(name.encode()), len(value or b"")
        size += _varint_size(name_size) + name_size + _varint_size(value_size) + value_size
    return size


def _varint_size(number: int) -> int:
    return (number.bit_length() + 7) // 7  # seven bits in a byte, and one bit of all for the sign


def _too_large(size: int, max_bytes: int, value: bytes | None, key: bytes | None) -> str:
    in_value, in_key = len(value or b""), len(key or b"")
    return (
        f"{size} bytes (value {in_value}, key {in_key}, headers and frame {size - in_value - in_key}) are more than "
        f"message.max.bytes={max_bytes}: make it smaller, or raise message.max.bytes here and max.message.bytes of "
        "the topic"
    )


def _as_int(value: object) -> int | None:
    """Whole numbers of any kind, as the raw client takes them; but no bool, which is a mistaken argument."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def topic_problem(topic: object) -> str | None:
    # The broker's own rule: org.apache.kafka.common.internals.Topic.validate
    if not isinstance(topic, str):
        return f"topic must be a str, not {type(topic).__name__}"
    if not topic or topic in (".", "..") or len(topic) > _MAX_TOPIC or not _TOPIC_CHARS.issuperset(topic):
        return (
            f"topic {topic!r} is not a legal name: 1 to {_MAX_TOPIC} characters of a-z A-Z 0-9 . _ - (not '.' or '..')"
        )
    if len(known_topics) < 10_000:
        known_topics.add(topic)
    return None


def _as_bytes(what: str, value: object, problems: list[str]) -> bytes | None:
    if isinstance(value, str):
        try:
            return value.encode()
        except UnicodeEncodeError:
            problems.append(f"{what} holds a lone surrogate, which UTF-8 can't carry: give it as bytes")
            return None
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    serializer = f" or set {what}_serializer" if what in ("key", "value") else ""
    problems.append(f"{what} must be bytes, str or None, not {type(value).__name__}: encode it first{serializer}")
    return None


def _header_list(headers: Headers, problems: list[str]) -> HeaderList:
    pairs: HeaderList = []
    items: Sequence[tuple[str, Bytes]]
    if isinstance(headers, (list, tuple)):
        items = headers
    elif isinstance(headers, Mapping):
        items = list(headers.items())
    else:
        problems.append(f"headers must be a dict or a list of (name, value), not {type(headers).__name__}")
        return pairs
    for position, item in enumerate(items):
        if not isinstance(item, tuple) or len(item) != 2:
            # Its content may be a secret, as of a header "authorization".
            problems.append(f"header {position} is a {type(item).__name__}, not a tuple (name, value)")
            continue
        name, value = item
        if not isinstance(name, str) or "\0" in name or not _is_utf8(name):
            # A C string in the client: it would be cut at the NUL, or crash the process.
            problems.append(f"header name {name!r} must be a str without NUL characters and lone surrogates")
            continue
        if value is not None and type(value) is not bytes:
            value = _as_bytes(f"header {name!r}", value, problems)
        pairs.append((name, value))
    return pairs
