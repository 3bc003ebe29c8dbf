"""The error table."""

from __future__ import annotations

from collections import Counter

import pytest
from confluent_kafka import KafkaError

from safekafka.verdict import TABLE, Verdict, judge, refusal_of

CODES = {
    name: value
    for name in dir(KafkaError)
    if name.lstrip("_").isupper() and isinstance(value := getattr(KafkaError, name), int)
}
NAMED = {name: verdict for verdict, _, names in TABLE for name in names.split()}


def names_of(verdict: Verdict) -> set[str]:
    return {name for name, its in NAMED.items() if its is verdict}


def test_P1_the_table_names_every_error_of_this_client_once() -> None:
    assert len(CODES) > 150, "the codes are found"
    assert sorted(set(CODES) - set(NAMED)) == [], "a newer client has these: give each its verdict"
    counted = Counter(name for _, _, names in TABLE for name in names.split())
    assert [name for name, count in counted.items() if count > 1] == []
    # Misspelt names would be passed over, like those that an older client lacks.
    assert sorted(set(NAMED) - set(CODES)) == []


@pytest.mark.parametrize("name", sorted(CODES))
def test_P1_every_error_is_judged_as_the_table_says(name: str) -> None:
    assert judge(KafkaError(CODES[name])) is NAMED[name]


@pytest.mark.parametrize("code", [12_345, -198_765, max(CODES.values()) + 1])
def test_P1_an_error_newer_than_the_table_is_unknown(code: int) -> None:
    assert judge(KafkaError(code)) is Verdict.UNKNOWN


def test_P1_only_what_was_weighed_before_writing_counts_as_not_in_kafka() -> None:
    """An addition here ends records as `failed`: it must be certain that no attempt of them was written."""
    assert names_of(Verdict.RECORD_BOUND) == {
        "MSG_SIZE_TOO_LARGE",
        "RECORD_LIST_TOO_LARGE",
        "INVALID_RECORD",
        "_INVALID_DIFFERENT_RECORD",
        "_KEY_SERIALIZATION",
        "_VALUE_SERIALIZATION",
    }


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._TRANSPORT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.NOT_ENOUGH_REPLICAS,
        KafkaError.KAFKA_STORAGE_ERROR,
        KafkaError.INVALID_MSG,
        KafkaError.DUPLICATE_SEQUENCE_NUMBER,
        KafkaError.UNKNOWN,
    ],
)
def test_B_P01_what_may_have_been_written_is_unknown_never_failed(code: int) -> None:
    assert judge(KafkaError(code)) is Verdict.UNKNOWN


def test_authorization_and_missing_topics_are_not_the_records_fault() -> None:
    for code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        assert judge(KafkaError(code)) is Verdict.TOPIC_BOUND


def test_a_broken_sequence_ends_the_client() -> None:
    for code in (KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, KafkaError.UNKNOWN_PRODUCER_ID, KafkaError._FENCED):
        assert judge(KafkaError(code)) is Verdict.FATAL


@pytest.mark.parametrize("code", [KafkaError.UNKNOWN, KafkaError.MSG_SIZE_TOO_LARGE, 12_345])
def test_a_fatal_flag_outranks_the_code(code: int) -> None:
    assert judge(KafkaError(code, "broken", True)) is Verdict.FATAL


@pytest.mark.parametrize("name", sorted(names_of(Verdict.RECORD_BOUND)))
def test_a_refusal_names_the_error_and_a_remedy(name: str) -> None:
    told = refusal_of(KafkaError(CODES[name]))
    assert name in told
    assert told.split("): ")[1]


def test_the_remedy_fits_the_refusal() -> None:
    assert "max.message.bytes" in refusal_of(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))
    assert "segment.bytes" in refusal_of(KafkaError(KafkaError.RECORD_LIST_TOO_LARGE))
    assert "compacted" in refusal_of(KafkaError(KafkaError.INVALID_RECORD))
    assert "clock" in refusal_of(KafkaError(KafkaError.INVALID_TIMESTAMP))
