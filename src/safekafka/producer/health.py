"""What a producer tells of itself: numbers for a dashboard, and whether all is well."""

from __future__ import annotations

from typing import NamedTuple


class ProducerStats(NamedTuple):
    """A snapshot. Records since the start of the producer, except `pending`, `held` and `oldest_pending_seconds`."""

    pending: int = 0  # accepted, no outcome yet; with a spool also what earlier runs left
    held: int = 0  # of them: waiting on our side, not with the client
    delivered: int = 0
    failed: int = 0
    unknown: int = 0
    late: int = 0  # reports that came after the receipt had ended by delivery_timeout
    rebuilds: int = 0  # clients replaced after an error they could not go on from
    sent_again: int = 0  # records that may be in Kafka twice, since such an error left their fate open
    blocked_topics: tuple[str, ...] = ()
    oldest_pending_seconds: float | None = None  # None: nothing is pending
    bytes: int = 0  # of the spool: what the pending records take
    rejected: int = 0  # of the spool: records that Kafka can never take, in the lanes open here
    lanes: int = 0  # of the spool: its own, and those of dead processes that are drained beside it


class Health(NamedTuple):
    """`ok` is True when `problems` is empty. Each problem is a sentence for a person."""

    ok: bool
    problems: tuple[str, ...]
