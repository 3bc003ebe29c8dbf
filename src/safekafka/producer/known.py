"""Which partitions know the producer id of our client, so that several batches may be on their way there. Pure, but for
a choice by chance.

A broker takes any sequence number of a producer id that it does not know in a partition. So when the first batch of a
new client is refused (by a leader that has not heard of its election yet, say) and the second, close behind, is taken,
the first was overtaken. Worse, the client takes the first one for delivered then, since by the protocol the second
could not have been taken otherwise: it reports success, without an offset, for records that are not in Kafka. Seen on
real brokers (KIP-360 has the rule of the broker, `rd_kafka_dr_implicit_ack` the conclusion of the client).

So the first record of a client in each partition goes alone, and those behind it wait until it is acknowledged. From
then on all replicas know the producer id, and the broker refuses what comes out of order. It forgets an id that has
written nothing to the partition for `producer.id.expiration.ms` (a day); we forget sooner.

Until the partitions of a topic are known, the topic stands for them. Records without a key get a partition from us
until all know our id.

Threads: all under the lock `_handing_over` of `direct.py`, but for `topics`, `believes` and `reported`, which do one
atomic step at a time.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable
from typing import TypeAlias

from safekafka.producer.partitioner import partition_of
from safekafka.record import Fields

Place: TypeAlias = "tuple[str, int | None]"  # None: any of the topic's partitions

FORGET_SECONDS = 3600.0
_ASK_AGAIN_SECONDS = 30.0


class _All(set[str]):
    def __contains__(self, topic: object) -> bool:
        return True


class _Layout:
    """The partitions of a topic."""

    def __init__(self, partitions: Iterable[int], with_leader: Iterable[int], asked_at: float) -> None:
        self.partitions = list(partitions)
        self.with_leader = list(with_leader)
        self.asked_at = asked_at


class Known:
    """Of one client. `alone`: it has one request at a time on its way, so nothing can be overtaken."""

    def __init__(self, partitioner: str, now: float, *, alone: bool = False) -> None:
        self.since = now
        self.topics: set[str] = _All() if alone else set()  # all of their partitions know us
        self.first: dict[Place | None, bool] = {}  # a record is on its way there, alone
        self.reports: deque[tuple[Place, int | None]] = deque()  # on these; with the partition, if it was acknowledged
        self._partitioner = partitioner
        self._partitions: set[tuple[str, int]] = set()
        self._layouts: dict[str, _Layout] = {}

    # ---- any thread

    def believes(self, topic: str, partition: int | None) -> bool:
        """Whether an acknowledgement without an offset is one."""
        return isinstance(self.topics, _All) or (topic, partition) in self._partitions

    def reported(self, place: Place, partition: int | None) -> None:
        """The record that was alone was acknowledged in this partition; None: it was not."""
        if partition is not None:
            self._partitions.add((place[0], partition))
        self.reports.append((place, partition))

    # ---- under the lock

    def way(self, fields: Fields) -> tuple[int, Place | None]:
        """The partition to name to the client (-1: it knows itself), and the place that does not know us yet, where the
        record has to be the first, or to wait for the first. None: it may go."""
        topic, partition = fields[0], fields[4]
        if topic in self.topics or (topic, partition) in self._partitions:
            return partition, None
        layout = self._layouts.get(topic)
        if layout is None:
            return partition, (topic, None)
        goes_to = self._partition(fields, layout)
        if goes_to is None:
            partition = goes_to = self._choose(topic, layout)
            if goes_to < 0:
                return partition, (topic, None)
        if (topic, goes_to) in self._partitions or goes_to not in layout.partitions:  # the client will refuse that one
            return partition, None
        return partition, (topic, goes_to)

    def settle(self) -> list[Place]:
        """The places where nobody is alone any more, by the reports that came."""
        places = []
        while self.reports:
            place, partition = self.reports.popleft()
            self.first.pop(place, None)
            places.append(place)
            topic, expected = place
            if partition not in (None, expected) and expected is not None:
                self._layouts.pop(topic, None)  # it has other partitions by now
            self._complete(topic)
        return places

    def to_ask(self, topics: Iterable[str], now: float) -> list[str]:
        """Those of which the partitions are not known, or not all had a leader when we asked."""
        return [topic for topic in topics if topic not in self.topics and self._is_old(topic, now)]

    def learned(self, topic: str, partitions: Iterable[int], with_leader: Iterable[int], now: float) -> None:
        self._layouts[topic] = _Layout(partitions, with_leader, now)
        self._complete(topic)

    # ---- inside

    def _partition(self, fields: Fields, layout: _Layout) -> int | None:
        return fields[4] if fields[4] >= 0 else partition_of(self._partitioner, fields[2], len(layout.partitions))

    def _choose(self, topic: str, layout: _Layout) -> int:
        new = [p for p in layout.with_leader if (topic, p) not in self._partitions and (topic, p) not in self.first]
        known = [p for p in layout.with_leader if (topic, p) in self._partitions]
        return random.choice(new or known or layout.with_leader or [-1])

    def _complete(self, topic: str) -> None:
        layout = self._layouts.get(topic)
        if layout is not None and all((topic, partition) in self._partitions for partition in layout.partitions):
            self.topics.add(topic)

    def _is_old(self, topic: str, now: float) -> bool:
        layout = self._layouts.get(topic)
        if layout is None:
            return True
        return len(layout.with_leader) < len(layout.partitions) and now - layout.asked_at > _ASK_AGAIN_SECONDS
