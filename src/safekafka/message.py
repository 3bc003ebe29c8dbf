"""A message's headers, read in the one way that can't end the process.

Kafka's protocol takes any bytes as the name of a header, the client only UTF-8. At a name that is none its
`Message.headers()` raises SystemError; called once more it returns a list in which that name is a null pointer, and
whoever reads it crashes. So `headers_of` must be the first to ask, before the application's handler: it leaves the
message with headers that anybody may read.

Not thread safe for one message; a message has one owner at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from safekafka.record import HeaderList

if TYPE_CHECKING:
    from confluent_kafka import Message

UNREADABLE = "safekafka.unreadable-name"  # instead of a name that the client can't give us


def headers_of(message: Message) -> HeaderList:
    """Names that can't be read are `UNREADABLE`; their values are kept."""
    try:
        return message.headers() or []  # type: ignore[return-value]
    except SystemError:
        return _mend(message)


def _mend(message: Message) -> HeaderList:
    """Of a message whose headers raised."""
    broken: HeaderList = message.headers() or []  # type: ignore[assignment]
    # Of such a pair, index 1 may be touched and index 0 may not. repr() knows about null pointers.
    headers = [(UNREADABLE, pair[1]) if repr(pair).startswith("(<NULL>") else pair for pair in broken]
    message.set_headers(headers)
    return headers


def with_headers(messages: Iterable[Message]) -> list[Message]:
    """Those that have headers, which anybody may read afterwards; of all of them it is asked first."""
    found = []
    for message in messages:
        try:
            if message.headers():
                found.append(message)
        except SystemError:
            _mend(message)
            found.append(message)
    return found


def put_back(message: Message, value: Any, key: Any, headers: Any) -> None:
    """What it had before a handler got it, who may have changed it: its next attempt and its dead letter are of what
    came. `headers`: a copy."""
    message.set_value(value)
    message.set_key(key)
    if headers or message.headers():
        message.set_headers(list(headers or ()))
