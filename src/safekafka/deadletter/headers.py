"""What a dead letter says about where it comes from and why it is one. Pure.

The original's key, value and headers are kept byte for byte. Ours come behind them, under `safekafka.dlq.`; those of an
earlier pass through a dead letter topic are replaced, not added up, so a message that comes back again and again does
not grow.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from confluent_kafka import Message

PREFIX = "safekafka.dlq."
_MAX_MESSAGE = 1_000  # characters of the error's text
_MAX_TRACEBACK = 4_000  # characters, from its end: the innermost frames tell most


def dead_letter_headers(
    message: Message, error: BaseException, *, attempts: int, group: str, host: str, now_ms: int
) -> list[tuple[str, str | bytes | None]]:
    """The original's headers, then ours."""
    original: Sequence[tuple[str, str | bytes | None]] = message.headers() or ()  # type: ignore[assignment]
    stack = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    ours = {
        "topic": message.topic(),
        "partition": message.partition(),
        "offset": message.offset(),
        "timestamp": message.timestamp()[1],
        "error.class": f"{type(error).__module__}.{type(error).__qualname__}",
        "error.message": str(error)[:_MAX_MESSAGE],
        "error.traceback": stack[-_MAX_TRACEBACK:],
        "attempts": attempts,
        "group": group,
        "host": host,
        "failed_at": now_ms,
    }
    return [
        *(pair for pair in original if not pair[0].startswith(PREFIX)),
        *((PREFIX + name, str(value).encode()) for name, value in ours.items()),
    ]
