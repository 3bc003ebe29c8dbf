"""What becomes of a message, or a batch, whose handler raised: another attempt later, the dead letter topic, or the end
of the consumer.

One code for sync and async handlers: it is written as coroutines, of which those of sync handlers never wait
(`steps.py`).

Threads: workers, any number at once.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

from safekafka.consumer.retry import Retry, Trial
from safekafka.errors import SafeKafkaError
from safekafka.observe import Event, emit

if TYPE_CHECKING:
    from confluent_kafka import Message


class DeadLetters(Protocol):
    """Where messages go that can't be handled; returns when Kafka has them."""

    def write(self, message: Message, error: BaseException, attempts: int) -> None: ...

    async def awrite(self, message: Message, error: BaseException, attempts: int) -> None: ...


class Undecodable(Exception):  # noqa: N818
    """The bytes are to blame: no further attempt. `error` is the decoder's."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Unusable(SafeKafkaError):  # noqa: N818
    """No message is to blame: a part that the program gave could handle none."""


class Later(NamedTuple):
    """The next attempt is at `moment` (monotonic)."""

    moment: float
    trial: Trial


class Exhausted(NamedTuple):
    error: Exception
    attempts: int
    trial: Trial


Decision: TypeAlias = "Later | Exhausted"


def decide(
    message: Message, error: BaseException, trial: Trial | None, retry: Retry, began: float, *, alone: bool = True
) -> Decision:
    """Raises the error if it ends the consumer: what is no `Exception`, and want of memory, is not the message's
    fault. `alone`: no others of its batch were handled with it, so it is the one that is held."""
    if not isinstance(error, Exception) or isinstance(error, (MemoryError, Unusable)):
        raise error
    at = monotonic()
    trial = trial or retry.begin(began)
    told = trial.overdue
    if isinstance(error, Undecodable):
        return Exhausted(error.error, trial.attempts + 1, trial)
    wait = trial.failed(error, at)
    if wait is not None:
        emit(
            Event.HANDLER_RETRY,
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
            attempt=trial.attempts,
            error=type(error).__qualname__,
        )
        return Later(at + wait, trial)
    if alone and trial.overdue and not told:
        emit(
            Event.PARTITION_HELD,
            topic=message.topic(),
            partition=message.partition(),
            offset=message.offset(),
            seconds=round(at - trial.since, 1),
            max_hold=retry.max_hold,
        )
    return Exhausted(error, max(1, trial.attempts), trial)
