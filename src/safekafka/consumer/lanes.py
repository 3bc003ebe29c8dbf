"""Which message may be handled next. Pure: no client, no clock, no thread.

A lane is a line of messages that are handled one after the other: those of a partition, of a key, or one message alone,
by `order`. Messages without a key share a lane, so they keep the partition's order. A lane exists only while it holds
messages. It is ready, running (a worker has it), or waiting for a moment (a retry), and never two of these.

Fair: partitions take turns, and in each its lanes do.

`PartitionLanes` are those of one assignment. When the partition leaves, they are given up as a whole; a worker that
still has one of them gives it back to nobody. When the partition comes back meanwhile, its new lanes wait until that
worker is through: handlers of a partition never overlap within the process.

Lock: the owner's, around every call.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Collection, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from confluent_kafka import Message

    from safekafka.consumer.progress import PartitionProgress
    from safekafka.consumer.retry import Trial

Order: TypeAlias = Literal["partition", "key", "none"]
ORDERS: tuple[Order, ...] = ("partition", "key", "none")


class Lane:
    """Its head may have failed before: then `trial` is what was tried so far. A worker that goes through the lane does
    so without the lock, and leaves no head meanwhile: the poll thread only adds to the rest."""

    __slots__ = ("head", "key", "of", "rest", "trial")

    def __init__(self, of: PartitionLanes, key: Hashable, head: Message) -> None:
        self.of = of
        self.key = key
        self.head: Message | None = head
        self.rest: deque[Message] | None = None  # most keys come once in a while: a deque is ten times a lane
        self.trial: Trial | None = None

    def __len__(self) -> int:
        return (self.head is not None) + (len(self.rest) if self.rest else 0)

    def pop(self) -> Message:
        """The head."""
        head, rest = self.head, self.rest
        assert head is not None
        self.head = rest.popleft() if rest else None
        return head

    def append(self, message: Message) -> None:
        if self.rest is None:
            self.rest = deque((message,))
        else:
            self.rest.append(message)

    def extend(self, messages: Iterable[Message]) -> None:
        if self.rest is None:
            self.rest = deque(messages)
        else:
            self.rest.extend(messages)


class PartitionLanes:
    __slots__ = ("held", "lanes", "listed", "place", "progress", "ready", "running")

    def __init__(self, progress: PartitionProgress) -> None:
        self.progress = progress
        self.place = (progress.topic, progress.partition)
        self.lanes: dict[Hashable, Lane] = {}
        self.ready: deque[Lane] = deque()
        self.listed = False  # in line among the partitions
        self.running = 0  # lanes that workers have
        self.held = False  # the poll thread's: nothing of it is fetched, so that others have room


class Lanes:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._line: deque[PartitionLanes] = deque()  # partitions with ready lanes
        self._waiting: list[tuple[float, int, Lane]] = []  # a heap, by the moment
        self._numbers = itertools.count()
        self._late: Counter[tuple[str, int]] = Counter()  # lanes that workers have, of partitions that were given up
        self.ready = 0  # lanes in `_line`

    # ---- the poll thread

    def add(self, of: PartitionLanes, messages: Sequence[Message]) -> int:
        """New messages of one partition, in their order. Returns how many lanes became ready by that."""
        if not messages:
            return 0
        before = self.ready
        lanes = of.lanes
        if self._order == "partition":
            lane = lanes.get(None)
            if lane is not None:
                lane.extend(messages)
            else:
                lanes[None] = lane = Lane(of, None, messages[0])
                lane.extend(messages[1:])
                self._make_ready(lane)
        else:
            by_key, ready = self._order == "key", of.ready
            new = len(ready)
            try:
                for message in messages:
                    key: Any = message.key() if by_key else message.offset()
                    lane = lanes.get(key)
                    if lane is not None:
                        lane.append(message)
                    else:
                        lanes[key] = lane = Lane(of, key, message)
                        ready.append(lane)
            finally:  # counted together; a signal handler may raise before the last one
                self.ready += len(ready) - new
                if ready and not of.listed:
                    of.listed = True
                    self._line.append(of)
        return self.ready - before

    def give_up(self, partitions: Collection[PartitionLanes]) -> None:
        """Their waiting messages are not handled any more. What runs goes on."""
        for of in partitions:
            if of.progress.revoked:
                continue
            of.progress.revoked = True
            self.ready -= len(of.ready)
            of.ready.clear()
            of.lanes.clear()
            if of.running:
                self._late[of.place] += of.running
        self._waiting = [entry for entry in self._waiting if not entry[2].of.progress.revoked]
        heapq.heapify(self._waiting)
        self._line = deque(of for of in self._line if not of.progress.revoked)

    def are_free(self, partitions: Iterable[PartitionLanes]) -> bool:
        """Whether no message of these partitions is being handled."""
        return not any(of.running for of in partitions)

    # ---- workers

    def take(self, most: int) -> list[Lane]:
        """The next ready lanes, at most so many, all of one partition. They are the caller's until he gives each
        back."""
        line = self._line
        for _ in range(len(line)):
            of = line.popleft()
            if of.place in self._late:  # an earlier handler of this partition still runs
                line.append(of)
                continue
            ready = of.ready
            taken = [ready.popleft() for _ in range(min(most, len(ready)))]
            if ready:
                line.append(of)
            else:
                of.listed = False
            self.ready -= len(taken)
            of.running += len(taken)
            return taken
        return []

    def give_back(self, lane: Lane, until: float | None = None, *, untouched: bool = False) -> bool:
        """The worker is through with it, for now; it waits `until` a moment before its head is tried again. One that he
        has not come to is the first in line again. True if its partition is gone, so that somebody may wait for that.
        """
        if self.park(lane):
            return True
        of = lane.of
        if lane.head is None and lane.rest:  # which came after its worker had looked
            lane.head = lane.rest.popleft()
        if lane.head is None:
            del of.lanes[lane.key]
        elif until is not None:
            heapq.heappush(self._waiting, (until, next(self._numbers), lane))
        else:
            self._make_ready(lane, first=untouched)
        return False

    def give_back_all(self, lanes: Iterable[Lane]) -> bool:
        """Each as by `give_back`; true if the partition of one is gone."""
        gone = False
        for lane in lanes:
            of = lane.of
            if lane.head is None and not lane.rest and not of.progress.revoked:  # nearly all
                of.running -= 1
                del of.lanes[lane.key]
            elif self.give_back(lane):
                gone = True
        return gone

    def park(self, lane: Lane) -> bool:
        """Nobody works on it, and it stays the caller's, until he resumes it or gives it back. True as above."""
        of = lane.of
        of.running -= 1
        if of.progress.revoked:
            self._late[of.place] -= 1
            if not self._late[of.place]:
                del self._late[of.place]
            return True
        return False

    def resume(self, lane: Lane) -> bool:
        """False if its partition is gone."""
        if lane.of.progress.revoked:
            return False
        lane.of.running += 1
        return True

    def next_moment(self) -> float | None:
        """When the next waiting lane is ready."""
        return self._waiting[0][0] if self._waiting else None

    def wake(self, now: float) -> None:
        """Lanes whose moment has come are ready."""
        while self._waiting and self._waiting[0][0] <= now:
            self._make_ready(heapq.heappop(self._waiting)[2])

    def _make_ready(self, lane: Lane, *, first: bool = False) -> None:
        of = lane.of
        if first:
            of.ready.appendleft(lane)
        else:
            of.ready.append(lane)
        self.ready += 1
        if not of.listed:
            of.listed = True
            self._line.append(of)
