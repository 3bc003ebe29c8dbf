"""What a dead letter tells about its original: where it was, why it failed, and how often before. Pure."""

from __future__ import annotations

import json
import traceback
from dataclasses import dataclass
from typing import NamedTuple

from safekafka.record import topic_problem

_MAX_MESSAGE = 1_000  # characters of the error's text
_MAX_TRACEBACK = 4_000  # characters, from its end: the innermost frames tell most


class First(NamedTuple):
    """Where a message was when it failed for the first time. Times in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None = None
    failed_at: int | None = None

    def encode(self) -> bytes:
        return json.dumps(self._asdict()).encode()


def decode_first(data: bytes | None) -> First | None:
    """None where it is no such header: anybody may write one."""
    try:
        first = First(**json.loads(data or b""))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (first.partition, first.offset, first.timestamp, first.failed_at)
    well = not topic_problem(first.topic) and all(type(n) is int for n in numbers[:2])
    return first if well and all(n is None or type(n) is int for n in numbers) else None


@dataclass(frozen=True)
class About:
    """All that is known; what a dialect has no place for, or was cut, is None. Times in ms since the epoch."""

    topic: str
    partition: int
    offset: int
    timestamp: int | None = None
    timestamp_type: str | None = None
    group: str | None = None
    passes: int = 1
    """How often the message has become a dead letter, this time included."""
    first: First | None = None
    """Where it was the first time; None if this is the first."""
    error_class: str | None = None
    error_cause: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    attempts: int | None = None
    host: str | None = None
    failed_at: int | None = None

    @property
    def origin(self) -> First:
        return self.first or First(self.topic, self.partition, self.offset, self.timestamp, self.failed_at)


def class_of(error: BaseException) -> str:
    return f"{type(error).__module__}.{type(error).__qualname__}"


def text_of(error: BaseException) -> str:
    try:
        return str(error)[:_MAX_MESSAGE]
    except Exception as broken:  # noqa: BLE001 - the application's own `__str__`; the letter must be written
        return f"(its text could not be made: {class_of(broken)})"


def stack_of(error: BaseException) -> str:
    """Each line cut, then the whole from its end: a text of megabytes may not push the frames out."""
    try:
        lines = traceback.format_exception(type(error), error, error.__traceback__)
    except Exception as broken:  # noqa: BLE001 - as above: an exception may break whoever looks at it
        return f"(its traceback could not be made: {class_of(broken)})"
    return "".join(line if len(line) <= _MAX_MESSAGE else line[:_MAX_MESSAGE] + "\n" for line in lines)[
        -_MAX_TRACEBACK:
    ]
