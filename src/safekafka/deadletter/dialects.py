"""How dead letters of different systems put what they tell into headers: names and encodings, to write and to read.
Pure.

Sources: Spring Kafka's KafkaHeaders.java and DeadLetterPublishingRecoverer.java; Apache Kafka's
DeadLetterQueueReporter.java (Connect), ShareGroupDLQStateManager.java (KIP-1191, share groups) and
ExceptionHandlerUtils.java (KIP-1034, Streams).

What a dialect has no place for stands behind its headers under our own names; readers of the dialect pass over those.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeAlias

from safekafka.deadletter.about import About, First, decode_first
from safekafka.record import HeaderList, topic_problem

PREFIX = "safekafka.dlq."
_MAX_SHORT = 2**15 - 1


class _Codec(NamedTuple):
    encode: Callable[[Any], bytes]
    decode: Callable[[bytes], Any]  # may raise ValueError


def _fixed(size: int) -> _Codec:
    """Java's ByteBuffer: big-endian, two's complement."""

    def decode(data: bytes) -> int:
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes, not {size}")
        return int.from_bytes(data, "big", signed=True)

    return _Codec(lambda number: int(number).to_bytes(size, "big", signed=True), decode)


def _known(data: bytes) -> First:
    first = decode_first(data)
    if first is None:
        raise ValueError("not what we wrote")
    return first


# Lone surrogates, as in the text of an error about a file name, are no UTF-8.
_TEXT = _Codec(lambda text: text.encode("utf-8", "backslashreplace"), lambda data: data.decode())
_NUMBER = _Codec(lambda number: str(number).encode(), lambda data: int(data.decode("ascii")))
_SHORT = _Codec(lambda number: str(min(number, _MAX_SHORT)).encode(), _NUMBER.decode)
_INT32, _INT64 = _fixed(4), _fixed(8)
_FIRST = _Codec(First.encode, _known)
# A sink connector reads as the group "connect-" + its name.
_CONNECTOR = _Codec(_TEXT.encode, lambda data: "connect-" + data.decode())

_Places: TypeAlias = "Mapping[str, tuple[str, _Codec]]"  # field of About: name of its header, encoding


@dataclass(frozen=True)
class Dialect:
    name: str
    prefix: str
    places: _Places
    absent: Mapping[str, Any]  # what the dialect writes where nothing is known
    also: tuple[tuple[str, bytes], ...] = ()  # what its readers expect besides, the same for all letters
    own: frozenset[str] = frozenset()  # fields that stand under our names too, since the dialect tells less
    instead: _Places | None = None  # read where a field is not in its place; never written


_OURS: _Places = {
    "topic": (PREFIX + "topic", _TEXT),
    "partition": (PREFIX + "partition", _NUMBER),
    "offset": (PREFIX + "offset", _NUMBER),
    "timestamp": (PREFIX + "timestamp", _NUMBER),
    "timestamp_type": (PREFIX + "timestamp.type", _TEXT),
    "group": (PREFIX + "group", _TEXT),
    "passes": (PREFIX + "passes", _NUMBER),
    "first": (PREFIX + "first", _FIRST),
    "error_class": (PREFIX + "error.class", _TEXT),
    "error_cause": (PREFIX + "error.cause", _TEXT),
    "error_message": (PREFIX + "error.message", _TEXT),
    "traceback": (PREFIX + "error.traceback", _TEXT),
    "attempts": (PREFIX + "attempts", _NUMBER),
    "host": (PREFIX + "host", _TEXT),
    "failed_at": (PREFIX + "failed_at", _NUMBER),
}

NATIVE = Dialect("native", PREFIX, _OURS, {})
_SPRING = "kafka_dlt-"
SPRING = Dialect(
    "spring",
    _SPRING,
    {
        "topic": (_SPRING + "original-topic", _TEXT),
        "partition": (_SPRING + "original-partition", _INT32),
        "offset": (_SPRING + "original-offset", _INT64),
        "timestamp": (_SPRING + "original-timestamp", _INT64),
        "timestamp_type": (_SPRING + "original-timestamp-type", _TEXT),
        "group": (_SPRING + "original-consumer-group", _TEXT),
        "error_class": (_SPRING + "exception-fqcn", _TEXT),
        "error_cause": (_SPRING + "exception-cause-fqcn", _TEXT),
        "error_message": (_SPRING + "exception-message", _TEXT),
        "traceback": (_SPRING + "exception-stacktrace", _TEXT),
    },
    absent={"timestamp": -1, "timestamp_type": "NoTimestampType"},
    instead={  # of a key that could not be deserialized
        "error_class": (_SPRING + "key-exception-fqcn", _TEXT),
        "error_message": (_SPRING + "key-exception-message", _TEXT),
        "traceback": (_SPRING + "key-exception-stacktrace", _TEXT),
    },
)
_CONNECT = "__connect.errors."
CONNECT = Dialect(
    "connect",
    _CONNECT,
    {
        "topic": (_CONNECT + "topic", _TEXT),
        "partition": (_CONNECT + "partition", _NUMBER),
        "offset": (_CONNECT + "offset", _NUMBER),
        "group": (_CONNECT + "connector.name", _CONNECTOR),
        "error_class": (_CONNECT + "exception.class.name", _TEXT),
        "error_message": (_CONNECT + "exception.message", _TEXT),
        "traceback": (_CONNECT + "exception.stacktrace", _TEXT),
    },
    absent={},
    also=((_CONNECT + "stage", b"TASK_PUT"),),  # the stage that hands records to the application
    own=frozenset({"group"}),
)
_SHARE_GROUP = "__dlq.errors."
KIP1191 = Dialect(
    "kip1191",
    _SHARE_GROUP,
    {
        "topic": (_SHARE_GROUP + "topic", _TEXT),
        "partition": (_SHARE_GROUP + "partition", _NUMBER),
        "offset": (_SHARE_GROUP + "offset", _NUMBER),
        "group": (_SHARE_GROUP + "group", _TEXT),
        "attempts": (_SHARE_GROUP + "delivery.count", _SHORT),
        "error_message": (_SHARE_GROUP + "message", _TEXT),
    },
    absent={},
)
_STREAMS = "__streams.errors."
STREAMS = Dialect(
    "streams",
    _STREAMS,
    {
        "topic": (_STREAMS + "topic", _TEXT),
        "partition": (_STREAMS + "partition", _NUMBER),
        "offset": (_STREAMS + "offset", _NUMBER),
        "error_class": (_STREAMS + "exception", _TEXT),
        "error_message": (_STREAMS + "message", _TEXT),
        "traceback": (_STREAMS + "stacktrace", _TEXT),
    },
    absent={},
)

DIALECTS: Mapping[str, Dialect] = {d.name: d for d in (NATIVE, SPRING, CONNECT, KIP1191, STREAMS)}
_BY_TOPIC_HEADER = {dialect.places["topic"][0]: dialect for dialect in DIALECTS.values()}
_FIELDS = tuple(field.name for field in fields(About))


def written(about: About, dialect: Dialect) -> HeaderList:
    """The headers of a dead letter, without the original's."""
    headers: HeaderList = []
    ours: HeaderList = []
    for field in _FIELDS:
        value = getattr(about, field)
        if field in dialect.places:
            name, codec = dialect.places[field]
            known = dialect.absent.get(field) if value is None else value
            if known is not None:
                headers.append((name, codec.encode(known)))
        if value is not None and (field not in dialect.places or field in dialect.own):
            name, codec = _OURS[field]
            ours.append((name, codec.encode(value)))
    return [*headers, *dialect.also, *ours]


