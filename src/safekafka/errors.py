"""The error tree. Everything the library raises on its own account is a `SafeKafkaError`.

Where a builtin fits, an error is that builtin as well (`ValueError`, `BufferError`), so code written for the raw client
keeps working. Each message names the value that is wrong and what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Message

    from safekafka.producer.receipt import Receipt
    from safekafka.record import Record

__all__ = [
    "BufferFullError",
    "ClosedError",
    "ConsumerAuthorizationError",
    "ConsumerFencedError",
    "DeadLetterFailed",
    "DeliveryFailed",
    "DeliveryUnknown",
    "HandlerFailed",
    "InvalidRecordError",
    "ProducerFatalError",
    "RecordsExpired",
    "SafeKafkaError",
    "SettingProblem",
    "SpoolCorruptError",
    "SpoolFullError",
    "SpoolLockedError",
    "SpoolUnusableError",
    "UndeliveredError",
    "UnreadableRecordError",
    "UnsafeConfigError",
]


class SafeKafkaError(Exception):
    """Base of every error of this library."""


@dataclass(frozen=True)
class SettingProblem:
    """One setting that was refused: `remedy` says what to write instead."""

    setting: str
    value: Any
    reason: str
    remedy: str

    def __str__(self) -> str:
        shown = "(not set)" if self.value is None else f"= {self.value!r}"
        return f"{self.setting} {shown}: {self.reason} Remedy: {self.remedy}"


class UnsafeConfigError(SafeKafkaError, ValueError):
    """Settings under which a message could be lost, or that the client does not know. `problems` holds all of them."""

    def __init__(self, problems: Sequence[SettingProblem]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  - {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} setting(s) refused:{lines}")


class InvalidRecordError(SafeKafkaError, ValueError):
    """A record that can't be sent as it is. Nothing was queued. `problems` holds every reason."""

    def __init__(self, topic: object, problems: Sequence[str]) -> None:
        self.topic = topic
        self.problems = tuple(problems)
        super().__init__(f"record for topic {topic!r} refused, nothing was queued: " + "; ".join(self.problems))


class BufferFullError(SafeKafkaError, BufferError):
    """No room for the record within `max_block` seconds. The record was not accepted; nothing was dropped.

    `receipts`: those of `send_many()` that were accepted before it, in order; the records behind them were not.
    """

    def __init__(self, message: str, receipts: Sequence[Receipt] = ()) -> None:
        super().__init__(message)
        self.receipts = tuple(receipts)


class DeliveryError(SafeKafkaError):
    """Common part of `DeliveryFailed` and `DeliveryUnknown`: the record, and why.

    `record` is what was sent; `error` the client's `KafkaError`, or None where the verdict is our own.
    """

    def __init__(self, message: str, record: Record, error: KafkaError | None = None) -> None:
        super().__init__(message)
        self.record = record
        self.error = error
        self._unobserved = 0  # kept by `producer.outcomes.Unobserved`: the generation that counts it; -1: observed


class DeliveryFailed(DeliveryError):  # noqa: N818 - fixed name of the public API
    """The record is definitely not in Kafka."""


class DeliveryUnknown(DeliveryError):  # noqa: N818
    """The record may or may not be in Kafka: an attempt was made, and no verdict came. Re-sending it may duplicate
    it."""


class UndeliveredError(SafeKafkaError):
    """Records were not delivered and nobody looked at their receipts.

    `failures` holds the first 1,000 `DeliveryFailed` / `DeliveryUnknown` (each with its record), `count` the number of
    all.
    """

    def __init__(self, failures: Sequence[DeliveryError], count: int) -> None:
        self.failures = tuple(failures)
        self.count = count
        shown = "; ".join(str(failure) for failure in self.failures[:3])
        more = f"; and {count - 3} more" if count > 3 else ""
        super().__init__(
            f"{count} record(s) were not delivered and nobody looked at their receipts: {shown.rstrip('.')}{more}. "
            "Handle them by hand: `.failures` holds each record with its cause, or set on_undelivered=."
        )


class ClosedError(SafeKafkaError, RuntimeError):
    """The producer or consumer is closed, or belongs to another process."""


class ProducerFatalError(SafeKafkaError):
    """The client hit an error it can't continue from; build a new SafeProducer. What was in flight has ended as
    `unknown`."""


class SpoolUnusableError(SafeKafkaError, OSError):
    """The spool's folder or file can't be used (not writable, not a folder, disk error)."""


class SpoolFullError(SafeKafkaError, BufferError):
    """The spool had no room within `max_block` seconds. The record was not accepted; nothing was dropped."""


class SpoolLockedError(SafeKafkaError):
    """A living process has the lane. Raised by the command line: a producer takes another lane instead."""


class SpoolCorruptError(SafeKafkaError):
    """What was read back from the spool is not what was written."""


class HandlerFailed(SafeKafkaError):  # noqa: N818
    """A message could not be handled and there is no dead letter topic. Nothing from this message on was committed.

    `topic`, `partition`, `offset` name the message; `attempts` how often it was tried; `__cause__` is the handler's
    exception.
    """

    def __init__(self, message: Message, attempts: int, cause: BaseException) -> None:
        self.topic = message.topic()
        self.partition = message.partition()
        self.offset = message.offset()
        self.attempts = attempts
        super().__init__(
            f"handler failed for {self.topic}[{self.partition}]@{self.offset} after {attempts} attempt(s): {cause!r}. "
            "Nothing from this message on was committed: it comes again at the next start. "
            "Remedy: mend the handler, or set dead_letter= to move such messages aside."
        )


class DeadLetterFailed(SafeKafkaError):  # noqa: N818
    """A message could not be handled, nor written to the dead letter topic. Its offset was not committed: it comes
    again."""


class RecordsExpired(SafeKafkaError):  # noqa: N818
    """Records were deleted by retention before the group came to them, and the consumer was to stop for that. Nothing
    past them was committed.

    `gaps`: (topic, partition, from_offset, to_offset) of each partition concerned; the records from the one offset to
    before the other are gone.
    """

    def __init__(self, gaps: Sequence[tuple[str, int, int, int]]) -> None:
        self.gaps = tuple(gaps)
        shown = ", ".join(f"{topic}[{partition}] {low} to {high - 1}" for topic, partition, low, high in self.gaps)
        super().__init__(
            f"records expired before they were handled: {shown}. Nothing past them was committed. "
            "Remedy: find out what they were; then start with on_records_expired='continue', or set the offsets of the "
            "group to the start of the log (kafka-consumer-groups --reset-offsets --to-earliest)."
        )


class ConsumerFencedError(SafeKafkaError):
    """Another member of the group uses the same `group.instance.id`. Nothing unhandled was committed."""


class ConsumerAuthorizationError(SafeKafkaError, PermissionError):
    """No right to read the topic, or to be in the group. Nothing unhandled was committed."""


class UnreadableRecordError(SafeKafkaError):
    """What is in the log at an offset can't be read: damaged, too large to fetch, or of an unknown format. Nothing from
    there on was handled or committed. `topic`, `partition`, `offset` are where, as far as the client told."""

    def __init__(self, message: str, topic: str | None, partition: int | None, offset: int | None) -> None:
        super().__init__(message)
        self.topic = topic
        self.partition = partition
        self.offset = offset
