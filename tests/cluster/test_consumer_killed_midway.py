"""C1: the consumer process is killed midway and started again; every record is handled at least once."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from safekafka.testing import KafkaCluster
from tests.processes import handled, program, wait_until


@pytest.mark.timeout(300)
def test_C1_a_killed_consumer_has_committed_nothing_unhandled_and_the_next_handles_the_rest(
    kafka_cluster: KafkaCluster, topic: str, tmp_path: Path, scale: int
) -> None:
    servers, ledger, log = kafka_cluster.bootstrap_servers, tmp_path / "ledger", tmp_path / "log"
    count = 3_000 * scale
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    for number in range(count):
        producer.produce(topic, str(number), str(number % 11))
    assert producer.flush(60) == 0
    group = f"{topic}-group"
    with program("handle", servers, topic, group, ledger, 0.001, log=log):
        wait_until(lambda: len(handled(ledger)) > count // 3, 90, log.read_text)
    seen = {(partition, offset) for partition, offset, _ in handled(ledger)}
    client = Consumer({"bootstrap.servers": servers, "group.id": group})
    for partition in client.committed([TopicPartition(topic, n) for n in range(3)], timeout=30):
        assert all((partition.partition, offset) in seen for offset in range(max(0, partition.offset)))
    client.close()
    with program("handle", servers, topic, group, ledger, 0, log=log):
        wait_until(lambda: len({number for *_, number in handled(ledger)}) == count, 120, log.read_text)
    firsts: dict[int, list[int]] = {}
    for partition, offset, _ in dict.fromkeys(handled(ledger)):
        firsts.setdefault(partition, []).append(offset)
    assert all(offsets == sorted(offsets) for offsets in firsts.values())  # first handlings are in order
