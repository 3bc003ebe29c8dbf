"""Record checks: every problem at once, before anything is queued."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Producer

from safekafka import InvalidRecordError, Record
from safekafka.record import as_record, checked


def test_strings_become_utf8_and_none_stays_none() -> None:
    assert checked("orders", "é", None, {"a": "b", "n": None}, None, None) == (
        "orders",
        "é".encode(),
        None,
        [("a", b"b"), ("n", None)],
        -1,
        0,
    )


def test_headers_keep_their_order_and_their_repetitions() -> None:
    pairs = [("a", b"1"), ("b", b"2"), ("a", b"3")]
    assert checked("orders", b"", b"", pairs, 0, 5)[3] == pairs


@pytest.mark.parametrize("value", [bytearray(b"ab"), memoryview(b"ab"), "ab"])
def test_bytes_like_values_are_taken(value: Any) -> None:
    assert checked("orders", value, None, None, None, None)[1] == b"ab"


def test_all_problems_of_a_record_are_in_one_error() -> None:
    with pytest.raises(InvalidRecordError) as caught:
        checked("no spaces", object(), 5, [("a", 1), "b", (2, b"")], -1, 0)  # type: ignore[arg-type, list-item]
    assert len(caught.value.problems) == 8
    assert "'no spaces'" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("topic", ["", ".", "..", "a/b", "a" * 250, "ä", None, 7, ["orders"]])
def test_an_illegal_topic_name_is_refused(topic: Any) -> None:
    with pytest.raises(InvalidRecordError):
        checked(topic, b"", None, None, None, None)


@pytest.mark.parametrize("name", ["a\0b", "\udc80"])
def test_a_header_name_that_the_client_would_cut_or_crash_on_is_refused(name: str) -> None:
    with pytest.raises(InvalidRecordError, match="header name"):
        checked("orders", b"", None, {name: b"1"}, None, None)


def test_text_that_utf8_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidRecordError, match=r"value holds a lone surrogate.*key holds"):
        checked("orders", "\udc80", "\udc80", None, None, None)


@pytest.mark.parametrize(
    "headers",
    [{"a": "1", "b": None}, [("a", "1"), ("b", None)], (("a", b"1"), ("b", None)), {"a": bytearray(b"1"), "b": None}],
)
def test_headers_may_be_a_dict_or_pairs(headers: Any) -> None:
    assert checked("orders", b"", None, headers, None, None)[3] == [("a", b"1"), ("b", None)]


@pytest.mark.parametrize("kind", [dict, OrderedDict, MappingProxyType])
def test_headers_may_be_any_mapping(kind: Any) -> None:
    assert checked("orders", b"", None, kind({"é": "ü"}), None, None)[3] == [("é", "ü".encode())]


@pytest.mark.parametrize("headers", [None, {}, [], ()])
def test_empty_headers_are_none(headers: Any) -> None:
    assert checked("orders", b"", None, headers, None, None)[3] is None


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ("abc", "headers must be a dict"),
        (b"abc", "headers must be a dict"),
        (7, "headers must be a dict"),
        ({("a", "1")}, "headers must be a dict"),
        ([["a", b"1"]], "header 0 is a list"),
        ([("a", b"1"), ("a",)], "header 1 is a tuple"),
        ({1: b""}, "header name 1"),
        ({b"a": b""}, "header name b'a'"),
        ({"a": 1}, "header 'a' must be bytes"),
        ({"a": "\udc80"}, "header 'a' holds a lone surrogate"),
    ],
)
def test_headers_of_another_form_are_refused(headers: Any, problem: str) -> None:
    with pytest.raises(InvalidRecordError, match=problem):
        checked("orders", b"", None, headers, None, None)


def test_a_refused_header_does_not_show_its_content() -> None:
    with pytest.raises(InvalidRecordError) as caught:
        checked("orders", b"", None, [["authorization", b"s3cret"], ("token", 3.14)], None, None)  # type: ignore[arg-type, list-item]
    assert len(caught.value.problems) == 2
    assert "s3cret" not in str(caught.value)
    assert "3.14" not in str(caught.value)


class _Whole:
    """What numpy's integers are: no int, but an index."""

    def __index__(self) -> int:
        return 3


