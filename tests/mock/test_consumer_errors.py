"""What the client tells a consumer besides messages: nothing is skipped by it, and nothing of it is silence."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from safekafka import ConsumerAuthorizationError, SafeConsumer, SafeKafkaError
from safekafka.consumer import topic_watch
from safekafka.testing import MockCluster
from safekafka.testing.mock import ApiKey
from tests.processes import wait_until

TOPIC, GROUP = "orders", "billing"
SHORT = {"session.timeout.ms": 6000}  # mock brokers let a member that follows on another wait for nearly as long


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


class _Interrupted:
    """The client, whose `consume()` raises at its third call, with the messages that it has taken."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def consume(self, *args: Any) -> list[Message]:
        found: list[Message] = self._client.consume(*args)
        self._calls += 1
        if self._calls == 3:
            raise KafkaException(KafkaError(KafkaError._TRANSPORT, "in mid-stream"))
        return found


def _interrupt(consumer: SafeConsumer) -> None:
    consumer._session.client = _Interrupted(consumer._session.client)  # type: ignore[assignment]


def test_B_C31_a_call_of_the_client_that_raises_ends_run_and_no_message_is_missed(cluster: MockCluster) -> None:
    fill(cluster, 100)
    small = {"fetch.message.max.bytes": 100, "queued.min.messages": 1, **SHORT}
    consumer, numbers = consumer_of(cluster, **small), []
    _interrupt(consumer)
    with pytest.raises(SafeKafkaError, match="in mid-stream"):
        consumer.run(lambda message: numbers.append(int(message.value() or b"")))
    assert len(numbers) < 100
    numbers += handle_until(consumer_of(cluster, **small), 100 - len(numbers))
    assert numbers == list(range(100))


def test_B_C31_a_call_of_the_client_that_raises_costs_a_loop_of_ones_own_no_message(cluster: MockCluster) -> None:
    fill(cluster, 100)
    numbers: list[int] = []
    raised = 0
    with consumer_of(cluster, **{"fetch.message.max.bytes": 100, "queued.min.messages": 1}) as consumer:
        _interrupt(consumer)
        end = time.monotonic() + 60
        while len(numbers) < 100 and time.monotonic() < end:
            try:
                messages = consumer.consume(7, 0.5)
            except SafeKafkaError:
                raised += 1
                continue
            for message in messages:
                numbers.append(int(message.value() or b""))
                consumer.done(message)
    assert raised == 1
    assert numbers == list(range(100))


DENIED = KafkaError.TOPIC_AUTHORIZATION_FAILED


@contextmanager
def running(consumer: SafeConsumer, numbers: list[int]) -> Iterator[None]:
    """On a thread of its own; nothing may end it."""
    failures: list[BaseException] = []

    def run() -> None:
        try:
            consumer.run(lambda message: numbers.append(int(message.value() or b"")))
        except BaseException as error:  # noqa: BLE001 - told by the assertion below
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_until(lambda: consumer.stats().assigned == 1, 30, "the assignment")
        yield
    finally:
        consumer.stop()
        thread.join(60)
    assert failures == []


@pytest.mark.parametrize("caught_up", [True, False], ids=["caught up", "has read"])
def test_B_C32_of_an_idle_topic_a_right_that_is_lost_for_a_moment_is_told_and_ends_nothing(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, caught_up: bool
) -> None:
    fill(cluster, 1)
    if caught_up:
        handle_until(consumer_of(cluster, **SHORT), 1)
    consumer, numbers = consumer_of(cluster, **SHORT), []
    with running(consumer, numbers):
        wait_until(lambda: TOPIC in consumer._session._read, 30, "an answer to a fetch")
        cluster.push_request_errors(ApiKey.Fetch, *[DENIED] * 3)
        wait_until(lambda: "authorization_regained" in caplog.text, 30, lambda: caplog.text)
        assert consumer.health().ok
        fill(cluster, 1)
        wait_until(lambda: len(numbers) == (1 if caught_up else 2), 30, lambda: caplog.text)
    assert caplog.text.count("authorization_lost") == 1


def test_B_C32_a_topic_that_may_not_be_seen_any_more_is_told_until_it_may(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client gives its partitions up, in silence."""
    monkeypatch.setattr(topic_watch, "AFTER_SECONDS", 2.0)
    fill(cluster, 1)
    consumer, numbers = consumer_of(cluster, **SHORT, **{"topic.metadata.refresh.interval.ms": 500}), []
    with running(consumer, numbers):
        wait_until(lambda: numbers == [0], 30, "the first message")
        cluster.set_topic_error(TOPIC, DENIED)
        wait_until(lambda: "authorization_lost" in caplog.text, 60, lambda: caplog.text)
        assert f"no right to read topic {TOPIC!r} any more" in consumer.health().problems
        cluster.set_topic_error(TOPIC, None)
        wait_until(lambda: "authorization_regained" in caplog.text, 60, lambda: caplog.text)
        wait_until(lambda: consumer.health().ok and consumer.stats().assigned == 1, 30, lambda: caplog.text)
        fill(cluster, 1)
        wait_until(lambda: numbers == [0, 0], 30, lambda: caplog.text)


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
