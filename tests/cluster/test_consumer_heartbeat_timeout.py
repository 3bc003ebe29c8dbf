"""C3, C4: a member of a KIP-848 group whose heartbeat timed out joins anew; that loses and repeats nothing."""

from __future__ import annotations

import threading

import pytest
from confluent_kafka import Message, Producer

from safekafka import SafeConsumer
from safekafka.consumer import assignment_watch
from safekafka.testing import KafkaCluster
from tests.crash.consumer_faults import coordinator_partition
from tests.processes import wait_until


@pytest.mark.kills_brokers
@pytest.mark.timeout(180)
def test_C3_a_member_whose_heartbeat_timed_out_joins_anew_and_loses_and_repeats_nothing(
    kafka_cluster: KafkaCluster, topic: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="safekafka")
    monkeypatch.setattr(assignment_watch, "QUIET_SECONDS", 5.0)
    servers, group = kafka_cluster.bootstrap_servers, f"{topic}-group"
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    config = {"bootstrap.servers": servers, "group.id": group, "group.protocol": "consumer"}
    consumer = SafeConsumer(config, [topic], commit_interval=0.2)
    handled: list[tuple[int, int]] = []

    def fill() -> None:
        for number in range(60):
            producer.produce(topic, str(number), partition=number % 3)
        assert producer.flush(60) == 0

    def handle(message: Message) -> None:
        handled.append((message.partition() or 0, message.offset() or 0))

    def count(event: str) -> int:
        return caplog.text.count(f" {event} ")

    fill()
    thread = threading.Thread(target=consumer.run, args=(handle,))
    thread.start()
    try:
        wait_until(lambda: len(handled) == 60, 60, lambda: str(len(handled)))
        coordinator = kafka_cluster.leader_of("__consumer_offsets", coordinator_partition(group))
        kafka_cluster.pause(coordinator)  # shorter than the session: the member stays one
        wait_until(lambda: consumer._session._watch.heartbeat_timed_out_at > 0, 10, "a heartbeat to time out")
        kafka_cluster.heal()
        wait_until(lambda: count("assignment_doubtful") == 1, 40, "the member to join anew")
        wait_until(lambda: count("partitions_assigned") == 2, 40, "its partitions")
        fill()
        wait_until(lambda: len(handled) >= 120, 60, lambda: str(len(handled)))
    finally:
        kafka_cluster.heal()
        consumer.stop()
        thread.join(60)
    assert len(set(handled)) == len(handled) == 120
    assert count("assignment_doubtful") == count("partitions_revoked") == 1
    assert "partitions_lost" not in caplog.text
