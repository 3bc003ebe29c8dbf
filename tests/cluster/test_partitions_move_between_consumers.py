"""C3: consumers join and leave; running work is drained and committed, so nothing is lost and, without a crash, nothing
comes twice."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import Message, Producer

from safekafka import SafeConsumer
from safekafka.testing import KafkaCluster


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "protocol",
    [
        {"partition.assignment.strategy": "range"},
        {"partition.assignment.strategy": "cooperative-sticky"},
        {"group.protocol": "consumer"},
    ],
    ids=["range", "cooperative-sticky", "kip-848"],
)
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
