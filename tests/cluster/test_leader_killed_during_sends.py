"""P1, P2, P3: the leader is killed during 50,000 sends; every receipt resolves, and what is delivered is in the log
once, in order."""

from __future__ import annotations

from typing import Any

import pytest

from safekafka import SafeProducer
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log

KEYS = 100


@pytest.mark.kills_brokers
@pytest.mark.timeout(300)
def test_P1_every_receipt_resolves_and_delivered_records_are_in_the_log_once_and_in_order(
    kafka_cluster: KafkaCluster, topic: str, scale: int
) -> None:
    count = 50_000 * scale
    receipts: list[Any] = []
    with SafeProducer({"bootstrap.servers": kafka_cluster.bootstrap_servers}) as producer:
        for number in range(count):
            receipts.append(producer.send(topic, str(number) + " " * 90, key=str(number % KEYS)))
            if number % (count // 2) == count // 4:  # twice, each time the leader of the moment
                kafka_cluster.heal()
                kafka_cluster.kill(kafka_cluster.leader_of(topic, 0))
        assert producer.flush(120) == 0
    assert all(receipt.done() for receipt in receipts)
    messages = read_log(kafka_cluster.bootstrap_servers, topic, timeout=60)
    at = {(message.partition(), message.offset()): int(message.value() or b"") for message in messages}
    delivered = []
    for number, receipt in enumerate(receipts):
        if receipt.status == "delivered":
            delivery = receipt.result(0)
            assert at[delivery.partition, delivery.offset] == number
            delivered.append(Entry(str(number % KEYS).encode(), number))
    report = audit_log(delivered, log_entries(messages, lambda message: int(message.value() or b"")))
    assert report.ok, report
    assert len(delivered) == count, {receipt.status for receipt in receipts}
