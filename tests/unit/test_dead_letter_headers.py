"""Dead letter headers: the original's kept byte for byte, ours behind them in each dialect, never adding up."""

from __future__ import annotations

import random
from typing import Any

import hypothesis.strategies as st
import pytest
from confluent_kafka import Message
from hypothesis import given

from safekafka.deadletter.about import About, First, decode_first
from safekafka.deadletter.dialects import DIALECTS, NATIVE, PREFIX, SPRING, read, written
from safekafka.deadletter.headers import CUTS, about_failure, letter_headers, original_headers
from safekafka.deadletter.marks import MARK, is_for, marks
from safekafka.record import HeaderList

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
_topic = st.text("abcXYZ019._-", min_size=1, max_size=40).filter(lambda name: name not in (".", ".."))
_millis = st.integers(0, 2**62)
_first = st.builds(First, _topic, st.integers(0, 2**31 - 1), _millis, st.none() | _millis, st.none() | _millis)
_timestamps = st.sampled_from([(None, None), (0, "CreateTime"), (2**62, "LogAppendTime")])
_abouts = st.builds(
    lambda stamp, **fields: About(timestamp=stamp[0], timestamp_type=stamp[1], **fields),
    _timestamps,
    topic=_topic,
    partition=st.integers(0, 2**31 - 1),
    offset=_millis,
    group=st.none() | _text,
    passes=st.integers(1, 2**31),
    first=st.none() | _first,
    error_class=st.none() | _text,
    error_cause=st.none() | _text,
    error_message=st.none() | _text,
    traceback=st.none() | _text,
    attempts=st.none() | st.integers(1, 2**15 - 1),
    host=st.none() | _text,
    failed_at=st.none() | _millis,
)
_headers = st.lists(
    st.tuples(
        st.sampled_from([place[0] for d in DIALECTS.values() for place in d.places.values()]) | _text,
        st.none() | st.binary(max_size=20),
    ),
    max_size=30,
)


def message(headers: Any = None, topic: str = "orders", timestamp: tuple[int, int] = (1, 99)) -> Message:
    return Message(topic=topic, partition=3, offset=42, key=b"k", value=b"v", headers=headers, timestamp=timestamp)


def letter(
    original: Message, error: BaseException, dialect: str = "native", cut: int = 0, now_ms: int = 7
) -> HeaderList:
    about = about_failure(original, error, attempts=3, group="billing", host="h1", now_ms=now_ms)
    return letter_headers(original, about, DIALECTS[dialect], CUTS[cut])


def size(headers: HeaderList) -> int:
    return sum(len(name) + len(value or b"") for name, value in headers)


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
@given(about=_abouts)
def test_C5_what_is_written_in_a_dialect_is_read_back(dialect: Any, about: About) -> None:
    told = read([("trace", b"1"), *written(about, dialect)])
    assert told is not None
    assert (told.about, told.dialect, told.by_us) == (about, dialect, True)


@given(headers=_headers)
def test_headers_that_anybody_wrote_never_break_the_reader(headers: HeaderList) -> None:
    told = read(headers)
    assert told is None or told.about.topic
    decode_first(next((value for _, value in headers), None))  # type: ignore[arg-type]
    is_for(message(headers), "billing")
    about_failure(message(headers), ValueError("no"), attempts=1, group="billing", host="h", now_ms=1)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_B_D04_the_original_headers_come_first_byte_for_byte_in_order(dialect: str) -> None:
    original = [("trace", b"\x00\xff"), ("trace", None), ("a", b""), ("kafka_deliveryAttempt", b"\0\0\0\1")]
    headers = letter(message(original), ValueError("no"), dialect)
    assert headers[: len(original)] == original
    assert original_headers(message(headers), DIALECTS[dialect]) == original


def test_C5_a_native_letter_says_where_it_comes_from_and_why() -> None:
    ours = dict(letter(message(), ValueError("no")))
    assert ours[PREFIX + "topic"] == b"orders"
    assert ours[PREFIX + "partition"] == b"3"
    assert ours[PREFIX + "offset"] == b"42"
    assert ours[PREFIX + "timestamp"] == b"99"
    assert ours[PREFIX + "timestamp.type"] == b"CreateTime"
    assert ours[PREFIX + "error.class"] == b"builtins.ValueError"
    assert ours[PREFIX + "error.message"] == b"no"
    assert ours[PREFIX + "attempts"] == b"3"
    assert ours[PREFIX + "group"] == b"billing"
    assert ours[PREFIX + "host"] == b"h1"
    assert ours[PREFIX + "failed_at"] == b"7"
    assert ours[PREFIX + "passes"] == b"1"


