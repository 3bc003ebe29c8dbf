"""Records that wait on our side: accepted by `send()`, not with the client. Pure: no client, no clock, no thread.

They wait because the cluster is away, because a client is being replaced, because their topic refuses records, or for
the first record in their partition. Order
is that of `send()`: a record that came back from the client takes its old place, before everything sent after it. A
blocked topic waits in a queue of its own, so the other topics go on.

`Care` tells how many records may be with the client at once while one of them is suspected of spoiling its whole batch:
halves, until the record that is refused stands alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable
from typing import Generic, Protocol, TypeVar

from confluent_kafka import KafkaError

from safekafka.record import Fields

PAUSE_SECONDS = (0.1, 5.0)  # before a blocked topic is tried again: from, and doubling up to


class HasOrder(Protocol):
    """A receipt, as far as this module cares."""

    _fields: Fields | None
    _sent_at: float


R = TypeVar("R", bound=HasOrder)


class BlockedTopic:
    """Why a topic is blocked, and when to try it again. Times are the caller's clock, in seconds."""

    def __init__(self, error: KafkaError, now: float) -> None:
        self.error = error
        self.announced = False
        self._pause = PAUSE_SECONDS[0]
        self.not_before = now + self._pause

    def refused_again(self, error: KafkaError, now: float) -> None:
        self.error = error
        self._pause = min(self._pause * 2, PAUSE_SECONDS[1])
        self.not_before = now + self._pause


class Held(Generic[R]):
    """The records on our side. Not thread safe: the owner's lock is around every call."""

    def __init__(self) -> None:
        self.blocked: dict[str, BlockedTopic] = {}
        self.bytes = 0
        self._line: deque[R] = deque()
        self._lines: dict[str, deque[R]] = {}  # of blocked topics
        self._parked: dict[Hashable, deque[R]] = {}  # passed over, by what they wait for
        # Who is here: whether it was with a client before, so that it may be in Kafka. A record that left (`remove`)
        # may still stand in its line; it is passed over there.
        self._tried: dict[R, bool] = {}

    def __len__(self) -> int:
        return len(self._tried)

    def __contains__(self, receipt: object) -> bool:
        return receipt in self._tried

    def tried(self, receipt: R) -> bool:
        return self._tried[receipt]

    def add(self, receipt: R) -> None:
        """A new record, behind all others. Broken off by a signal handler that raises, it is here or not, entirely."""
        self._line_of(receipt).append(receipt)
        self._enter(receipt, tried=False)

    def put_back(self, receipts: Iterable[tuple[R, bool]]) -> None:
        """Records that the client had, each with whether it may be in Kafka by that."""
        changed: dict[int, deque[R]] = {}
        for receipt, tried in receipts:
            self._enter(receipt, tried)
            line = self._line_of(receipt)
            line.append(receipt)
            changed[id(line)] = line
        for line in changed.values():
            _sort(line)

    def remove(self, receipt: R) -> None:
        """The record goes: to a client, or it ended."""
        del self._tried[receipt]
        self.bytes -= size_of(receipt)
        line = self._line_of(receipt)
        while line and line[0] not in self._tried:
            line.popleft()

    def first(self, topic: str | None = None) -> R | None:
        """The oldest record of all topics that aren't blocked, or of one that is."""
        line = self._line if topic is None else self._lines[topic]
        while line and line[0] not in self._tried:
            line.popleft()
        return line[0] if line else None

    def park(self, receipt: R, place: Hashable) -> None:
        """The first record has to wait, and those behind it need not."""
        self._line.popleft()
        parked = self._parked.setdefault(place, deque())
        while parked and parked[0] not in self._tried:
            parked.popleft()
        parked.append(receipt)

    def unpark(self, places: Iterable[Hashable] | None = None) -> None:
        """Those that waited for these (None: for any) are back in line."""
        back = [self._parked.pop(place, ()) for place in (list(self._parked) if places is None else places)]
        if any(back):
            for parked in back:
                self._line.extend(receipt for receipt in parked if receipt in self._tried)
            _sort(self._line)

    def waiting(self) -> int:
        """Records of blocked topics; those that have just left may be among them."""
        return sum(map(len, self._lines.values()))

    def block(self, topic: str, error: KafkaError, now: float) -> None:
        if topic in self.blocked:
            self.blocked[topic].refused_again(error, now)
            return
        self.blocked[topic] = BlockedTopic(error, now)
        self.unpark()
        others: deque[R] = deque()
        own = self._lines[topic] = deque()
        for receipt in self._line:
            if receipt in self._tried:
                (own if topic_of(receipt) == topic else others).append(receipt)
        self._line = others

    def unblock(self, topic: str) -> None:
        del self.blocked[topic]
        self._line.extend(self._lines.pop(topic))
        _sort(self._line)

    def _enter(self, receipt: R, tried: bool) -> None:
        size = size_of(receipt)
        self._tried[receipt] = tried
        self.bytes += size

    def _line_of(self, receipt: R) -> deque[R]:
        return self._lines.get(topic_of(receipt), self._line)


def _sort(line: deque[R]) -> None:
    in_order = sorted(line, key=lambda receipt: receipt._sent_at)
    line.clear()
    line.extend(in_order)


def topic_of(receipt: HasOrder) -> str:
    assert receipt._fields is not None  # only a delivered record has let go of them
    return receipt._fields[0]


def size_of(receipt: HasOrder) -> int:
    assert receipt._fields is not None
    _, value, key, *_ = receipt._fields
    return len(value or b"") + len(key or b"")


class Care:
    """How many records may be with the client at once. Unlimited until a batch was refused."""

    def __init__(self) -> None:
        self.limit: int | None = None
        self.left = 0  # of the present portion
        self._until = 0.0  # the order (`_sent_at`) of the last suspect
        self._growing = False

    def batch_refused(self, suspects: int, last: float) -> None:
        """A batch with so many records was refused, the last of them sent at `last`."""
        self.limit = max(1, suspects // 2)
        self.left = 0
        self._until = max(self._until, last)
        self._growing = False

    def one_refused(self) -> None:
        """The culprit was found: those that follow may be innocent, so the portions grow again."""
        self._growing = True

    def next_portion(self, receipt: HasOrder | None) -> None:
        """All that was handed over is settled; `receipt` is the next one, None if there is none."""
        if self.limit is None:
            return
        if receipt is None or receipt._sent_at > self._until:
            self.limit = None
            return
        if self._growing:
            self.limit *= 2
        self.left = self.limit
