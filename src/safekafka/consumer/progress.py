"""How far a partition may be committed: the frontier, and what is finished beyond it. Pure: no client, no clock.

The frontier is built from the offsets that were delivered, never from arithmetic on offsets: logs do not start at 0,
and compaction and transaction markers leave gaps. It is the lowest unfinished offset, or one past the highest delivered
when nothing is open.

One `PartitionProgress` stands for one assignment of one partition. When the partition leaves, the object is dropped, so
that a handler which finishes late marks an object that nothing is committed from any more: the object's identity is the
epoch.

Memory: only what is unfinished is remembered, which `max_in_flight` bounds, however much is finished beyond it.

Thread: the poll thread, but for `finished` and `revoked`. A worker appends a message to `finished` when its outcome is
settled (one atomic step); the poll thread takes it from there (`settle`).
"""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from confluent_kafka import Message

from safekafka.consumer.offset_map import MAX_CHARACTERS, OffsetMap, encode

_HOLD_BACK, _LET_GO = MAX_CHARACTERS * 3 // 4, MAX_CHARACTERS // 2
_CHARACTERS = 1.25 * 1.3 / 8  # of the map for each bit that it has to tell; 1.3: what its packing needs beyond that
FEW = 500  # unfinished ones, of which the map has room whatever they are
_STRETCHES = 1_000  # without a gap, that are known of a partition


class Position(NamedTuple):
    """What is committed: everything below `offset`; `metadata` tells what is finished beyond it."""

    offset: int
    metadata: str


