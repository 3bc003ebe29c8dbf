"""Dead letter headers: the original's kept, ours behind them, never adding up."""

from __future__ import annotations

from confluent_kafka import Message

from safekafka.deadletter.headers import PREFIX, dead_letter_headers


def headers_of(message: Message, error: BaseException) -> list[tuple[str, str | bytes | None]]:
    return dead_letter_headers(message, error, attempts=3, group="billing", host="h1", now_ms=1_700_000_000_000)


def message(headers: list[tuple[str, bytes | None]]) -> Message:
    return Message(topic="orders", partition=3, offset=42, key=b"k", value=b"v", headers=headers, timestamp=(1, 99))  # type: ignore[arg-type]


def test_C5_the_original_headers_come_first_byte_for_byte_in_order() -> None:
    original = [("trace", b"\x00\xff"), ("trace", None), ("a", b"")]
    assert headers_of(message(original), ValueError("no"))[:3] == original


def test_C5_a_dead_letter_says_where_it_comes_from_and_why() -> None:
    ours = dict(headers_of(message([]), ValueError("no")))
    assert ours[PREFIX + "topic"] == b"orders"
    assert ours[PREFIX + "partition"] == b"3"
    assert ours[PREFIX + "offset"] == b"42"
    assert ours[PREFIX + "timestamp"] == b"99"
    assert ours[PREFIX + "error.class"] == b"builtins.ValueError"
    assert ours[PREFIX + "error.message"] == b"no"
    assert ours[PREFIX + "attempts"] == b"3"
    assert ours[PREFIX + "group"] == b"billing"


def test_B_D05_headers_of_an_earlier_pass_are_replaced_and_long_texts_cut() -> None:
    first = headers_of(message([("trace", b"1")]), ValueError("x" * 100_000))
    again = headers_of(message(first), ValueError("x" * 100_000))  # type: ignore[arg-type]
    assert [name for name, _ in first] == [name for name, _ in again]
    assert sum(len(value or b"") for _, value in again) < 10_000
