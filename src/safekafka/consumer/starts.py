"""Where a partition starts or goes on, from what is known of it. Pure: no client, no clock, no thread.

The client runs with `auto.offset.reset=error` and never chooses by itself. No rule here leads past a record that could
still be read, but one: the end of the log, where `latest` puts a group that has never committed anything in the topic.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import NamedTuple


class Fate(enum.Enum):
    """What became of the position."""

    STANDS = enum.auto()
    NEW = enum.auto()  # there was none
    EXPIRED = enum.auto()  # the records from it to the start of the log are gone
    BEYOND_END = enum.auto()  # the log is another one, or lost its end


class Start(NamedTuple):
    offset: int
    fate: Fate


def start_of(position: int | None, low: int, refused: bool) -> Start:
    """`position`: of the next record to read, None if there is none; `low`: the first offset in the log; `refused`: the
    leader said that the position is not in its log.

    Whether a position is beyond the end is the leader's to say: the end that can be asked for is lower than the log's,
    for a time after an election, and under `read_committed` while a transaction is open.
    """
    if position is None:
        return Start(low, Fate.NEW)
    if position < low:
        return Start(low, Fate.EXPIRED)
    # Not even if the log has grown past the position since: what lies before it then is not what was read.
    return Start(low, Fate.BEYOND_END) if refused else Start(position, Fate.STANDS)


class Choice(enum.Enum):
    """Of the start of a partition without a committed offset, in a group with `latest`."""

    BEGINNING = enum.auto()
    END = enum.auto()  # of all partitions of the topic, by us
    ANOTHER_MEMBER = enum.auto()  # chooses the end for us


def choice_of_latest(committed: Mapping[tuple[str, int], int | None], has_first: bool) -> Choice:
    """`committed`: of every partition of the topic, None where the group has no offset; `has_first`: partition 0 is
    assigned to us.

    One committed offset anywhere in the topic shows that the group has been here: a partition without one was added
    since, and starts at its beginning. With none, the group comes for the first time. Then one member, the one that has
    partition 0, commits the end of every partition in one request, and the others wait for it. Were each to commit its
    own, the second one would take the first one's offsets for those of a group that has been here.
    """
    if any(offset is not None for offset in committed.values()):
        return Choice.BEGINNING
    return Choice.END if has_first else Choice.ANOTHER_MEMBER