def test_whole_numbers_of_other_types_are_taken_as_the_raw_client_takes_them() -> None:
    fields = checked("orders", b"", None, None, _Whole(), _Whole())  # type: ignore[arg-type]
    assert fields[4:] == (3, 3)
    assert (type(fields[4]), type(fields[5])) == (int, int)


def test_the_time_of_day_in_milliseconds_must_be_whole() -> None:
    with pytest.raises(InvalidRecordError, match="give whole milliseconds"):
        checked("orders", b"", None, None, None, time.time() * 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("timestamp", [0, -1, 2**63, 1.5, True, "1700000000000"])
def test_an_impossible_timestamp_is_refused(timestamp: Any) -> None:
    with pytest.raises(InvalidRecordError, match="timestamp"):
        checked("orders", b"", None, None, None, timestamp)


@pytest.mark.parametrize("partition", [-1, 2**31, 1.5, True, "0"])
def test_an_impossible_partition_is_refused(partition: Any) -> None:
    with pytest.raises(InvalidRecordError, match="partition"):
        checked("orders", b"", None, None, partition, None)


def test_fields_go_back_to_the_record_they_came_from() -> None:
    record = Record("orders", b"v", b"k", [("a", b"1")], 2, 1_700_000_000_000)
    assert (
        as_record(checked(record.topic, record.value, record.key, record.headers, record.partition, record.timestamp))
        == record
    )


LIMIT = 20_000


@pytest.fixture(scope="module")
def raw() -> Iterator[Producer]:
    """Connected to nothing: what it takes stays in its queue."""
    producer = Producer({"message.max.bytes": LIMIT, "log_level": 0})
    yield producer
    producer.purge()
    producer.poll(0)


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        (None, None),
        (b"", None),
        (b"k" * 300, None),
        (None, [("a", None)]),
        (None, [("", b"")]),
        (None, [("a" * 63, b"1" * 63)]),
        (None, [("a" * 64, b"1" * 64)]),
        (None, [("é" * 32, b"1" * 8_191)]),
        (b"k", [("a", b"1" * 8_192), ("b", None), ("a", b"2")]),
        (b"k", [(f"h{n}", b"x" * n) for n in range(130)]),
    ],
)
@pytest.mark.parametrize("surplus", [0, 1])
def test_a_record_is_too_large_exactly_when_it_is_for_the_client(
    raw: Producer, key: bytes | None, headers: list[tuple[str, str | bytes | None]] | None, surplus: int
) -> None:
    low, high = 0, LIMIT  # the client takes a value of `low` bytes, and none of `high`
    while high - low > 1:
        middle = (low + high) // 2
        try:
            raw.produce("orders", b"v" * middle, key, headers=headers)
            low = middle
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
            high = middle
    value = b"v" * (low + surplus)
    if surplus:
        with pytest.raises(InvalidRecordError, match=rf"{LIMIT + 1} bytes .*message\.max\.bytes={LIMIT}.*smaller"):
            checked("orders", value, key, headers, None, None, LIMIT)
    else:
        assert checked("orders", value, key, headers, None, None, LIMIT)[1] == value


@pytest.mark.parametrize("field", ["value", "key"])
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda content: content.decode()])
def test_the_size_is_that_of_the_encoded_record(field: str, kind: Any) -> None:
    content = "é".encode() * ((LIMIT - 36) // 2)

    def check(given: Any) -> Any:
        value, key = (given, None) if field == "value" else (None, given)
        return checked("orders", value, key, None, None, None, LIMIT)

    assert content in check(kind(content))
    with pytest.raises(InvalidRecordError, match=f"{LIMIT + 1} bytes"):
        check(kind(content + b"a"))


def test_without_a_limit_every_size_passes() -> None:
    assert checked("orders", b"v" * 2_000_000, None, None, None, None)[1] is not None


def test_the_size_is_one_problem_among_the_others() -> None:
    with pytest.raises(InvalidRecordError) as caught:
        checked("no spaces", b"v" * LIMIT, None, {"a": 1}, -5, 0.5, LIMIT)  # type: ignore[arg-type, dict-item]
    assert len(caught.value.problems) == 5
