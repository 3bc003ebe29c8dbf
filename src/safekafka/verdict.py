"""What a produce error means for the record: an explicit table. Pure.

`KafkaError.retriable()` is not used: it is False for timeouts and rebalance errors, the commonest errors that pass by
themselves. What the table does not name is `UNKNOWN`: an attempt may have been written, and "failed" would be a lie.
"""

from __future__ import annotations

import enum

from confluent_kafka import KafkaError


class Verdict(enum.Enum):
    """Each value tells what is known about the record, and so what may be done with it."""

    RECORD_BOUND = "this record can never be taken as it is; no attempt of it was written"
    TOPIC_BOUND = "the topic (or our right to it) is in a state that refuses records; another time it may take them"
    UNKNOWN = "the record may or may not be in the log"
    FATAL = "this client can't continue; a new one can"


# The verdict depends on the record alone, so an earlier attempt can't have been taken either.
# A broker gives it to a whole batch: among several records it does not tell which one is at fault.
_RECORD_BOUND = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_RECORD,
        KafkaError._KEY_SERIALIZATION,
        KafkaError._VALUE_SERIALIZATION,
    }
)
_TOPIC_BOUND = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.UNKNOWN_TOPIC_ID,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
        KafkaError.TOPIC_EXCEPTION,
        KafkaError.POLICY_VIOLATION,
        KafkaError.INVALID_TIMESTAMP,  # our clock, or the topic's rule for it: not the record's bytes
        KafkaError.INVALID_REQUIRED_ACKS,
        KafkaError.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        KafkaError.UNSUPPORTED_COMPRESSION_TYPE,
        KafkaError.SECURITY_DISABLED,
    }
)
_FATAL = frozenset(
    {
        KafkaError._FATAL,
        KafkaError._FENCED,
        KafkaError._GAPLESS_GUARANTEE,
        KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.PRODUCER_FENCED,
    }
)


def judge(error: KafkaError) -> Verdict:
    """The verdict on a delivery report's error, or on the error that `produce()` itself raised."""
    code = error.code()
    if error.fatal() or code in _FATAL:
        return Verdict.FATAL
    if code in _RECORD_BOUND:
        return Verdict.RECORD_BOUND
    if code in _TOPIC_BOUND:
        return Verdict.TOPIC_BOUND
    return Verdict.UNKNOWN


def refusal_of(error: KafkaError) -> str:
    """A record-bound error with its remedy."""
    limit = "message.max.bytes and the topic's max.message.bytes" if "large" in error.str() else "the limit it names"
    return f"{error.str()} ({error.name()}): make the record smaller or raise {limit}"
