"""What an error means that the client tells a consumer: a table of every error code there is. Pure.

Told as messages of `poll()` and `consume()`. librdkafka stops for good only at its fatal errors, which come as `_FATAL`
with the cause in their text; at anything else it goes on trying, whether that can help or not, and mostly tells it
once. So each code says what we do. Errors of the connection come to the error callback, and refused commits to theirs.

Sources: librdkafka's rdkafka_cgrp.c (JoinGroup, SyncGroup, Heartbeat, ConsumerGroupHeartbeat), rdkafka_fetcher.c,
rdkafka_msgset_reader.c (a record set with a wrong checksum is told, and passed over) and rdkafka_offset.c; seen on real
brokers with each group protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from confluent_kafka import KafkaError

from safekafka.errors import (
    ConsumerAuthorizationError,
    ConsumerFencedError,
    SafeKafkaError,
    UnreadableRecordError,
)


class Verdict(enum.Enum):
    """Each value tells what the consumer does."""

    STOP = "no waiting mends it: the consumer stops with a typed error"
    FENCED = "another member has our place: the consumer stops"
    RIGHTS = "the right to read was taken away: told, and waited for; who never had it stops"
    UNREADABLE = "what is in the log can't be read, and the client may pass it over: the consumer stops before it"
    POSITION = "the offset is not in the log: `positions.py` finds out why, and tells what is missed"
    AWAITED = "the topic is not there: `topic_watch.py` tells if it stays so"
    EXPECTED = "belongs to the normal course"
    TELL = "the client goes on by itself: an event"


# Names, not codes: an older confluent-kafka lacks the newest of them.
TABLE: tuple[tuple[Verdict, str, str], ...] = (
    (Verdict.FENCED, "group.instance.id, used twice", "FENCED_INSTANCE_ID UNRELEASED_INSTANCE_ID"),
    (Verdict.RIGHTS, "access control lists", "TOPIC_AUTHORIZATION_FAILED GROUP_AUTHORIZATION_FAILED"),
    (
        Verdict.UNREADABLE,
        # _NOT_IMPLEMENTED: a record set of a format that the client does not know, as damaged ones seem to have.
        # MSG_SIZE_TOO_LARGE: larger than receive.message.max.bytes takes.
        "record sets",
        "_BAD_MSG _BAD_COMPRESSION _NOT_IMPLEMENTED _UNDERFLOW _PARTIAL INVALID_MSG INVALID_MSG_SIZE "
        "MSG_SIZE_TOO_LARGE UNSUPPORTED_COMPRESSION_TYPE UNSUPPORTED_FOR_MESSAGE_FORMAT INVALID_RECORD",
    ),
    (Verdict.POSITION, "positions", "_AUTO_OFFSET_RESET _LOG_TRUNCATION"),
    (Verdict.AWAITED, "topics", "UNKNOWN_TOPIC_OR_PART UNKNOWN_TOPIC_ID _UNKNOWN_TOPIC _UNKNOWN_PARTITION"),
    (Verdict.EXPECTED, "no errors", "NO_ERROR _NOOP _PARTITION_EOF _ASSIGN_PARTITIONS _REVOKE_PARTITIONS"),
    (
        Verdict.STOP,
        "the client is at its end",
        "_FATAL _FENCED",
    ),
    (
        Verdict.STOP,
        "settings that the brokers refuse",
        "TOPIC_EXCEPTION INVALID_GROUP_ID INVALID_SESSION_TIMEOUT UNSUPPORTED_ASSIGNOR INVALID_REGULAR_EXPRESSION",
    ),
    (
        Verdict.TELL,
        # _MAX_POLL_EXCEEDED: the partitions are lost, and come back with the next poll; what was not committed is
        # handled again. INCONSISTENT_GROUP_PROTOCOL: a member of another assignor is there, as while a group changes
        # its assignor.
        "the group: the client joins again",
        "_MAX_POLL_EXCEEDED _ASSIGNMENT_LOST _WAIT_COORD COORDINATOR_LOAD_IN_PROGRESS COORDINATOR_NOT_AVAILABLE "
        "NOT_COORDINATOR ILLEGAL_GENERATION UNKNOWN_MEMBER_ID REBALANCE_IN_PROGRESS MEMBER_ID_REQUIRED "
        "FENCED_MEMBER_EPOCH STALE_MEMBER_EPOCH GROUP_MAX_SIZE_REACHED GROUP_ID_NOT_FOUND "
        "INCONSISTENT_GROUP_PROTOCOL _UNKNOWN_GROUP _EXISTING_SUBSCRIPTION NON_EMPTY_GROUP GROUP_SUBSCRIBED_TO_TOPIC",
    ),
    (
        Verdict.TELL,
        "offsets: asked for, or committed, again",
        "_NO_OFFSET OFFSET_OUT_OF_RANGE OFFSET_NOT_AVAILABLE OFFSET_METADATA_TOO_LARGE INVALID_COMMIT_OFFSET_SIZE "
        "UNSTABLE_OFFSET_COMMIT",
    ),
    (
        Verdict.TELL,
        "fetching: asked again, of whoever leads then",
        "LEADER_NOT_AVAILABLE NOT_LEADER_FOR_PARTITION BROKER_NOT_AVAILABLE REPLICA_NOT_AVAILABLE "
        "FENCED_LEADER_EPOCH UNKNOWN_LEADER_EPOCH FETCH_SESSION_ID_NOT_FOUND INVALID_FETCH_SESSION_EPOCH "
        "INCONSISTENT_TOPIC_ID KAFKA_STORAGE_ERROR UNKNOWN REQUEST_TIMED_OUT NETWORK_EXCEPTION "
        "THROTTLING_QUOTA_EXCEEDED INVALID_REQUEST UNSUPPORTED_VERSION LISTENER_NOT_FOUND REBOOTSTRAP_REQUIRED "
        "NOT_CONTROLLER STALE_CTRL_EPOCH STALE_BROKER_EPOCH PREFERRED_LEADER_NOT_AVAILABLE "
        "ELIGIBLE_LEADERS_NOT_AVAILABLE",
    ),
    (
        Verdict.TELL,
        "the connection",
        "_TRANSPORT _RESOLVE _ALL_BROKERS_DOWN _SSL _AUTHENTICATION _TIMED_OUT _TIMED_OUT_QUEUE _MSG_TIMED_OUT _FAIL "
        "_CRIT_SYS_RESOURCE _UNKNOWN_BROKER _NODE_UPDATE _WAIT_CACHE _DESTROY _DESTROY_BROKER _RETRY "
        "UNSUPPORTED_SASL_MECHANISM ILLEGAL_SASL_STATE SASL_AUTHENTICATION_FAILED CLUSTER_AUTHORIZATION_FAILED "
        "SECURITY_DISABLED",
    ),
    (
        Verdict.TELL,
        "calls that the client refused",
        "_QUEUE_FULL _INVALID_ARG _STATE _CONFLICT _FS _INTR _APPLICATION _NOT_CONFIGURED _UNSUPPORTED_FEATURE "
        "_UNKNOWN_PROTOCOL _IN_PROGRESS _PREV_IN_PROGRESS _OUTDATED _READ_ONLY _NOENT _INVALID_TYPE",
    ),
    # What follows can't come to a consumer. If it does nevertheless, it is told.
    (Verdict.TELL, "deserializers of the client, which are not used", "_KEY_DESERIALIZATION _VALUE_DESERIALIZATION"),
    (
        Verdict.TELL,
        "producers and transactions",
        "_KEY_SERIALIZATION _VALUE_SERIALIZATION _ISR_INSUFF _PURGE_QUEUE _PURGE_INFLIGHT _GAPLESS_GUARANTEE "
        "_INCONSISTENT _INVALID_DIFFERENT_RECORD RECORD_LIST_TOO_LARGE NOT_ENOUGH_REPLICAS "
        "NOT_ENOUGH_REPLICAS_AFTER_APPEND INVALID_REQUIRED_ACKS INVALID_TIMESTAMP POLICY_VIOLATION "
        "OUT_OF_ORDER_SEQUENCE_NUMBER DUPLICATE_SEQUENCE_NUMBER INVALID_PRODUCER_EPOCH UNKNOWN_PRODUCER_ID "
        "PRODUCER_FENCED INVALID_TXN_STATE INVALID_PRODUCER_ID_MAPPING INVALID_TRANSACTION_TIMEOUT "
        "CONCURRENT_TRANSACTIONS TRANSACTION_COORDINATOR_FENCED TRANSACTIONAL_ID_AUTHORIZATION_FAILED "
        "TRANSACTION_ABORTABLE",
    ),
    (
        Verdict.TELL,
        "share and streams groups",
        "INVALID_RECORD_STATE SHARE_SESSION_NOT_FOUND INVALID_SHARE_SESSION_EPOCH SHARE_SESSION_LIMIT_REACHED "
        "FENCED_STATE_EPOCH STREAMS_INVALID_TOPOLOGY STREAMS_INVALID_TOPOLOGY_EPOCH STREAMS_TOPOLOGY_FENCED",
    ),
    (
        Verdict.TELL,
        "administration, and brokers among themselves",
        "TOPIC_ALREADY_EXISTS INVALID_PARTITIONS INVALID_REPLICATION_FACTOR INVALID_REPLICA_ASSIGNMENT "
        "INVALID_CONFIG OPERATION_NOT_ATTEMPTED LOG_DIR_NOT_FOUND REASSIGNMENT_IN_PROGRESS "
        "NO_REASSIGNMENT_IN_PROGRESS DELEGATION_TOKEN_AUTH_DISABLED DELEGATION_TOKEN_NOT_FOUND "
        "DELEGATION_TOKEN_OWNER_MISMATCH DELEGATION_TOKEN_REQUEST_NOT_ALLOWED DELEGATION_TOKEN_AUTHORIZATION_FAILED "
        "DELEGATION_TOKEN_EXPIRED INVALID_PRINCIPAL_TYPE TOPIC_DELETION_DISABLED ELECTION_NOT_NEEDED "
        "RESOURCE_NOT_FOUND DUPLICATE_RESOURCE UNACCEPTABLE_CREDENTIAL INCONSISTENT_VOTER_SET INVALID_UPDATE_VERSION "
        "FEATURE_UPDATE_FAILED PRINCIPAL_DESERIALIZATION_FAILURE MISMATCHED_ENDPOINT_TYPE UNSUPPORTED_ENDPOINT_TYPE "
        "UNKNOWN_CONTROLLER_ID UNKNOWN_SUBSCRIPTION_ID TELEMETRY_TOO_LARGE INVALID_REGISTRATION INVALID_VOTER_KEY "
        "DUPLICATE_VOTER VOTER_NOT_FOUND",
    ),
)

_VERDICTS: dict[int, Verdict] = {
    getattr(KafkaError, name): verdict
    for verdict, _, names in TABLE
    for name in names.split()
    if hasattr(KafkaError, name)
}

_REMEDY = "mend what the error names (settings, group, brokers), then start again: what was not committed comes again."


def judge(error: KafkaError) -> Verdict:
    """A code that the table does not name (a newer client's) is told, and stops the consumer only if the client itself
    is at its end."""
    verdict = _VERDICTS.get(error.code(), Verdict.TELL)
    if is_final(error):
        return next((_VERDICTS[code] for code in _codes_within(error)), Verdict.STOP)
    return verdict


def is_final(error: KafkaError) -> bool:
    """Whether the client is at its end. As a message it is only the code that says so."""
    return bool(error.fatal() or error.code() == KafkaError._FATAL)


def _codes_within(error: KafkaError) -> Iterator[int]:
    """The cause of a fatal error that came as a message: it has the text of its cause, and not its code."""
    text = error.str()
    for code, verdict in _VERDICTS.items():
        if verdict in (Verdict.FENCED, Verdict.RIGHTS) and KafkaError(code).str() in text:
            yield code


def failure_of(error: KafkaError, verdict: Verdict, place: tuple[str | None, int | None, int | None]) -> SafeKafkaError:
    """What stops the consumer. `place`: the topic, partition and offset that the client told with it."""
    told = f"{error.str()} ({error.name()})"
    topic, partition, offset = place
    if verdict is Verdict.FENCED:
        return ConsumerFencedError(
            f"another member of the group uses the same group.instance.id: {told}. Nothing unhandled was committed. "
            "Remedy: give each process a group.instance.id of its own. With group.protocol=consumer a process that "
            "was killed keeps its place until its session times out: start again after that."
        )
    if verdict is Verdict.RIGHTS:
        what = "the group" if topic is None else f"topic {topic!r}"
        return ConsumerAuthorizationError(
            f"no right to read {what}: {told}. Nothing unhandled was committed. Remedy: grant READ on the topic and on "
            "the group to this user (kafka-acls --consumer), then start again."
        )
    if verdict is Verdict.UNREADABLE:
        return UnreadableRecordError(
            f"{topic}[{partition}]@{offset} can't be read: {told}. Nothing from there on was handled or committed. "
            "Remedy: start again, in case it was damaged on its way; if it stays, look at the disk of the partition's "
            "leader, and let a replica that is whole lead. To leave it out for good, set the group's offset behind it "
            "(kafka-consumer-groups --reset-offsets --to-offset).",
            topic,
            partition,
            offset,
        )
    return SafeKafkaError(f"the consumer can't go on: {told}. Nothing unhandled was committed. Remedy: {_REMEDY}")
