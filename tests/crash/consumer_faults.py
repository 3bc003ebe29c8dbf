"""Faults of a group and of its brokers, mixed: a seed decides their order, which member or broker they hit, and when
they end. Faults of members overlap each other and those of brokers; of the brokers only one is away at a time.

Everything happens on the thread that calls `make_all()`.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from safekafka.testing import KafkaCluster
from tests.crash.consumer_group import Group, Member

OF_MEMBERS = ("consumer killed", "consumer stopped", "members changed", "consumer paused")
OF_BROKERS = ("coordinator killed", "leader killed", "broker paused")
_FEWEST, _MOST = 2, 4  # members
_OFFSETS_PARTITIONS = 3  # of __consumer_offsets, as the KafkaCluster has it
_HEAL = 90.0


class Faults:
    """`count` faults, the k-th begun when k/(count+1) of `records` are produced, as `produced()` tells.

    `session`: seconds after which the group gives up a member that stands still. `partitions`: of the topic.
    """

    def __init__(
        self,
        group: Group,
        seed: int,
        kinds: Sequence[str],
        count: int,
        records: int,
        produced: Callable[[], int],
        session: float,
        cluster: KafkaCluster | None = None,
        topic: str = "",
        partitions: int = 1,
    ) -> None:
        self._group, self._cluster, self._topic, self._partitions = group, cluster, topic, partitions
        self._records, self._produced, self._session = records, produced, session
        self._chance = random.Random(seed)
        self._kinds = [kinds[number % len(kinds)] for number in range(count)]
        self._chance.shuffle(self._kinds)
        self._later: list[tuple[float, int, Callable[[], object]]] = []
        self._numbers = itertools.count()
        self._broker_away = False
        self.done: Counter[str] = Counter()

    def __str__(self) -> str:
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(self.done.items()))
        return f"{self.done.total()} faults: {told}"

    def make_all(self) -> None:
        for number, kind in enumerate(self._kinds, 1):
            due = self._records * number // (len(self._kinds) + 1)
            self._wait(lambda: self._produced() >= due, f"{due} records are produced")
            if kind in OF_BROKERS:
                self._wait(lambda: not self._broker_away, "the last broker is back")
            self.done[self._make(kind)] += 1
        self._wait(lambda: not self._later, "all faults are over")
        self._wait(lambda: not self._group.leaving, "all stopped members have ended")

    def _make(self, kind: str) -> str:
        group, chance = self._group, self._chance
        if kind == "members changed":
            more = len(group.members) <= _FEWEST or (len(group.members) < _MOST and chance.random() < 0.5)
            if more:
                group.start()
                return "consumer added"
            group.stop(self._victim())
            return "consumer removed"
        if kind == "consumer paused":
            victim = self._victim()
            group.pause(victim)
            self._after(self._session + chance.uniform(0.5, 2), lambda: group.resume(victim))
        elif kind in ("consumer killed", "consumer stopped"):
            (group.kill if kind == "consumer killed" else group.stop)(self._victim())
            self._after(chance.uniform(0, 2), group.start)
        else:
            self._break_broker(kind)
        return kind

    def _victim(self) -> Member:
        """One that has something to lose."""
        self._wait(lambda: bool(self._group.assigned()), "a member has partitions")
        return self._chance.choice(self._group.assigned())

    def _break_broker(self, kind: str) -> None:
        cluster, chance = self._cluster, self._chance
        assert cluster is not None
        if kind == "coordinator killed":
            broker = cluster.leader_of("__consumer_offsets", coordinator_partition(self._group.name))
        else:
            broker = cluster.leader_of(self._topic, chance.randrange(self._partitions))
        if kind == "broker paused":
            cluster.pause(broker)
            away = chance.uniform(3, 8)
        else:
            cluster.kill(broker)
            away = chance.uniform(0, 3)
        self._broker_away = True
        self._after(away, self._heal)

    def _heal(self) -> None:
        assert self._cluster is not None
        self._cluster.heal(_HEAL)
        self._broker_away = False

    def _after(self, seconds: float, action: Callable[[], object]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), action))

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        """Meanwhile what is due is done, and members that ended by themselves are told."""
        end = time.monotonic() + 2 * _HEAL
        while not condition():
            assert time.monotonic() < end, f"not within {2 * _HEAL} s: {what}"
            while self._later and self._later[0][0] <= time.monotonic():
                heapq.heappop(self._later)[2]()
            self._group.check()
            time.sleep(0.02)


def coordinator_partition(group: str) -> int:
    """Which partition of __consumer_offsets, and so whose leader, keeps the group: Java's hash of its name."""
    value = 0
    for character in group:
        value = (31 * value + ord(character)) & 0xFFFFFFFF
    return (value & 0x7FFFFFFF) % _OFFSETS_PARTITIONS
