"""How far a partition may be committed: the frontier. Pure: no client, no clock, no thread.

The frontier is built from the offsets that were delivered, never from arithmetic on offsets: logs do not start at 0,
and compaction and transaction markers leave gaps. It is the lowest unfinished offset, or one past the highest finished
when nothing is open.

One `PartitionProgress` stands for one assignment of one partition. When the partition leaves, the object is dropped, so
that a handler which finishes late marks an object that nothing is committed from any more: the object's identity is the
epoch.
"""

from __future__ import annotations

from collections import deque


class PartitionProgress:
    """Delivered, finished and committed offsets of one partition during one assignment. Not thread safe: the caller has
    the lock."""

    __slots__ = ("_committed", "_finished", "_next", "_open", "partition", "revoked", "topic")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.revoked = False  # queued messages of it are given up: whoever gets the partition next handles them
        self._open: deque[int] = deque()  # delivered and not below the frontier, ascending
        self._finished: set[int] = set()  # of those
        self._next: int | None = None  # one past the highest offset below the frontier
        self._committed: int | None = None

    def track(self, offset: int) -> None:
        """The message was delivered to us. Offsets come in ascending order."""
        if self._open and offset <= self._open[-1]:
            raise ValueError(
                f"{self.topic}[{self.partition}]: offset {offset} delivered after {self._open[-1]}; tracking it "
                f"would move "
                "the frontier past messages that were not handled"
            )
        self._open.append(offset)

    def done(self, offset: int) -> None:
        """The message was handled, or its dead letter is confirmed."""
        self._finished.add(offset)
        while self._open and self._open[0] in self._finished:
            first = self._open.popleft()
            self._finished.discard(first)
            self._next = first + 1

    def to_commit(self) -> int | None:
        """The offset to commit: everything below it is finished. None when that is committed already."""
        frontier = self._open[0] if self._open and self._next is not None else self._next
        return None if frontier == self._committed else frontier

    def committed(self, offset: int) -> None:
        """The broker accepted a commit of `offset`."""
        if self._committed is None or offset > self._committed:
            self._committed = offset

    def unfinished(self) -> int:
        return len(self._open) - len(self._finished)
