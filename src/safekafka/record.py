"""What is sent: `Record`, and the checks made before anything is queued.

The hot path works on the plain tuple `Fields` (a tuple costs a tenth of a dataclass); `Record` is its face towards the
user.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

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
_known_topics: set[str] = set()  # names that passed the check; bounded, see topic_problem


@dataclass(frozen=True)
class Record:
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
) -> Fields:
    """The record's fields in the form that the client and the spool take; `InvalidRecordError` names every problem at
    once."""
    problems: list[str] = []
    if type(topic) is not str or topic not in _known_topics:
        problem = topic_problem(topic)
        if problem:
            problems.append(problem)
    if value is not None and type(value) is not bytes:
        value = _as_bytes("value", value, problems)
    if key is not None and type(key) is not bytes:
        key = _as_bytes("key", key, problems)
    pairs = None if not headers else _header_list(headers, problems)
    if partition is None:
        partition = -1
    elif not _is_int(partition) or not 0 <= partition <= _MAX_PARTITION:
        problems.append(
            f"partition {partition!r} is not a number from 0 on: leave it out to let the partitioner choose"
        )
    if timestamp is None:
        timestamp = 0
    elif not _is_int(timestamp) or not 0 < timestamp <= _MAX_TIMESTAMP:
        problems.append(f"timestamp {timestamp!r} is not a positive int: give milliseconds since the epoch")
    if problems:
        raise InvalidRecordError(topic, problems)
    return topic, value, key, pairs, partition, timestamp


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_utf8(text: str) -> bool:
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
    if len(_known_topics) < 10_000:
        _known_topics.add(topic)
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
    problems.append(
        f"{what} must be bytes, str or None, not {type(value).__name__}: encode it first or set {what}_serializer"
    )
    return None


def _header_list(headers: Headers, problems: list[str]) -> HeaderList:
    pairs: HeaderList = []
    items: Sequence[tuple[str, Bytes]]
    if isinstance(headers, Mapping):
        items = list(headers.items())
    elif isinstance(headers, (list, tuple)):
        items = headers
    else:
        problems.append(f"headers must be a dict or a list of (name, value), not {type(headers).__name__}")
        return pairs
    for item in items:
        if not isinstance(item, tuple) or len(item) != 2:
            problems.append(f"header {item!r} is not a pair (name, value)")
            continue
        name, value = item
        if not isinstance(name, str) or "\0" in name or not _is_utf8(name):
            # A C string in the client: it would be cut at the NUL, or crash the process.
            problems.append(f"header name {name!r} must be a str without NUL characters and lone surrogates")
            continue
        pairs.append((name, _as_bytes(f"header {name!r}", value, problems) if value is not None else None))
    return pairs