class Told(NamedTuple):
    about: About
    dialect: Dialect
    by_us: bool


def read(headers: Iterable[tuple[str, str | bytes | None]]) -> Told | None:
    """What a dead letter tells, whoever wrote it; None if it does not say where it comes from.

    Each writer appends: of several dialects, as of a letter that became one again elsewhere, the last one counts.
    """
    pairs = [(name, value.encode() if isinstance(value, str) else value) for name, value in headers]
    origin = next(
        (position for position in range(len(pairs) - 1, -1, -1) if pairs[position][0] in _BY_TOPIC_HEADER), None
    )
    if origin is None:
        return None
    dialect = _BY_TOPIC_HEADER[pairs[origin][0]]
    values = {**_decoded(dict(pairs), dialect.instead or {}), **_decoded(dict(pairs), dialect.places)}
    for field, nothing in dialect.absent.items():
        if values.get(field) == nothing:
            del values[field]
    # Ours from before stand in front of what the other system wrote, and tell of another failure.
    ours = {} if dialect is NATIVE else _decoded(dict(pairs[origin:]), _OURS)
    values.update(ours)
    topic, partition, offset = (values.get(field) for field in ("topic", "partition", "offset"))
    if topic is None or topic_problem(topic) or partition is None or partition < 0 or offset is None or offset < 0:
        return None
    return Told(About(**values), dialect, bool(ours) or dialect is NATIVE)


def _decoded(found: Mapping[str, bytes | None], places: _Places) -> dict[str, Any]:
    values = {}
    for field, (name, codec) in places.items():
        data = found.get(name)
        if data is not None:
            with contextlib.suppress(ValueError):  # not what its dialect demands: as if it were not there
                values[field] = codec.decode(data)
    return values
