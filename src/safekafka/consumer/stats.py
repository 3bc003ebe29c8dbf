"""What a consumer tells of itself: numbers for a dashboard."""

from __future__ import annotations

from typing import NamedTuple


class Unfinished(NamedTuple):
    """The message that keeps its partition from being committed further, and for how many seconds it has done so."""

    topic: str
    partition: int
    offset: int
    seconds: float


class ConsumerStats(NamedTuple):
    """A snapshot, at most a second old. Messages since the start of the consumer, except where it says otherwise."""

    assigned: int = 0  # partitions, now
    in_flight: int = 0  # messages taken and not finished, now
    in_flight_bytes: int = 0
    lag: int | None = None  # messages in the assigned partitions that are not finished, now; None: not known yet
    oldest_unfinished: Unfinished | None = None
    finished: int = 0  # handled, or dead-lettered
    retries: int = 0
    dead_lettered: int = 0
    skipped: int = 0  # not handed to the handler: finished by an earlier owner, or replayed for another group
    commits: int = 0
    paused: bool = False  # for back-pressure, now
