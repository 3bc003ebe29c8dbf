"""C1: the consumer process is killed again and again; every message is handled, and nothing unhandled was ever
committed."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from safekafka.testing import MockCluster
from tests.processes import handled, program, wait_until

TOPIC, GROUP, PARTITIONS = "orders", "billing", 3


def committed(servers: str) -> dict[int, int]:
    client = Consumer({"bootstrap.servers": servers, "group.id": GROUP})
    try:
        answer = client.committed([TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)], timeout=20)
        return {partition.partition: partition.offset for partition in answer}
    finally:
        client.close()


@pytest.mark.timeout(600)
def test_C1_every_message_is_handled_although_the_consumer_is_killed(
    kafka_mock: MockCluster, tmp_path: Path, scale: int
) -> None:
    chance = random.Random(scale)
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    servers, ledger, log = kafka_mock.bootstrap_servers, tmp_path / "ledger", tmp_path / "log"
    kills = 3 * scale
    count = 400 * (kills + 1)
    producer = Producer({"bootstrap.servers": servers})
    for number in range(count):
        producer.produce(TOPIC, str(number), str(number % 5), partition=number % PARTITIONS)
    assert producer.flush(30) == 0
    for _ in range(kills):
        before = len(handled(ledger))
        with program("handle", servers, TOPIC, GROUP, ledger, 0.002, log=log):
            wait_until(lambda: len(handled(ledger)) > before + 100, 90, log.read_text)
            time.sleep(chance.random() * 0.3)  # the moment of the kill, not a wait for something
        seen = {(partition, offset) for partition, offset, _ in handled(ledger)}
        for partition, offset in committed(servers).items():
            unhandled = [o for o in range(max(0, offset)) if (partition, o) not in seen]
            assert not unhandled, f"{TOPIC}[{partition}] is committed at {offset}, but {unhandled[:5]} were not handled"
    with program("handle", servers, TOPIC, GROUP, ledger, 0, log=log):
        wait_until(lambda: len({n for *_, n in handled(ledger)}) == count, 120, log.read_text)
    print(f"{kills} kills, {count} messages, handled {len(handled(ledger))} times")
