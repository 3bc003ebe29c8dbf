"""The headers of a dead letter: the original's, byte for byte, then ours. Pure.

Ours of an earlier pass are replaced, not added up, so a message that comes back again and again does not grow; of its
history a count and the first origin are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from safekafka.deadletter.about import About, class_of, stack_of, text_of
from safekafka.deadletter.dialects import PREFIX, Dialect, read, written
from safekafka.deadletter.marks import MARK, marks_of
from safekafka.message import headers_of
from safekafka.record import HeaderList

if TYPE_CHECKING:
    from confluent_kafka import Message

_TIMESTAMP_TYPES = {1: "CreateTime", 2: "LogAppendTime"}  # Message.timestamp()[0]; 0: none

# What is left out, step by step, where the topic takes no more. What remains at last is what a replay can't do without.
CUTS: tuple[frozenset[str], ...] = (
    frozenset(),
    frozenset({"traceback"}),
    frozenset({"traceback", "error_message", "error_cause"}),
    frozenset(
        {
            *("traceback", "error_message", "error_cause", "error_class"),
            *("attempts", "host", "failed_at", "timestamp_type"),
        }
    ),
)


def original_headers(message: Message, dialect: Dialect | None) -> HeaderList:
    """Without what we, or a dead letter's writer, have added."""
    added = (PREFIX, MARK) if dialect is None else (PREFIX, MARK, dialect.prefix)
    return [pair for pair in headers_of(message) if not pair[0].startswith(added)]


def about_failure(
    message: Message, error: BaseException, *, attempts: int, group: str, host: str, now_ms: int
) -> About:
    """What there is to tell about a message that could not be handled."""
    kind, timestamp = message.timestamp()
    passes, first = 1, None
    marked = marks_of(message)
    if marked is not None:
        passes, first = marked.replays + 1, marked.first
    elif (earlier := read(headers_of(message))) is not None:  # a dead letter that nobody could handle either
        passes, first = earlier.about.passes + 1, earlier.about.origin
    return About(
        message.topic() or "",
        message.partition() or 0,
        message.offset() or 0,
        timestamp if kind else None,
        _TIMESTAMP_TYPES.get(kind),
        group,
        passes,
        first,
        class_of(error),
        None if error.__cause__ is None else class_of(error.__cause__),
        text_of(error),
        stack_of(error),
        attempts,
        host,
        now_ms,
    )


def letter_headers(message: Message, about: About, dialect: Dialect, left_out: frozenset[str]) -> HeaderList:
    told = replace(about, **dict.fromkeys(left_out))  # type: ignore[arg-type]
    return [*original_headers(message, dialect), *written(told, dialect)]
