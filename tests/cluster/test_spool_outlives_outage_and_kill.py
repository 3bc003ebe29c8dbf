"""P5: with all brokers down the producer process is killed; after the restart everything it accepted arrives."""

from __future__ import annotations

from pathlib import Path

import pytest
from confluent_kafka import Producer

from safekafka import SafeProducer
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from tests.processes import accepted, in_doubt, program, wait_until

KEYS = 7


@pytest.mark.kills_brokers
@pytest.mark.timeout(300)
def test_P5_records_accepted_in_an_outage_survive_sigkill_and_arrive_in_order(
    kafka_cluster: KafkaCluster, topic: str, tmp_path: Path, scale: int
) -> None:
    servers, spool, ledger, log = (
        kafka_cluster.bootstrap_servers,
        tmp_path / "spool",
        tmp_path / "ledger",
        tmp_path / "log",
    )
    with program("send", servers, topic, spool, ledger, KEYS, log=log):
        wait_until(lambda: len(accepted(ledger)) > 500, 60, log.read_text)
        for broker in (1, 2, 3):
            kafka_cluster.kill(broker)
        before = len(accepted(ledger))
        wait_until(lambda: len(accepted(ledger)) > before + 1_000 * scale, 120, log.read_text)
    for _ in range(2):  # and killed again, with the brokers still down
        before = len(accepted(ledger))
        with program("send", servers, topic, spool, ledger, KEYS, log=log):
            wait_until(lambda: len(accepted(ledger)) > before + 200, 60, log.read_text)
    kafka_cluster.heal()
    with program("drain", servers, spool, 90, log=log) as process:
        assert process.wait(120) == 0, log.read_text()
    doubtful = in_doubt(ledger)
    messages = read_log(servers, topic, timeout=60)
    report = audit_log(
        (Entry(str(number % KEYS).encode(), number) for number in accepted(ledger)),
        (e for e in log_entries(messages, lambda message: int(message.value() or b"")) if e.id not in doubtful),
    )
    assert (report.lost, report.out_of_order, report.unexpected) == (0, 0, 0), report


@pytest.mark.timeout(180)
def test_P5_one_record_too_large_for_its_topic_is_rejected_alone_among_thousands(
    kafka_cluster: KafkaCluster, tmp_path: Path
) -> None:
    topic = "small-records-only"
    kafka_cluster.create_topic(topic, partitions=1, config={"max.message.bytes": "100000"})
    try:
        servers = kafka_cluster.bootstrap_servers
        with SafeProducer({"bootstrap.servers": servers, "linger.ms": 50}, spool=tmp_path / "spool") as producer:
            receipts = [
                producer.send(topic, str(number) + " " * (200_000 if number == 700 else 100)) for number in range(1_500)
            ]
            assert receipts[700].exception(60) is not None
            assert producer.flush(120) == 0
            (rejected,) = producer.rejected()
            assert (rejected.fields[1] or b"").startswith(b"700 ")
        log = [int(message.value() or b"") for message in read_log(servers, topic, timeout=60)]
        assert log == [number for number in range(1_500) if number != 700]
    finally:
        kafka_cluster.delete_topic(topic)


@pytest.mark.timeout(180)
def test_P5_a_topic_created_after_its_records_were_accepted_gets_them_all(
    kafka_cluster: KafkaCluster, tmp_path: Path
) -> None:
    topic, servers = "created-later", kafka_cluster.bootstrap_servers
    config = {"bootstrap.servers": servers, "topic.metadata.propagation.max.ms": 500}
    with SafeProducer(config, spool=tmp_path / "spool") as producer:
        for number in range(200):
            producer.send(topic, str(number), partition=0)
        assert producer.flush(5) == 200
        kafka_cluster.create_topic(topic, partitions=1)
        assert producer.flush(90) == 0
    try:
        log = [int(message.value() or b"") for message in read_log(servers, topic, timeout=60)]
        assert [n for i, n in enumerate(log) if n not in log[:i]] == list(range(200))
    finally:
        kafka_cluster.delete_topic(topic)


def test_the_producer_creates_no_topic_by_accident(kafka_cluster: KafkaCluster, tmp_path: Path) -> None:
    with SafeProducer({"bootstrap.servers": kafka_cluster.bootstrap_servers}, spool=tmp_path / "spool") as producer:
        producer.send("mistyped-topic", b"0")
        producer.flush(3)
        producer.close(0.1)
    admin = Producer({"bootstrap.servers": kafka_cluster.bootstrap_servers})
    assert "mistyped-topic" not in admin.list_topics(timeout=30).topics
