"""Which partitions are stuck: they take nothing, for lack of a leader, say, while others may. Pure, but for the
question how many partitions a topic has.

A partition is stuck when its oldest record with the client has been there for `STUCK_SECONDS` and stays the same for
half of that. Younger records are not looked at, so it costs nothing while all flow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING, TypeAlias

from safekafka.observe import Event, emit
from safekafka.producer.partitioner import partition_of
from safekafka.record import Fields

if TYPE_CHECKING:
    from safekafka.spool.spooled import SpooledReceipt

Partition: TypeAlias = "tuple[str, int | None]"  # None: where no key decides

STUCK_SECONDS = 2.0
_LOOK_SECONDS = 0.25


class Stuck:
    def __init__(self, partitioner: str, count_partitions: Callable[[str], int], linger: float) -> None:
        self.groups: set[Partition] = set()
        self.records = self.bytes = 0  # with the client, for one of them
        self._partitioner = partitioner
        self._count_partitions = count_partitions
        self._linger = linger
        self._heads: dict[Partition, tuple[SpooledReceipt, float]] = {}  # the oldest, and since when
        self._partitions: dict[str, int] = {}  # of the topics with old records
        self._looked_at = 0.0

    def due(self, now: float) -> bool:
        return now - self._looked_at >= _LOOK_SECONDS

    def look(
        self,
        now: float,
        lines: Iterable[Iterable[SpooledReceipt]],
        except_topics: Container[str],
        crowd: tuple[int, int],
    ) -> None:
        """`lines`: records with the client, each in the order they were handed over. `crowd`: of records that chance
        gives a partition, more than so many, or bytes, are taken for stuck together."""
        self._looked_at = now
        too_long = STUCK_SECONDS + self._linger
        heads: dict[Partition, SpooledReceipt] = {}
        counts: Counter[Partition] = Counter()
        sizes: Counter[Partition] = Counter()
        answered = True
        for line in lines:
            for receipt in line:
                if now - receipt._sent_at <= too_long:
                    break
                topic, _, key, _, partition, _ = receipt.fields()
                if topic in except_topics:
                    continue
                if topic not in self._partitions and answered:
                    self._partitions[topic] = self._count_partitions(topic)
                    answered = self._partitions[topic] > 0  # else the others are asked for at the next looks
                group = topic, self._partition(topic, key, partition)
                heads.setdefault(group, receipt)
                counts[group] += 1
                sizes[group] += receipt._size
        before, self._heads = self._heads, {}
        stuck: set[Partition] = set()
        for group, receipt in heads.items():
            known, since = before.get(group, (None, now))
            self._heads[group] = receipt, since if known is receipt else now
            by_chance = group[1] is None and counts[group] <= crowd[0] and sizes[group] <= crowd[1]
            if now - self._heads[group][1] > too_long / 2 and not by_chance:
                stuck.add(group)
        for topic, number in stuck - self.groups:
            emit(Event.PARTITION_STUCK, topic=topic, partition=number, records=counts[topic, number])
        self.groups = stuck
        self.records = sum(counts[group] for group in stuck)
        self.bytes = sum(sizes[group] for group in stuck)
        if not heads:
            self._partitions.clear()  # their number may change

    def group_of(self, fields: Fields) -> Partition | None:
        """The stuck partition that the record would go to, if it would."""
        topic, _, key, _, partition, _ = fields
        if topic not in self._partitions:
            return None
        group = topic, self._partition(topic, key, partition)
        return group if group in self.groups else None

    def _partition(self, topic: str, key: bytes | None, partition: int) -> int | None:
        if partition >= 0:
            return partition
        count = self._partitions.get(topic)
        return partition_of(self._partitioner, key, count) if count else None