class PartitionProgress:
    """Delivered, finished and committed offsets of one partition during one assignment.

    `topic_id`: without it, nothing is told of what is finished beyond the frontier. `before`: what an earlier owner had
    finished beyond its frontier, known before anything is tracked.
    """

    __slots__ = (
        "_committed",
        "_delivered",
        "_epochs",
        "_finished_to",
        "_first",
        "_open",
        "_unbroken_from",
        "before",
        "bytes",
        "finished",
        "held_back",
        "next_offset",
        "partition",
        "revoked",
        "skipped",
        "topic",
        "topic_id",
    )

    def __init__(
        self, topic: str, partition: int, *, topic_id: str | None = None, before: OffsetMap | None = None
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.topic_id = topic_id
        self.revoked = False  # its waiting messages are given up: whoever gets the partition next handles them
        self.finished: deque[Message] = deque()  # settled by workers, not yet seen by the poll thread
        self.next_offset: int | None = None  # behind the last message delivered
        self.bytes = 0  # of what is unfinished
        self.skipped = 0  # messages that an earlier owner had finished
        self.held_back = False  # the map of what is finished beyond the frontier is near its limit
        self.before = before
        self._open: dict[int, int] = {}  # unfinished: offset and size; ascending, since they come so
        self._finished_to: int | None = None  # behind the highest finished
        self._epochs: deque[tuple[int, int]] = deque()  # of the leaders that wrote what was delivered, each from where
        self._committed: Position | None = None
        self._first: int | None = None  # the first offset delivered
        self._unbroken_from = 0  # each offset from here to `next_offset` was delivered
        self._delivered: deque[tuple[int, int]] = deque(maxlen=_STRETCHES)  # so were these, before: from, to before

    def track(self, offset: int, size: int, epoch: int = -1) -> bool:
        """The message was delivered to us; `epoch` is its leader's, -1 if unknown. False: it is not to be handled, for
        an earlier owner has finished it, or the client hands it out a second time, which it does around
        rebalances. Offsets come in ascending order but for that."""
        if self.next_offset is not None and offset < self.next_offset:
            if offset >= self._unbroken_from or any(first <= offset < end for first, end in self._delivered):
                return False
            raise ValueError(
                f"{self.topic}[{self.partition}]: offset {offset} delivered after {self.next_offset - 1}; tracking it "
                "would move the frontier past messages that were not handled"
            )
        if offset != self.next_offset:
            self._begin_stretches([offset])
        if self._first is None:
            self._first = offset
        if not self._epochs or self._epochs[-1][1] != epoch:
            self._epochs.append((offset, epoch))
        before = self.before
        if before is not None:
            if offset >= before.end:
                self.before = None
            elif before.is_finished(offset, epoch):
                self.skipped += 1
                self._finished_to = self.next_offset = offset + 1
                return False
        self.bytes += size
        self._open[offset] = size
        self.next_offset = offset + 1  # last, see `track_run`
        return True

    def track_run(self, messages: Sequence[Message], *, epochs: bool) -> Sequence[Message]:
        """`track` for messages that were delivered one behind the other. Returns those that are to be handled.
        `epochs`: whether those of their leaders matter."""
        offsets: list[Any] = list(map(Message.offset, messages))
        leaders: list[Any] = list(map(Message.leader_epoch, messages)) if epochs else [None]
        ascending = all(map(operator.lt, [-1 if self.next_offset is None else self.next_offset - 1, *offsets], offsets))
        if self.before is not None or not ascending or leaders.count(leaders[0]) < len(leaders):
            return [
                message
                for message in messages
                if self.track(message.offset(), len(message), _epoch_of(message) if epochs else -1)  # type: ignore[arg-type]
            ]
        if offsets[0] != self.next_offset or offsets[-1] - offsets[0] >= len(offsets):
            self._begin_stretches(offsets)
        leader = _epoch_of(messages[0]) if epochs else -1
        if self._first is None:
            self._first = offsets[0]
        if not self._epochs or self._epochs[-1][1] != leader:
            self._epochs.append((offsets[0], leader))
        sizes = list(map(len, messages))
        # In this order: a signal handler may raise between any two steps, and what is committed at the end after it
        # must not be beyond these messages, which nobody will handle.
        self.bytes += sum(sizes)
        self._open.update(zip(offsets, sizes, strict=True))
        self.next_offset = offsets[-1] + 1
        return messages

    def _begin_stretches(self, offsets: Sequence[int]) -> None:
        """Some of these have a gap in front."""
        begin, end, ended = self._unbroken_from, self.next_offset, []
        for offset in offsets:
            if offset != end:
                if end is not None:
                    ended.append((begin, end))
                begin = offset
            end = offset + 1
        self._delivered.extend(ended)
        self._unbroken_from = begin

    def settle(self) -> int:
        """Take over what the workers have finished. Returns how many messages."""
        finished = self.finished
        count = len(finished)  # more may come meanwhile
        if count:
            taken = map(deque.popleft, itertools.repeat(finished, count))  # no step of the interpreter for each
            self._done(list(map(Message.offset, taken)))  # type: ignore[arg-type]
        return count

    def done(self, offset: int) -> None:
        """The message is finished: handled, or its dead letter is confirmed."""
        self._done((offset,))

    def _done(self, offsets: Sequence[int]) -> None:
        self.bytes -= sum(map(self._open.pop, offsets, itertools.repeat(0)))
        self._finished_to = max(self._finished_to or 0, max(offsets) + 1)

    @property
    def unfinished(self) -> int:
        return len(self._open)

    @property
    def frontier(self) -> int | None:
        """Everything below it is finished. None before anything was delivered."""
        return next(iter(self._open), self.next_offset)

    def to_commit(self) -> Position | None:
        """None when all that is finished is committed."""
        if self._finished_to is None:
            return None
        frontier = self.frontier
        assert frontier is not None
        position = Position(frontier, self._map(frontier))
        if self._committed is None and frontier == self._first and not position.metadata:
            return None  # nothing below it was ours
        return None if position == self._committed else position

    def committed(self, position: Position) -> None:
        """The broker accepted a commit of it."""
        if self._committed is None or position.offset >= self._committed.offset:
            self._committed = position

    def _map(self, frontier: int) -> str:
        """What is finished beyond the frontier; empty if that is nothing, or too much to be told."""
        text = ""
        map_ = None if self.topic_id is None else self._beyond(frontier)
        if map_ is not None:
            text = encode(map_)
        self.held_back = len(text) > (_LET_GO if self.held_back else _HOLD_BACK)
        return text if len(text) <= MAX_CHARACTERS else ""

    def may_outgrow(self, held: bool) -> bool:
        """Whether the map could become too large, should just the wrong ones of what is unfinished be finished. With
        hysteresis: `held`, the last answer."""
        unfinished, frontier = len(self._open), self.frontier
        if self.topic_id is None or unfinished < FEW or frontier is None or self.next_offset is None:
            return False
        span = self.next_offset - frontier
        chosen = min(unfinished, span // 2)
        bits = chosen * math.log2(math.e * span / chosen)  # no fewer than tell which so many of the span are
        return bits * _CHARACTERS > (_LET_GO if held else _HOLD_BACK)

    def _beyond(self, frontier: int) -> OffsetMap | None:
        before, epochs = self.before, self._epochs
        assert self._finished_to is not None
        assert self.next_offset is not None
        assert self.topic_id is not None
        while len(epochs) > 1 and epochs[1][0] <= frontier:
            epochs.popleft()
        end = self._finished_to
        open_ = [offset for offset in self._open if offset < end]
        told = [(max(first, frontier), epoch) for first, epoch in epochs if first < end]
        if before is not None and before.end > self.next_offset:  # of what is still to come
            coming, end = self.next_offset, before.end
            starts = [first for first, _ in before.epochs]
            open_ = [*self._open, *(offset for offset in before.open if offset >= coming)]
            told = [(max(first, frontier), epoch) for first, epoch in epochs]
            told += [
                (max(first, coming), epoch)
                for first, epoch in before.epochs[max(0, bisect_right(starts, coming) - 1) :]
            ]
        return OffsetMap(self.topic_id, frontier, end, open_, told) if end > frontier else None


def _epoch_of(message: Message) -> int:
    epoch = message.leader_epoch()
    return -1 if epoch is None else epoch
