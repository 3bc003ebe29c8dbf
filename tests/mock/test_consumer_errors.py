"""What the client tells a consumer besides messages: nothing is skipped by it, and nothing of it is silence."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from confluent_kafka import KafkaError, Message, Producer

from safekafka import ConsumerAuthorizationError, SafeConsumer
from safekafka.testing import MockCluster
from safekafka.testing.mock import ApiKey

TOPIC, GROUP = "orders", "billing"


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=1, replication_factor=3)
    return kafka_mock


def fill(cluster: MockCluster, count: int) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for number in range(count):
        producer.produce(TOPIC, str(number))
        if number % 10 == 9:
            assert producer.flush(30) == 0  # a batch; each is fetched by itself
    assert producer.flush(30) == 0


def consumer_of(cluster: MockCluster, **settings: Any) -> SafeConsumer:
    config = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, **settings}
    return SafeConsumer(config, [TOPIC], commit_interval=0.2, drain_timeout=2)


def handle_until(consumer: SafeConsumer, enough: int) -> list[int]:
    """Runs it until so many were handled; their numbers."""
    numbers: list[int] = []

    def handle(message: Message) -> None:
        numbers.append(int(message.value() or b""))
        if len(numbers) >= enough:
            consumer.stop()

    guard = threading.Timer(60, consumer.stop)
    guard.start()
    try:
        consumer.run(handle)
    finally:
        guard.cancel()
    return numbers


FETCHING = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN,
    KafkaError.KAFKA_STORAGE_ERROR,
    KafkaError._TRANSPORT,
    KafkaError.REPLICA_NOT_AVAILABLE,
    KafkaError.REQUEST_TIMED_OUT,
)


def test_B_C31_errors_in_mid_stream_skip_no_offset_and_change_no_order(cluster: MockCluster) -> None:
    fill(cluster, 300)
    consumer = consumer_of(cluster, **{"fetch.message.max.bytes": 100, "queued.min.messages": 1})
    numbers: list[int] = []

    def handle(message: Message) -> None:
        numbers.append(int(message.value() or b""))
        if len(numbers) % 60 == 30:
            cluster.push_request_errors(ApiKey.Fetch, *FETCHING)
        if len(numbers) == 300:
            consumer.stop()

    guard = threading.Timer(90, consumer.stop)
    guard.start()
    consumer.run(handle)
    guard.cancel()
    assert numbers == list(range(300))


def test_B_C32_without_the_right_to_be_in_the_group_it_stops_with_the_remedy(cluster: MockCluster) -> None:
    cluster.push_request_errors(ApiKey.FindCoordinator, *[KafkaError.GROUP_AUTHORIZATION_FAILED] * 5)
    with pytest.raises(ConsumerAuthorizationError, match=r"no right to read the group.*kafka-acls"):
        handle_until(consumer_of(cluster), 1)


@pytest.mark.timeout(120)
def test_B_C32_a_loop_that_is_too_slow_is_told_and_loses_nothing(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 5)
    config = {"session.timeout.ms": 6000, "max.poll.interval.ms": 6000}
    with consumer_of(cluster, **config) as consumer:
        first = consumer.poll(30)
        assert first is not None
        time.sleep(8)  # what is under test: longer than max.poll.interval.ms
        found: list[int] = []
        end = time.monotonic() + 60
        while len(found) < 5 and time.monotonic() < end:
            message = consumer.poll(1)
            if message is not None:
                found.append(int(message.value() or b""))
                consumer.done(message)
        assert not consumer.done(first), "its partition went away meanwhile"
    assert found == [0, 1, 2, 3, 4]
    assert "client_error error='_MAX_POLL_EXCEEDED'" in caplog.text
    assert "partitions_lost" in caplog.text
