"""The error table of the consumer."""

from __future__ import annotations

from collections import Counter

import pytest
from confluent_kafka import KafkaError

from safekafka import ConsumerAuthorizationError, ConsumerFencedError, SafeKafkaError, UnreadableRecordError
from safekafka.consumer.verdict import TABLE, Verdict, failure_of, judge

CODES = {
    name: value
    for name in dir(KafkaError)
    if name.lstrip("_").isupper() and isinstance(value := getattr(KafkaError, name), int)
}
NAMED = {name: verdict for verdict, _, names in TABLE for name in names.split()}


def test_B_C32_the_table_names_every_error_of_this_client_once() -> None:
    assert len(CODES) > 150, "the codes are found"
    assert sorted(set(CODES) - set(NAMED)) == [], "a newer client has these: give each its verdict"
    counted = Counter(name for _, _, names in TABLE for name in names.split())
    assert [name for name, count in counted.items() if count > 1] == []
    # Misspelt names would be passed over, like those that an older client lacks.
    assert sorted(set(NAMED) - set(CODES)) == []


@pytest.mark.parametrize("name", sorted(CODES))
def test_B_C32_every_error_is_judged_as_the_table_says(name: str) -> None:
    assert judge(KafkaError(CODES[name])) is NAMED[name]


@pytest.mark.parametrize("code", [12_345, -198_765])
def test_an_error_newer_than_the_table_is_told_and_stops_only_a_client_at_its_end(code: int) -> None:
    assert judge(KafkaError(code)) is Verdict.TELL
    assert judge(KafkaError(code, "newer", True)) is Verdict.STOP


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (KafkaError.FENCED_INSTANCE_ID, ConsumerFencedError),
        (KafkaError.UNRELEASED_INSTANCE_ID, ConsumerFencedError),
        (KafkaError.GROUP_AUTHORIZATION_FAILED, ConsumerAuthorizationError),
        (KafkaError.INVALID_REQUEST, SafeKafkaError),
    ],
)
def test_B_C32_a_fatal_error_is_known_by_the_cause_in_its_text(code: int, expected: type[SafeKafkaError]) -> None:
    """As a message it has the code _FATAL, and is not even fatal()."""
    cause = KafkaError(code).str()
    error = KafkaError(KafkaError._FATAL, f"Fatal error: {cause}: ConsumerGroupHeartbeat fatal error: {cause}")
    failure = failure_of(error, judge(error), (None, None, None))
    assert type(failure) is expected
    assert cause in str(failure)
    assert "Remedy: " in str(failure)


def test_what_cannot_be_read_is_named_by_its_place() -> None:
    error = KafkaError(KafkaError._BAD_MSG, "failed CRC32C check")
    failure = failure_of(error, judge(error), ("orders", 2, 15))
    assert isinstance(failure, UnreadableRecordError)
    assert (failure.topic, failure.partition, failure.offset) == ("orders", 2, 15)
    assert "orders[2]@15 can't be read: failed CRC32C check (_BAD_MSG)" in str(failure)