def failing_with_cause() -> BaseException:
    try:
        try:
            raise KeyError("city")
        except KeyError as cause:
            raise ValueError("no") from cause
    except ValueError as error:
        return error


def test_C5_a_spring_letter_has_the_names_and_binary_numbers_that_spring_reads() -> None:
    ours = dict(letter(message(), failing_with_cause(), "spring"))
    stack = bytes(ours.pop("kafka_dlt-exception-stacktrace") or b"")  # type: ignore[arg-type]
    assert b"in failing_with_cause" in stack
    assert {name: value for name, value in ours.items() if name.startswith("kafka_")} == {
        "kafka_dlt-original-topic": b"orders",
        "kafka_dlt-original-partition": b"\0\0\0\3",
        "kafka_dlt-original-offset": b"\0\0\0\0\0\0\0\x2a",
        "kafka_dlt-original-timestamp": b"\0\0\0\0\0\0\0\x63",
        "kafka_dlt-original-timestamp-type": b"CreateTime",
        "kafka_dlt-original-consumer-group": b"billing",
        "kafka_dlt-exception-fqcn": b"builtins.ValueError",
        "kafka_dlt-exception-cause-fqcn": b"builtins.KeyError",
        "kafka_dlt-exception-message": b"no",
    }
    without_time = dict(letter(message(timestamp=(0, 0)), ValueError("no"), "spring"))
    assert without_time["kafka_dlt-original-timestamp"] == b"\xff" * 8
    assert without_time["kafka_dlt-original-timestamp-type"] == b"NoTimestampType"


def test_C5_a_connect_letter_has_the_names_that_connect_tools_read() -> None:
    ours = dict(letter(message(), ValueError("no"), "connect"))
    assert b"ValueError: no" in bytes(ours.pop("__connect.errors.exception.stacktrace") or b"")  # type: ignore[arg-type]
    assert {name: value for name, value in ours.items() if name.startswith("__connect")} == {
        "__connect.errors.topic": b"orders",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"42",
        "__connect.errors.connector.name": b"billing",
        "__connect.errors.stage": b"TASK_PUT",
        "__connect.errors.exception.class.name": b"builtins.ValueError",
        "__connect.errors.exception.message": b"no",
    }


def test_C5_a_share_groups_letter_has_the_names_of_kip_1191() -> None:
    ours = dict(letter(message(), ValueError("no"), "kip1191"))
    assert {name: value for name, value in ours.items() if name.startswith("__dlq")} == {
        "__dlq.errors.topic": b"orders",
        "__dlq.errors.partition": b"3",
        "__dlq.errors.offset": b"42",
        "__dlq.errors.group": b"billing",
        "__dlq.errors.delivery.count": b"3",
        "__dlq.errors.message": b"no",
    }
    assert ours[PREFIX + "error.class"] == b"builtins.ValueError"


def test_C5_a_streams_letter_has_the_names_of_kip_1034() -> None:
    ours = dict(letter(message(), ValueError("no"), "streams"))
    assert b"ValueError: no" in bytes(ours.pop("__streams.errors.stacktrace") or b"")  # type: ignore[arg-type]
    assert {name: value for name, value in ours.items() if name.startswith("__streams")} == {
        "__streams.errors.exception": b"builtins.ValueError",
        "__streams.errors.message": b"no",
        "__streams.errors.topic": b"orders",
        "__streams.errors.partition": b"3",
        "__streams.errors.offset": b"42",
    }


def test_letters_that_the_other_systems_wrote_are_read() -> None:
    streams = read(
        [
            ("__streams.errors.exception", b"java.lang.IllegalStateException"),
            ("__streams.errors.message", None),
            ("__streams.errors.topic", b"orders"),
            ("__streams.errors.partition", b"3"),
            ("__streams.errors.offset", b"42"),
        ]
    )
    assert streams is not None
    assert (streams.about, streams.by_us) == (
        About("orders", 3, 42, error_class="java.lang.IllegalStateException"),
        False,
    )
    connect = read(
        [
            ("__connect.errors.topic", b"orders"),
            ("__connect.errors.partition", b"3"),
            ("__connect.errors.offset", b"42"),
            ("__connect.errors.connector.name", b"jdbc"),
        ]
    )
    assert connect is not None
    assert connect.about == About("orders", 3, 42, group="connect-jdbc")
    spring = read(
        [
            ("kafka_dlt-key-exception-fqcn", b"org.springframework.kafka.support.serializer.DeserializationException"),
            ("kafka_dlt-key-exception-message", b"failed to deserialize"),
            ("kafka_dlt-original-topic", b"orders"),
            ("kafka_dlt-original-partition", b"\0\0\0\3"),
            ("kafka_dlt-original-offset", b"\0\0\0\0\0\0\0\x2a"),
        ]
    )
    assert spring is not None
    assert spring.about.error_class == "org.springframework.kafka.support.serializer.DeserializationException"
    assert spring.about.error_message == "failed to deserialize"
    assert read([("__connect.errors.topic", b""), ("__connect.errors.partition", b"-1")]) is None


