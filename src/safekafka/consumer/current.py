"""What a handler can know of the message that it handles: `safekafka.current()`."""

from __future__ import annotations

import contextvars
from collections.abc import Sequence
from typing import TYPE_CHECKING

from safekafka.errors import SafeKafkaError

if TYPE_CHECKING:
    from confluent_kafka import Message

    from safekafka.consumer.progress import PartitionProgress


class Handling:
    """One worker's present message, or batch. The worker writes it; anybody may read."""

    __slots__ = ("_limit", "attempt", "message", "others", "progress")

    def __init__(self, limit: Limit) -> None:
        self._limit = limit
        self.message: Message | None = None  # the first, of a batch
        self.progress: PartitionProgress | None = None
        self.others: Sequence[PartitionProgress] = ()  # of a batch: the partitions of its messages
        self.attempt = 1

    @property
    def revoked(self) -> bool:
        """The partition was taken away, or the consumer stops: what is finished in time still counts."""
        revoked = self.progress is not None and self.progress.revoked
        return revoked or any(other.revoked for other in self.others)

    @property
    def deadline(self) -> float | None:
        """`time.monotonic()` by which the handler has to be through; None while nothing presses."""
        return self._limit.deadline if self.revoked else None


class Limit:
    """The end of the present drain; set by the poll thread."""

    deadline: float | None = None


_current: contextvars.ContextVar[Handling] = contextvars.ContextVar("safekafka_current")


def current() -> Handling:
    """The handling that the caller is in: `attempt` (1 is the first), `revoked`, `deadline`.

    Raises `SafeKafkaError` outside of a handler."""
    try:
        return _current.get()
    except LookupError:
        raise SafeKafkaError("safekafka.current() tells about the message in a handler, and this is none") from None


def enter(handling: Handling) -> None:
    """For this thread, or this task, from now on."""
    _current.set(handling)
