"""C3, C6: a coordinator that stands still keeps nobody from ending, nor from handling, and lets nothing be skipped."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from safekafka import SafeConsumer
from safekafka.testing import KafkaCluster
from tests.cluster.protocols import PROTOCOLS
from tests.crash.consumer_faults import coordinator_partition
from tests.processes import wait_until


@pytest.mark.kills_brokers
@pytest.mark.timeout(180)
@PROTOCOLS
def test_B_C25_a_coordinator_that_stands_still_holds_up_neither_the_end_nor_the_handlers(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    servers, group = kafka_cluster.bootstrap_servers, f"{topic}-group"
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})

    def fill() -> None:
        for number in range(30):
            producer.produce(topic, str(number), partition=number % 3)
        assert producer.flush(60) == 0

    config = {"bootstrap.servers": servers, "group.id": group, **protocol}
    consumer = SafeConsumer(config, [topic], commit_interval=0.2, drain_timeout=2, shutdown_timeout=8)
    handled: set[tuple[int | None, int | None]] = set()

    def handle(message: Message) -> None:
        handled.add((message.partition(), message.offset()))

    thread = threading.Thread(target=consumer.run, args=(handle,))
    fill()
    thread.start()
    try:
        wait_until(lambda: len(handled) == 30, 60, lambda: str(len(handled)))
        coordinator = kafka_cluster.leader_of("__consumer_offsets", coordinator_partition(group))
        kafka_cluster.pause(coordinator)
        before = len(handled)
        produced = threading.Thread(target=fill)  # those that the paused broker leads have to wait
        produced.start()
        wait_until(lambda: len(handled) > before, 60, "nothing is handled any more")
        began = time.monotonic()
        consumer.stop()
        thread.join(30)
        took = time.monotonic() - began
        assert not thread.is_alive()
        assert took <= 8 + 5, f"the end took {took:.1f} s"
    finally:
        consumer.stop()
        kafka_cluster.heal()
    produced.join(60)
    with SafeConsumer(config, [topic], commit_interval=0.2) as rest:
        end = time.monotonic() + 60
        while len(handled) < 60 and time.monotonic() < end:
            message = rest.poll(1)
            if message is not None:
                handle(message)
                rest.done(message)
    assert len(handled) == 60


@pytest.mark.kills_brokers
@pytest.mark.timeout(180)
@PROTOCOLS
def test_B_C25_a_coordinator_that_stands_still_while_partitions_are_taken_away_costs_no_message(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    """The commit at the revocation has no answer, or comes late; then the partitions have another owner."""
    servers, group = kafka_cluster.bootstrap_servers, f"{topic}-group"
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    config = {"bootstrap.servers": servers, "group.id": group, **protocol}
    handled: list[tuple[int, int]] = []
    joining, drains, stands = (threading.Event() for _ in range(3))

    def handle(message: Message) -> None:
        if joining.is_set():
            assert stands.wait(60)
        handled.append((message.partition() or 0, message.offset() or 0))

    def fill() -> None:
        for number in range(300):
            producer.produce(topic, str(number), partition=number % 3)
        producer.poll(0)

    options: dict[str, Any] = {"commit_interval": 60, "drain_timeout": 20, "concurrency": 3}
    first, second = (SafeConsumer(config, [topic], **options) for _ in range(2))
    first.subscribe([topic], on_revoke=lambda *_: drains.set())
    threads = [threading.Thread(target=consumer.run, args=(handle,)) for consumer in (first, second)]
    fill()
    assert producer.flush(60) == 0
    threads[0].start()
    try:
        wait_until(lambda: len(handled) == 300, 60, lambda: str(len(handled)))
        joining.set()
        fill()
        threads[1].start()
        assert drains.wait(60), "no partition was taken away"
        coordinator = kafka_cluster.leader_of("__consumer_offsets", coordinator_partition(group))
        kafka_cluster.pause(coordinator)
        stands.set()
        wait_until(lambda: first.stats().assigned < 3, 15, lambda: f"the end of the revocation: {first.stats()}")
        kafka_cluster.resume(coordinator)
        assert producer.flush(60) == 0
        everything = {(number, offset) for number in range(3) for offset in range(200)}
        wait_until(lambda: set(handled) == everything, 60, lambda: f"{len(set(handled))} of 600")
    finally:
        kafka_cluster.heal()
        for consumer in (first, second):
            consumer.stop()
        for thread in threads:
            if thread.is_alive():
                thread.join(60)
    watcher = Consumer({"bootstrap.servers": servers, "group.id": group})
    committed = watcher.committed([TopicPartition(topic, number) for number in range(3)], timeout=30)
    watcher.close()
    assert [one.offset for one in committed] == [200, 200, 200]
