"""A run of a group under faults: records come in at a pace, faults are made, everything is handled in the end, all
members are stopped, and what they wrote is judged."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from safekafka.testing.ledger import read_log
from tests.cluster.producer_faults import Background, Pace
from tests.crash.consumer_faults import Faults
from tests.crash.consumer_group import Group, new_folder
from tests.crash.consumer_judge import Judgement, Logged
from tests.processes import wait_until

PARTITIONS, KEYS, MEMBERS = 6, 211, 3
OPTIONS = {"order": "key", "concurrency": 8, "commit_interval": 0.5}


class Source:
    """Produces records, each with the next key, at a pace, on the thread that calls `run()`."""

    def __init__(self, servers: str, topic: str, rate: float) -> None:
        self._producer = Producer(
            {"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 20, "log_level": 0}
        )
        self._topic, self._rate = topic, rate
        self.sent = 0

    def run(self, records: int, faults: Background) -> None:
        """At least so many, and until the last fault is over."""
        pace = Pace(self._rate)
        while self.sent < records or faults.running():
            pace.wait(self.sent)
            self._producer.produce(self._topic, str(self.sent), f"k{self.sent * 7919 % KEYS}")
            self._producer.poll(0)
            self.sent += 1
        assert self._producer.flush(120) == 0


@dataclass
class Found:
    judgement: Judgement
    faults: Faults
    lag: int
    """Of the group, when all members have ended."""

    def row(self, what: str) -> str:
        """For the table of a report: what, faults, records, unhandled, out of order, overlapping, repeated."""
        found = self.judgement
        broken = (f"{len(found.problems[name])}" for name in ("unhandled", "out of order", "overlapping"))
        return f"| {what} | {self.faults} | {found.records:,} | {' | '.join(broken)} | {found.repeats()} |"

    def check(self) -> None:
        self.judgement.check()
        assert self.lag == 0, f"{self.lag} are not committed, although they were before the members stopped"


def soak(
    servers: str,
    topic: str,
    parent: Path,
    config: Mapping[str, Any],
    records: int,
    rate: float,
    faults_of: Callable[[Group, Source], Faults],
    *,
    maps: bool,
) -> Found:
    source = Source(servers, topic, rate)
    with Group(servers, topic, new_folder(parent), config, OPTIONS) as group:
        for _ in range(MEMBERS):
            group.start()
        wait_until(lambda: len(group.assigned()) == MEMBERS, 60, lambda: f"all members are assigned: {group.outputs()}")
        faults = faults_of(group, source)
        with Background(faults.make_all) as background:
            source.run(records, background)
        wait_until(lambda: group.handled() >= source.sent, 90, lambda: f"{group.handled()} handled: {group.outputs()}")
        with _offsets(servers, group.name, topic) as lag:
            wait_until(lambda: lag() == 0, 60, lambda: f"all is committed; {lag()} left: {group.outputs()}")
            for member in group.members[:]:
                group.stop(member)
            wait_until(lambda: not group.leaving, 60, "the last members end")
            left = lag()
        log = [
            Logged(one.partition() or 0, one.offset() or 0, (one.key() or b"").decode())
            for one in read_log(servers, topic, timeout=60)
        ]
        assert len(log) == source.sent
        return Found(group.judged(log, maps), faults, left)


@contextlib.contextmanager
def _offsets(servers: str, group: str, topic: str) -> Iterator[Callable[[], int]]:
    """Asks how many records the group has not committed."""
    client = Consumer({"bootstrap.servers": servers, "group.id": group, "log_level": 0})

    def lag() -> int:
        committed = client.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=30)
        return sum(client.get_watermark_offsets(one, timeout=30)[1] - max(0, one.offset) for one in committed)

    try:
        yield lag
    finally:
        client.close()
