"""C3: consumers join and leave; running work is drained and committed, so nothing is lost and, without a crash, nothing
comes twice."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from safekafka import SafeConsumer
from safekafka.testing import KafkaCluster
from tests.cluster.protocols import PROTOCOLS
from tests.processes import wait_until


@PROTOCOLS
@pytest.mark.timeout(240)
def test_C3_partitions_that_move_in_order_lose_nothing_and_repeat_nothing(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    servers = kafka_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    for number in range(3_000):
        producer.produce(topic, str(number), partition=number % 3)
    assert producer.flush(60) == 0
    lock = threading.Lock()
    seen: list[tuple[int | None, int | None]] = []
    config = {"bootstrap.servers": servers, "group.id": f"{topic}-group", **protocol}
    consumers = [SafeConsumer(config, [topic], commit_interval=0.2) for _ in range(3)]

    def handle(message: Message) -> None:
        time.sleep(0.002)
        with lock:
            seen.append((message.partition(), message.offset()))

    threads = [threading.Thread(target=consumer.run, args=(handle,)) for consumer in consumers]

    def wait_for(count: int) -> None:
        end = time.monotonic() + 90
        while len(set(seen)) < count:
            assert time.monotonic() < end, f"stuck at {len(set(seen))} of {count}"
            time.sleep(0.02)

    try:
        threads[0].start()
        wait_for(300)
        threads[1].start()
        wait_for(900)
        threads[2].start()
        wait_for(1_500)
        consumers[0].close()
        wait_for(3_000)
    finally:
        for consumer in consumers:
            consumer.close()
        for thread in threads:
            thread.join(60)
    assert len(seen) == 3_000


@PROTOCOLS
@pytest.mark.timeout(180)
def test_C6_a_member_that_stops_leaves_its_partitions_to_the_others_at_once(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    """And not when its session has timed out: after 6 seconds here, after 45 with the classic protocol."""
    config = {"bootstrap.servers": kafka_cluster.bootstrap_servers, "group.id": f"{topic}-group", **protocol}
    one, two = SafeConsumer(config, [topic]), SafeConsumer(config, [topic])
    threads = [threading.Thread(target=consumer.run, args=(lambda _: None,)) for consumer in (one, two)]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: one.stats().assigned + two.stats().assigned == 3, 60, "the first assignment")
        wait_until(lambda: one.stats().assigned in (1, 2), 60, lambda: f"both: {one.stats()}, {two.stats()}")
        wait_until(lambda: one.stats().assigned + two.stats().assigned == 3, 60, "the rest")
        began = time.monotonic()
        one.close()
        wait_until(lambda: two.stats().assigned == 3, 60, lambda: f"{two.stats()}")
        assert time.monotonic() - began < 5
    finally:
        for consumer, thread in zip((one, two), threads, strict=True):
            consumer.close()
            thread.join(60)


@PROTOCOLS
@pytest.mark.timeout(240)
def test_B_C15_B_C16_a_loop_that_was_away_too_long_moves_no_offset_of_those_who_handled_its_messages(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The group has no member when it comes back, and takes a commit of anybody."""
    servers = kafka_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    for number in range(30):
        producer.produce(topic, str(number), partition=number % 3)
    assert producer.flush(60) == 0
    session = {} if "group.protocol" in protocol else {"session.timeout.ms": 3_000}
    for ends_by in ("poll", "close"):
        config = {"bootstrap.servers": servers, "group.id": f"{topic}-{ends_by}", **protocol}
        watcher = Consumer(config)

        def committed(watcher: Consumer = watcher) -> list[int]:
            found = watcher.committed([TopicPartition(topic, number) for number in range(3)], timeout=30)
            return [max(0, one.offset) for one in found]

        away = {**config, **session, "max.poll.interval.ms": 3_000}
        with SafeConsumer(away, [topic], commit_interval=60, drain_timeout=1.0) as consumer:
            messages: list[Message] = []
            wait_until(lambda: len(messages.__iadd__(consumer.consume(30, 0.2))) == 30, 60, "all messages")
            assert all(consumer.done(message) for message in messages if message.offset() == 0)
            other = SafeConsumer(config, [topic], commit_interval=0.2)
            thread = threading.Thread(target=other.run, args=(lambda _: None,))
            thread.start()
            wait_until(lambda: committed() == [10, 10, 10], 60, lambda: f"the other member's commit: {committed()}")
            other.close()
            thread.join(60)
            if ends_by == "poll":
                back = lambda: "partitions_lost" in caplog.text and len(consumer.assignment()) == 3  # noqa: E731
                wait_until(lambda: (consumer.poll(0.2), back())[1], 60, "the partitions to come back")
                assert not consumer.done(messages[-1])
                consumer.poll(1.0)
            assert committed() == [10, 10, 10]
        assert committed() == [10, 10, 10]
        watcher.close()
