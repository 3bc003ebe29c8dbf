"""The marks of a replayed record: for whom it is, and its history. Pure.

Applications copy headers from what they read to what they write. So a mark names the topic that the replay wrote to:
in any other topic it means nothing, or a consumer there would skip a record that it has never seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from safekafka.deadletter.about import First, decode_first
from safekafka.message import headers_of
from safekafka.record import HeaderList

if TYPE_CHECKING:
    from confluent_kafka import Message

MARK = "safekafka.replay."
_TO, _GROUP, _COUNT = MARK + "to", MARK + "group", MARK + "count"
_FROM, _FIRST = MARK + "from", MARK + "first"


class Marks(NamedTuple):
    replays: int
    """How often it has been replayed."""
    group: str | None
    """The consumer group that it is for; None: for all."""
    first: First | None


def marks(to: str, group: str | None, replays: int, letter: str, first: First) -> HeaderList:
    """The headers that a replay adds. `letter`: the dead letter's coordinates, for people."""
    named: HeaderList = [] if group is None else [(_GROUP, group.encode())]
    return [
        (_TO, to.encode()),
        *named,
        (_COUNT, str(replays).encode()),
        (_FROM, letter.encode()),
        (_FIRST, first.encode()),
    ]


def marks_of(message: Message) -> Marks | None:
    """None if the message was not replayed to the topic that it is in."""
    headers: list[tuple[str, bytes | None]] = headers_of(message)  # type: ignore[assignment]
    if not headers:
        return None
    found = {name: value for name, value in headers if name.startswith(MARK)}
    topic = message.topic()
    if not found or topic is None or found.get(_TO) != topic.encode():
        return None
    try:
        count = int(found.get(_COUNT) or b"")
        group = (found.get(_GROUP) or b"").decode() or None
    except ValueError:
        return None
    return Marks(count, group, decode_first(found.get(_FIRST)))


def is_for(message: Message, group: str) -> bool:
    """Whether a consumer of `group` has to handle the message. False only for one that was replayed to its topic for
    another group: this one has had the original."""
    marked = marks_of(message)
    return marked is None or marked.group is None or marked.group == group
