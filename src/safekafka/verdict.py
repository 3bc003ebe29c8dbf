"""What a produce error means for the record: a table of every error code there is. Pure.

`KafkaError.retriable()` is not used: it is False for timeouts and rebalance errors, the commonest errors that pass by
themselves. Nor is the client's opinion: librdkafka counts every code it does not know as "not written", but it says so
of the last attempt, and an earlier one, whose answer was lost, may be in the log.

Sources: librdkafka's rdkafka_request.c (rd_kafka_handle_Produce_error and what it does for the idempotent producer,
rd_kafka_err_action) and rdkafka_idempotence.c; Apache Kafka's Errors.java, ProduceResponse.java and LogValidator.java.
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


# Names, not codes: an older confluent-kafka lacks the newest of them.
TABLE: tuple[tuple[Verdict, str, str], ...] = (
    (
        Verdict.RECORD_BOUND,
        # Size or content were weighed before anything was written, and would have been so at an earlier
        # attempt. A broker gives the verdict to a whole batch: among several records it does not tell which one is at
        # fault.
        "the record itself was looked at and refused",
        "MSG_SIZE_TOO_LARGE RECORD_LIST_TOO_LARGE INVALID_RECORD",
    ),
    (
        Verdict.RECORD_BOUND,
        # A verdict on the batch as well, and true of it; sent alone, this record is taken.
        "refused together with a bad record of its batch",
        "_INVALID_DIFFERENT_RECORD",
    ),
    (
        Verdict.RECORD_BOUND,
        "no bytes were made of it, so none were sent",
        "_KEY_SERIALIZATION _VALUE_SERIALIZATION",
    ),
    (
        Verdict.TOPIC_BOUND,
        # An administrator can grant them.
        "we lack the right to write",
        "TOPIC_AUTHORIZATION_FAILED CLUSTER_AUTHORIZATION_FAILED",
    ),
    (
        Verdict.TOPIC_BOUND,
        # It may be about to be created, or to get more partitions.
        "the topic or the partition is not there, or not for writing",
        "UNKNOWN_TOPIC_OR_PART UNKNOWN_TOPIC_ID _UNKNOWN_TOPIC _UNKNOWN_PARTITION TOPIC_EXCEPTION",
    ),
    (
        Verdict.TOPIC_BOUND,
        # They refuse every record alike until somebody changes them.
        "the rules of the topic or of the brokers",
        "POLICY_VIOLATION INVALID_REQUIRED_ACKS UNSUPPORTED_FOR_MESSAGE_FORMAT UNSUPPORTED_COMPRESSION_TYPE",
    ),
    (
        Verdict.TOPIC_BOUND,
        # Or of the record, where the program gave the timestamp: the caller knows.
        "our host's clock, or the topic's rule for timestamps",
        "INVALID_TIMESTAMP",
    ),
    (
        Verdict.FATAL,
        # Continuing could write twice or out of order, so the client stops for good.
        "the sequence of the idempotent producer is broken",
        "_FATAL _FENCED _GAPLESS_GUARANTEE _INCONSISTENT OUT_OF_ORDER_SEQUENCE_NUMBER UNKNOWN_PRODUCER_ID "
        "INVALID_PRODUCER_EPOCH PRODUCER_FENCED",
    ),
    (
        Verdict.UNKNOWN,
        # UNKNOWN is a failure inside the broker, at any point.
        "it may have been written, and the answer was lost or came too late",
        "_MSG_TIMED_OUT _TIMED_OUT _TIMED_OUT_QUEUE _TRANSPORT _SSL _FAIL _BAD_MSG _UNDERFLOW _PARTIAL "
        "REQUEST_TIMED_OUT NETWORK_EXCEPTION UNKNOWN KAFKA_STORAGE_ERROR",
    ),
    (
        Verdict.UNKNOWN,
        # Whether it stays there depends on which replica leads next.
        "it was written, but not to enough replicas",
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND _ISR_INSUFF",
    ),
    (
        Verdict.UNKNOWN,
        # A client that was told to end, or whose producer id changed, gives records back in the middle of their
        # attempts; one that waits in the queue may be there for the second time.
        "the client let go of it",
        "_PURGE_QUEUE _PURGE_INFLIGHT _DESTROY _DESTROY_BROKER _RETRY",
    ),
    (
        Verdict.UNKNOWN,
        # The client repeats these for as long as it takes. It reports them only when it may not repeat, after its
        # producer id changed: then the attempt before may have been written. (INVALID_MSG: damaged on the way.)
        "this attempt was not written, but the one before may have been",
        "INVALID_MSG LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION BROKER_NOT_AVAILABLE REPLICA_NOT_AVAILABLE "
        "COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE NOT_COORDINATOR _WAIT_COORD NOT_ENOUGH_REPLICAS",
    ),
    (
        Verdict.UNKNOWN,
        # The client takes it for success, unless its producer id changed.
        "an earlier attempt was written, or another record under its number",
        "DUPLICATE_SEQUENCE_NUMBER",
    ),
    (
        Verdict.UNKNOWN,
        # Told by events and not by reports; records wait in the client meanwhile.
        "the connection or the cluster is at fault, which says nothing about the record",
        "_RESOLVE _ALL_BROKERS_DOWN _AUTHENTICATION _CRIT_SYS_RESOURCE _UNKNOWN_BROKER _NODE_UPDATE _WAIT_CACHE "
        "UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE SASL_AUTHENTICATION_FAILED UNSUPPORTED_VERSION INVALID_REQUEST "
        "LISTENER_NOT_FOUND REBOOTSTRAP_REQUIRED THROTTLING_QUOTA_EXCEEDED",
    ),
    (
        Verdict.UNKNOWN,
        # Raised by `produce()`, they tell that it was not queued this time, not what became of the record before.
        "the client refused a call, or failed inside",
        "_QUEUE_FULL _INVALID_ARG _STATE _CONFLICT _FS _INTR _APPLICATION _NOT_IMPLEMENTED _NOT_CONFIGURED "
        "_UNSUPPORTED_FEATURE _UNKNOWN_PROTOCOL _BAD_COMPRESSION _IN_PROGRESS _PREV_IN_PROGRESS _OUTDATED _READ_ONLY "
        "_NOENT _INVALID_TYPE",
    ),
    # What follows can't answer a produce request. If it does nevertheless, nothing is known.
    (
        Verdict.UNKNOWN,
        "no error",
        "NO_ERROR _NOOP _PARTITION_EOF",
    ),
    (
        Verdict.UNKNOWN,
        "consumers: fetching, offsets, groups",
        "_UNKNOWN_GROUP _EXISTING_SUBSCRIPTION _ASSIGN_PARTITIONS _REVOKE_PARTITIONS _NO_OFFSET _KEY_DESERIALIZATION "
        "_VALUE_DESERIALIZATION _MAX_POLL_EXCEEDED _ASSIGNMENT_LOST _AUTO_OFFSET_RESET _LOG_TRUNCATION "
        "OFFSET_OUT_OF_RANGE INVALID_MSG_SIZE OFFSET_METADATA_TOO_LARGE ILLEGAL_GENERATION INCONSISTENT_GROUP_PROTOCOL "
        "INVALID_GROUP_ID UNKNOWN_MEMBER_ID INVALID_SESSION_TIMEOUT REBALANCE_IN_PROGRESS INVALID_COMMIT_OFFSET_SIZE "
        "GROUP_AUTHORIZATION_FAILED NON_EMPTY_GROUP GROUP_ID_NOT_FOUND FETCH_SESSION_ID_NOT_FOUND "
        "INVALID_FETCH_SESSION_EPOCH FENCED_LEADER_EPOCH UNKNOWN_LEADER_EPOCH OFFSET_NOT_AVAILABLE MEMBER_ID_REQUIRED "
        "GROUP_MAX_SIZE_REACHED FENCED_INSTANCE_ID GROUP_SUBSCRIBED_TO_TOPIC UNSTABLE_OFFSET_COMMIT "
        "INCONSISTENT_TOPIC_ID FENCED_MEMBER_EPOCH UNRELEASED_INSTANCE_ID UNSUPPORTED_ASSIGNOR STALE_MEMBER_EPOCH "
        "INVALID_REGULAR_EXPRESSION INVALID_RECORD_STATE SHARE_SESSION_NOT_FOUND INVALID_SHARE_SESSION_EPOCH "
        "SHARE_SESSION_LIMIT_REACHED FENCED_STATE_EPOCH STREAMS_INVALID_TOPOLOGY STREAMS_INVALID_TOPOLOGY_EPOCH "
        "STREAMS_TOPOLOGY_FENCED",
    ),
    (
        Verdict.UNKNOWN,
        # `transactional.id` is refused.
        "transactions",
        "INVALID_TXN_STATE INVALID_PRODUCER_ID_MAPPING INVALID_TRANSACTION_TIMEOUT CONCURRENT_TRANSACTIONS "
        "TRANSACTION_COORDINATOR_FENCED TRANSACTIONAL_ID_AUTHORIZATION_FAILED TRANSACTION_ABORTABLE",
    ),
    (
        Verdict.UNKNOWN,
        "administration, and brokers among themselves",
        "STALE_CTRL_EPOCH TOPIC_ALREADY_EXISTS INVALID_PARTITIONS INVALID_REPLICATION_FACTOR "
        "INVALID_REPLICA_ASSIGNMENT INVALID_CONFIG NOT_CONTROLLER SECURITY_DISABLED OPERATION_NOT_ATTEMPTED "
        "LOG_DIR_NOT_FOUND REASSIGNMENT_IN_PROGRESS NO_REASSIGNMENT_IN_PROGRESS DELEGATION_TOKEN_AUTH_DISABLED "
        "DELEGATION_TOKEN_NOT_FOUND DELEGATION_TOKEN_OWNER_MISMATCH DELEGATION_TOKEN_REQUEST_NOT_ALLOWED "
        "DELEGATION_TOKEN_AUTHORIZATION_FAILED DELEGATION_TOKEN_EXPIRED INVALID_PRINCIPAL_TYPE "
        "TOPIC_DELETION_DISABLED STALE_BROKER_EPOCH PREFERRED_LEADER_NOT_AVAILABLE ELIGIBLE_LEADERS_NOT_AVAILABLE "
        "ELECTION_NOT_NEEDED RESOURCE_NOT_FOUND DUPLICATE_RESOURCE UNACCEPTABLE_CREDENTIAL INCONSISTENT_VOTER_SET "
        "INVALID_UPDATE_VERSION FEATURE_UPDATE_FAILED PRINCIPAL_DESERIALIZATION_FAILURE MISMATCHED_ENDPOINT_TYPE "
        "UNSUPPORTED_ENDPOINT_TYPE UNKNOWN_CONTROLLER_ID UNKNOWN_SUBSCRIPTION_ID TELEMETRY_TOO_LARGE "
        "INVALID_REGISTRATION INVALID_VOTER_KEY DUPLICATE_VOTER VOTER_NOT_FOUND",
    ),
)

_VERDICTS: dict[int, Verdict] = {
    getattr(KafkaError, name): verdict
    for verdict, _, names in TABLE
    for name in names.split()
    if hasattr(KafkaError, name)
}

_SMALLER = "make the record smaller, or raise message.max.bytes and the topic's max.message.bytes"
_REMEDIES: dict[int, str] = {
    code: remedy
    for name, remedy in {
        "MSG_SIZE_TOO_LARGE": _SMALLER,
        "RECORD_LIST_TOO_LARGE": "make the record smaller, or raise the topic's segment.bytes",
        "INVALID_RECORD": "give what the topic demands: a key if it is compacted, a value of its schema if it has one",
        "INVALID_TIMESTAMP": "give timestamp= in ms, within the topic's message.timestamp.before.max.ms and "
        "message.timestamp.after.max.ms, and look at this host's clock",
        "_INVALID_DIFFERENT_RECORD": "send it again: another record of its batch was at fault",
    }.items()
    if (code := getattr(KafkaError, name, None)) is not None
}


def judge(error: KafkaError) -> Verdict:
    """The verdict on a delivery report's error, or on the error that `produce()` itself raised.

    A code that the table does not name (a newer client's) is `UNKNOWN`: an attempt may have been written, and "failed"
    would be a lie.
    """
    if error.fatal():
        return Verdict.FATAL
    return _VERDICTS.get(error.code(), Verdict.UNKNOWN)


def refusal_of(error: KafkaError) -> str:
    """A record-bound error with its remedy."""
    return f"{error.str()} ({error.name()}): {_REMEDIES.get(error.code(), 'mend the record')}"
