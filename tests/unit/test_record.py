"""Record checks: every problem at once, before anything is queued."""

from __future__ import annotations

from typing import Any

import pytest

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


@pytest.mark.parametrize("timestamp", [0, -1, 2**63, 1.5])
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
