"""Members with a `group.instance.id`: one that is restarted within its session is not missed by the group."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from confluent_kafka import Message, Producer, TopicPartition

from safekafka import SafeConsumer
from safekafka.testing import KafkaCluster
from tests.cluster.protocols import PROTOCOLS
from tests.processes import wait_until


class Member:
    """A static member on a thread of its own; what it handled, and how often its partitions moved."""

    def __init__(self, config: dict[str, Any], topic: str, name: str) -> None:
        self.consumer = SafeConsumer({**config, "group.instance.id": name}, [topic], commit_interval=0.2)
        self.handled: list[tuple[int | None, int | None]] = []
        self.moves: list[str] = []
        self.partitions: set[int] = set()
        self.consumer.subscribe([topic], on_assign=self._given, on_revoke=self._taken)
        self._thread = threading.Thread(target=self.consumer.run, args=(self._handle,))

    def _given(self, _: SafeConsumer, partitions: list[TopicPartition]) -> None:
        self.moves.append("given")
        self.partitions |= {one.partition for one in partitions}

    def _taken(self, _: SafeConsumer, partitions: list[TopicPartition]) -> None:
        self.moves.append("taken")
        self.partitions -= {one.partition for one in partitions}

    def _handle(self, message: Message) -> None:
        self.handled.append((message.partition(), message.offset()))

    @contextmanager
    def running(self) -> Iterator[Member]:
        self._thread.start()
        try:
            yield self
        finally:
            self.consumer.stop()
            self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.mark.timeout(120)
@PROTOCOLS
def test_C3_a_static_member_that_is_restarted_has_its_partitions_again_and_the_others_notice_nothing(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    servers = kafka_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})

    def fill() -> None:
        for number in range(30):
            producer.produce(topic, str(number), partition=number % 3)
        assert producer.flush(60) == 0

    config = {"bootstrap.servers": servers, "group.id": f"{topic}-group", **protocol}
    members = [Member(config, topic, name) for name in ("one", "two")]
    back = Member(config, topic, "two")

    def handled() -> int:
        return sum(len(member.handled) for member in (*members, back))

    fill()
    with ExitStack() as running:
        running.enter_context(members[0].running())
        with members[1].running():
            wait_until(lambda: [len(one.partitions) for one in members] in ([1, 2], [2, 1]), 40, "a part for each")
            wait_until(lambda: handled() == 30, 30, lambda: f"{handled()} of 30")
            its = set(members[1].partitions)
        before = list(members[0].moves)
        fill()
        wait_until(
            lambda: handled() == 30 + 10 * len(members[0].partitions), 30, lambda: f"those of the other: {handled()}"
        )
        time.sleep(1)  # in which the group would give its partitions to the other
        running.enter_context(back.running())
        wait_until(lambda: handled() == 60, 30, lambda: f"{handled()} of 60")
        assert back.partitions == its
        assert members[0].moves == before
    everything = [place for member in (*members, back) for place in member.handled]
    assert sorted(everything) == [(number, offset) for number in range(3) for offset in range(20)]
