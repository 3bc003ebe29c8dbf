"""The error table."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from safekafka.verdict import Verdict, judge

CODES = sorted(
    {
        value
        for name in dir(KafkaError)
        if name.lstrip("_").isupper() and isinstance(value := getattr(KafkaError, name), int) and value != 0
    }
)


@pytest.mark.parametrize("code", CODES)
def test_P1_every_error_has_a_verdict(code: int) -> None:
    assert isinstance(judge(KafkaError(code)), Verdict)


@pytest.mark.parametrize(
    "code",
    [
        KafkaError._MSG_TIMED_OUT,
        KafkaError._PURGE_QUEUE,
        KafkaError._PURGE_INFLIGHT,
        KafkaError._TRANSPORT,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
    ],
)
def test_B_P01_what_may_have_been_written_is_unknown_never_failed(code: int) -> None:
    assert judge(KafkaError(code)) is Verdict.UNKNOWN


def test_authorization_and_missing_topics_are_not_the_records_fault() -> None:
    for code in (KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC):
        assert judge(KafkaError(code)) is Verdict.TOPIC_BOUND


def test_too_large_is_the_records_fault() -> None:
    assert judge(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE)) is Verdict.RECORD_BOUND


def test_a_fatal_flag_outranks_the_code() -> None:
    assert judge(KafkaError(KafkaError.UNKNOWN, "broken", True)) is Verdict.FATAL
