"""P2: with two of three brokers dead nothing is reported delivered, since min.insync.replicas=2 really is in force;
then everything is."""

from __future__ import annotations

import pytest

from safekafka import SafeProducer
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import read_log

TOPIC = "below-min-isr"


@pytest.mark.kills_brokers
@pytest.mark.timeout(240)
def test_P2_nothing_is_delivered_until_the_isr_is_back_and_then_everything_is(
    kafka_cluster_dedicated: KafkaCluster,
) -> None:
    cluster = kafka_cluster_dedicated
    cluster.create_topic(TOPIC, partitions=1)
    leader = cluster.leader_of(TOPIC, 0)
    others = [broker for broker in (1, 2, 3) if broker != leader]
    with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}) as producer:
        producer.send(TOPIC, b"0").result(30)
        for broker in others:
            cluster.kill(broker)
        receipts = [producer.send(TOPIC, str(number)) for number in range(1, 200)]
        cluster.wait_isr(TOPIC, 0, size=1, timeout=60)
        receipts += [producer.send(TOPIC, str(number)) for number in range(200, 400)]
        assert producer.flush(8) == 399  # the leader lives and answers, but no record is on two machines
        assert {receipt.status for receipt in receipts} == {"pending"}
        for broker in others:
            cluster.start(broker)
        assert producer.flush(90) == 0
        assert {receipt.status for receipt in receipts} == {"delivered"}
    log = [int(message.value() or b"") for message in read_log(cluster.bootstrap_servers, TOPIC, timeout=60)]
    assert log == list(range(400))