def test_of_several_writers_the_last_one_tells_where_a_letter_comes_from() -> None:
    ours = written(About("orders", 3, 42, group="billing", host="h1"), NATIVE)
    then_spring = [
        ("kafka_dlt-exception-fqcn", b"X"),
        ("kafka_dlt-original-topic", b"orders.dlq"),
        ("kafka_dlt-original-partition", b"\0\0\0\1"),
        ("kafka_dlt-original-offset", b"\0\0\0\0\0\0\0\5"),
    ]
    told = read([*ours, *then_spring])
    assert told is not None
    assert (told.about, told.dialect) == (About("orders.dlq", 1, 5, error_class="X"), SPRING)
    back = read([*then_spring, *ours])
    assert back is not None
    assert back.about == About("orders", 3, 42, group="billing", host="h1")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_B_D05_a_letter_that_comes_back_again_and_again_does_not_grow_and_keeps_its_history(dialect: str) -> None:
    original = [("trace", b"1")]
    sizes, failed = [], message(original)
    for number in range(1, 51):
        headers = letter(failed, ValueError("x" * 100_000), dialect, now_ms=1_000 + number)
        assert headers[:1] == original
        told = read(headers)
        assert told is not None
        assert told.about.passes == number
        assert told.about.origin == First("orders", 3, 42, 99, 1_001)
        assert told.about.failed_at == 1_000 + number
        sizes.append(size(headers))
        replayed = [
            *original_headers(message(headers), DIALECTS[dialect]),
            *marks("orders", "billing", told.about.passes, "orders.dlq[0]@7", told.about.origin),
        ]
        assert [name for name, _ in replayed if not name.startswith(MARK)] == ["trace"]
        # By replay, or as a letter that was read in the dead letter topic itself and failed there.
        failed = message(replayed if number % 2 else headers)
    assert max(sizes) < 10_000
    assert sizes[-1] - sizes[1] < 10


def test_marks_count_in_the_topic_that_was_replayed_to_and_nowhere_else() -> None:
    headers = [("a", b"1"), *marks("orders", "billing", 1, "orders.dlq[0]@7", First("orders", 3, 42))]
    assert is_for(message(headers), "billing")
    assert not is_for(message(headers), "shipping")
    # An application that copies headers from what it reads to what it writes.
    assert is_for(message(headers, topic="shipments"), "shipping")
    assert is_for(message(), "shipping")
    assert is_for(message([("a", b"1")]), "shipping")
    for_all = marks("orders", None, 1, "orders.dlq[0]@7", First("orders", 3, 42))
    assert is_for(message(for_all), "shipping")


class BrokenError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_error_without_a_decent_text_is_told_all_the_same(dialect: str) -> None:
    for error in (BrokenError(), ValueError("\udcff lone surrogate"), ValueError()):
        told = read(letter(message(), error, dialect))
        assert told is not None
        assert told.about.error_message is not None
        assert told.about.error_class == f"{type(error).__module__}.{type(error).__qualname__}"


def test_a_huge_text_pushes_no_frames_out_of_the_traceback() -> None:
    try:
        raise ValueError("x" * 1_000_000)
    except ValueError as error:
        told = read(letter(message(), error))
    assert told is not None
    assert "in test_a_huge_text_pushes_no_frames_out" in (told.about.traceback or "")


def test_cuts_leave_out_more_and_more_and_never_what_a_replay_needs() -> None:
    chance = random.Random(1)
    error = ValueError("".join(chance.choices("abc ", k=900)))
    headers = [letter(message([("a", b"1")]), error, cut=cut) for cut in range(len(CUTS))]
    assert sorted(map(size, headers), reverse=True) == list(map(size, headers))
    assert len(set(map(size, headers))) == len(CUTS)
    for cut in headers:
        told = read(cut)
        assert told is not None
        about = told.about
        assert (cut[0], about.topic, about.partition, about.offset) == (("a", b"1"), "orders", 3, 42)
        assert (about.timestamp, about.group, about.passes) == (99, "billing", 1)
