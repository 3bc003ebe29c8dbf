"""Events: the closed list of what the library logs, and the one way to log it.

An event goes through the application's structlog configuration if it has one, otherwise through the standard library's
logger
`safekafka`; nothing global is configured here. Fields carry names, numbers and coordinates, never keys, values or
secrets. Thread safe. A log sink that raises changes nothing: an event must not be able to end the thread that tells it.
"""

from __future__ import annotations

import enum
import logging
from typing import Any

import structlog

_logger = logging.getLogger("safekafka")


class Event(enum.Enum):
    """Name, level. The names are stable: alerts may be built on them."""

    # any client
    CLUSTER_UNREACHABLE = ("cluster_unreachable", logging.ERROR)
    CLUSTER_REACHABLE = ("cluster_reachable", logging.INFO)
    AUTHENTICATION_FAILED = ("authentication_failed", logging.ERROR)
    CLIENT_ERROR = ("client_error", logging.WARNING)
    CALLBACK_FAILED = ("callback_failed", logging.ERROR)
    THREAD_DIED = ("thread_died", logging.CRITICAL)
    # producer
    RECORD_UNDELIVERED = ("record_undelivered", logging.ERROR)
    UNDELIVERED_AT_EXIT = ("undelivered_at_exit", logging.CRITICAL)
    LATE_REPORT = ("late_report", logging.WARNING)
    PRODUCER_FATAL = ("producer_fatal", logging.CRITICAL)
    CLIENT_REBUILT = ("client_rebuilt", logging.WARNING)
    TOPIC_BLOCKED = ("topic_blocked", logging.ERROR)
    TOPIC_UNBLOCKED = ("topic_unblocked", logging.INFO)
    ENDED_BY_SIGNAL = ("ended_by_signal", logging.INFO)
    # spool
    SPOOL_RECOVERED = ("spool_recovered", logging.INFO)
    SPOOL_LEFT = ("spool_left", logging.WARNING)
    RECORD_REJECTED = ("record_rejected", logging.ERROR)
    SPOOL_SENDER_FAILING = ("spool_sender_failing", logging.ERROR)
    SPOOL_FULL = ("spool_full", logging.ERROR)
    SPOOL_OLD = ("spool_old", logging.WARNING)
    OLDER_THAN_RETENTION = ("older_than_retention", logging.ERROR)
    SPOOL_ON_UNSAFE_DISK = ("spool_on_unsafe_disk", logging.WARNING)
    SPOOL_RECORDS_LOST = ("spool_records_lost", logging.CRITICAL)
    SPOOL_MENDED = ("spool_mended", logging.ERROR)
    RECORD_DAMAGED = ("record_damaged", logging.CRITICAL)
    PARTITION_STUCK = ("partition_stuck", logging.WARNING)
    LANE_ADOPTED = ("lane_adopted", logging.INFO)
    LANE_FOREIGN = ("lane_foreign", logging.ERROR)
    LANE_UNUSABLE = ("lane_unusable", logging.ERROR)
    # consumer
    HANDLER_RETRY = ("handler_retry", logging.WARNING)
    HANDLER_STUCK = ("handler_stuck", logging.ERROR)
    PARTITION_HELD = ("partition_held", logging.ERROR)
    HANDLER_ABANDONED = ("handler_abandoned", logging.ERROR)
    DEAD_LETTERED = ("dead_lettered", logging.ERROR)
    DEAD_LETTER_DELAYED = ("dead_letter_delayed", logging.WARNING)
    DEAD_LETTER_CIRCUIT_OPEN = ("dead_letter_circuit_open", logging.ERROR)
    DEAD_LETTER_CIRCUIT_CLOSED = ("dead_letter_circuit_closed", logging.INFO)
    COMMIT_FAILED = ("commit_failed", logging.WARNING)
    RECORDS_EXPIRED = ("records_expired", logging.ERROR)
    POSITION_BEYOND_END = ("position_beyond_end", logging.ERROR)
    TOPIC_UNKNOWN = ("topic_unknown", logging.ERROR)
    AUTHORIZATION_LOST = ("authorization_lost", logging.ERROR)
    AUTHORIZATION_REGAINED = ("authorization_regained", logging.INFO)
    START_AWAITED = ("start_awaited", logging.WARNING)
    ASSIGNMENT_DOUBTFUL = ("assignment_doubtful", logging.WARNING)
    PARTITIONS_ASSIGNED = ("partitions_assigned", logging.INFO)
    PARTITIONS_REVOKED = ("partitions_revoked", logging.INFO)
    PARTITIONS_LOST = ("partitions_lost", logging.WARNING)
    CONSUMER_STOPPED = ("consumer_stopped", logging.INFO)
    CLOSE_TIMED_OUT = ("close_timed_out", logging.ERROR)


def emit(event: Event, **fields: Any) -> None:
    name, level = event.value
    try:
        if structlog.is_configured():
            structlog.get_logger("safekafka").log(level, name, **fields)
        else:
            _logger.log(level, "%s %s", name, " ".join(f"{key}={value!r}" for key, value in fields.items()))
    except Exception:  # noqa: BLE001 - see the module's docstring
        return
