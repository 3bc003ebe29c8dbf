"""SafeConsumer against mock brokers: nothing unhandled is ever committed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from safekafka import (
    ClosedError,
    DeadLetter,
    DeadLetterFailed,
    HandlerFailed,
    Reject,
    Retry,
    SafeConsumer,
    SafeKafkaError,
    current,
)
from safekafka.client import _Consumer
from safekafka.consumer.threads import ThreadPool
from safekafka.deadletter.headers import PREFIX
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.processes import wait_until

TOPIC, DEAD, GROUP = "orders", "orders.dlq", "billing"
QUICK = Retry(attempts=3, wait=tenacity.wait_none())


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=3, replication_factor=3)
    kafka_mock.create_topic(DEAD, partitions=1, replication_factor=3)
    return kafka_mock


def fill(
    cluster: MockCluster, count: int, partition: int | None = None, start: int = 0, value: bytes | None = None
) -> None:
    """Written by the raw client: what is under test is the consumer."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": "all", "enable.idempotence": True})
    for n in range(start, start + count):
        producer.produce(
            TOPIC,
            str(n) if value is None else value,
            str(n % 5),
            partition=n % 3 if partition is None else partition,
            headers=[("n", str(n).encode())],
        )
    assert producer.flush(30) == 0


def committed(cluster: MockCluster) -> dict[int, int]:
    """What the broker says, asked by a raw client."""
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    try:
        answer = client.committed([TopicPartition(TOPIC, partition) for partition in range(3)], timeout=10)
        return {partition.partition: max(0, partition.offset) for partition in answer}
    finally:
        client.close()


def consumer_of(cluster: MockCluster, config: dict[str, Any] | None = None, **options: Any) -> SafeConsumer:
    options.setdefault("retry", QUICK)
    return SafeConsumer(
        {
            "bootstrap.servers": cluster.bootstrap_servers,
            "group.id": GROUP,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 500,
            **(config or {}),
        },
        [TOPIC],
        **options,
    )


class Handled:
    """A handler that remembers, and stops the consumer when it has seen enough."""

    def __init__(self, enough: int, then: Callable[[Message], Any] | None = None) -> None:
        self.enough = enough
        self.then = then
        self.consumer: SafeConsumer | None = None
        self.seen: list[tuple[int, int]] = []

    def __call__(self, message: Message) -> None:
        if self.then is not None:
            self.then(message)
        self.seen.append((message.partition() or 0, message.offset() or 0))
        if len(self.seen) >= self.enough and self.consumer is not None:
            self.consumer.stop()


def run(consumer: SafeConsumer, handled: Handled) -> Handled:
    handled.consumer = consumer
    guard = threading.Timer(40, consumer.stop)  # a test that waits in vain fails by its assertions
    guard.start()
    try:
        consumer.run(handled)
    finally:
        guard.cancel()
    return handled


def test_C1_every_message_is_handled_in_partition_order_and_committed(cluster: MockCluster) -> None:
    fill(cluster, 300)
    handled = run(consumer_of(cluster), Handled(300))
    assert len(set(handled.seen)) == len(handled.seen) == 300
    for partition in range(3):
        offsets = [offset for p, offset in handled.seen if p == partition]
        assert offsets == sorted(offsets)
    assert committed(cluster) == {0: 100, 1: 100, 2: 100}


def test_C1_a_restart_goes_on_behind_what_was_committed(cluster: MockCluster) -> None:
    fill(cluster, 30)
    run(consumer_of(cluster), Handled(30))
    fill(cluster, 6, start=30)
    handled = run(consumer_of(cluster), Handled(6))
    assert sorted(handled.seen) == [(p, offset) for p in range(3) for offset in (10, 11)]


def test_C8_progress_is_committed_while_running_not_only_at_the_end(cluster: MockCluster) -> None:
    fill(cluster, 30)
    consumer = consumer_of(cluster, commit_interval=0.1)
    thread = threading.Thread(target=consumer.run, args=(lambda _: None,))
    thread.start()
    wait_until(lambda: committed(cluster) == {0: 10, 1: 10, 2: 10}, 30, "committed")
    assert committed(cluster) == {0: 10, 1: 10, 2: 10}
    consumer.close()
    thread.join(30)
    assert not thread.is_alive()


def test_C5_a_message_that_fails_goes_whole_to_the_dead_letter_topic_and_the_rest_is_handled(
    cluster: MockCluster,
) -> None:
    fill(cluster, 30, partition=1)
    attempts: list[int] = []

    def poison(message: Message) -> None:
        if message.value() == b"13":
            attempts.append(1)
            raise ValueError("poison")

    handled = run(consumer_of(cluster, dead_letter=DEAD), Handled(29, poison))
    assert len(handled.seen) == 29
    assert len(attempts) == 3
    (letter,) = read_log(cluster.bootstrap_servers, DEAD, timeout=30)
    headers = dict(letter.headers() or [])
    assert (letter.key(), letter.value(), headers["n"]) == (b"3", b"13", b"13")
    assert headers[PREFIX + "topic"] == TOPIC.encode()
    assert (headers[PREFIX + "partition"], headers[PREFIX + "offset"]) == (b"1", b"13")
    assert headers[PREFIX + "error.message"] == b"poison"
    assert b"in poison" in bytes(headers[PREFIX + "error.traceback"] or b"")
    assert committed(cluster)[1] == 30


def test_B_C05_the_last_message_of_a_partition_counts_as_finished_once_dead_lettered(cluster: MockCluster) -> None:
    fill(cluster, 1, partition=0)
    consumer = consumer_of(cluster, dead_letter=DEAD, commit_interval=0.1)

    def fail(_: Message) -> None:
        raise ValueError("always")

    thread = threading.Thread(target=consumer.run, args=(fail,))
    thread.start()
    wait_until(lambda: committed(cluster)[0] == 1, 30, "committed")
    consumer.close()
    thread.join(30)
    assert committed(cluster)[0] == 1


def test_B_C02_without_a_dead_letter_topic_a_failing_message_stops_the_consumer_uncommitted(
    cluster: MockCluster,
) -> None:
    fill(cluster, 10, partition=2)

    def poison(message: Message) -> None:
        if message.offset() == 4:
            raise ValueError("poison")

    with pytest.raises(HandlerFailed, match=r"orders\[2\]@4 after 3 attempt.*Remedy") as caught:
        run(consumer_of(cluster), Handled(99, poison))
    assert isinstance(caught.value.__cause__, ValueError)
    assert (caught.value.topic, caught.value.partition, caught.value.offset) == (TOPIC, 2, 4)
    assert committed(cluster)[2] == 4


def test_reject_goes_to_the_dead_letter_topic_without_a_second_attempt(cluster: MockCluster) -> None:
    fill(cluster, 2, partition=0)
    calls: list[int] = []

    def reject(message: Message) -> None:
        calls.append(1)
        if message.offset() == 0:
            raise Reject("no such customer")

    run(consumer_of(cluster, dead_letter=DEAD), Handled(1, reject))
    assert len(calls) == 2
    (letter,) = read_log(cluster.bootstrap_servers, DEAD, timeout=30)
    assert dict(letter.headers() or [])[PREFIX + "error.message"] == b"no such customer"


def test_B_D03_a_dead_letter_that_cannot_be_written_stops_the_consumer_and_commits_nothing(
    cluster: MockCluster,
) -> None:
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster, dead_letter=DeadLetter("no.such.topic", write_timeout=1.0))

    def fail(_: Message) -> None:
        raise ValueError("always")

    with pytest.raises(DeadLetterFailed, match=r"no\.such\.topic.*Remedy"):
        consumer.run(fail)
    assert committed(cluster)[0] == 0


def test_an_async_handler_is_awaited(cluster: MockCluster) -> None:
    fill(cluster, 5, partition=0)
    import asyncio

    seen: list[int] = []
    consumer = consumer_of(cluster)

    async def handle(message: Message) -> None:
        await asyncio.sleep(0.001)
        seen.append(message.offset() or 0)
        if len(seen) == 5:
            consumer.stop()

    consumer.run(handle)
    assert seen == [0, 1, 2, 3, 4]
    assert committed(cluster)[0] == 5


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, MemoryError])
def test_B_C30_what_ends_the_program_is_raised_by_run_and_its_message_is_not_committed(
    cluster: MockCluster, raised: type[BaseException]
) -> None:
    fill(cluster, 3, partition=0)

    def end(message: Message) -> None:
        if message.offset() == 1:
            raise raised

    with pytest.raises(raised):
        run(consumer_of(cluster, dead_letter=DEAD), Handled(99, end))
    assert read_log(cluster.bootstrap_servers, DEAD, timeout=30) == []
    assert committed(cluster)[0] == 1


def test_C3_messages_of_a_partition_that_moves_are_all_handled(cluster: MockCluster) -> None:
    # The mock refuses all commits while a group rebalances, so messages may come twice; on real brokers they do not.
    fill(cluster, 300)
    lock = threading.Lock()
    seen: list[tuple[int, int]] = []
    consumers = [consumer_of(cluster, commit_interval=0.1, drain_timeout=1.0) for _ in range(2)]

    def handle(message: Message) -> None:
        time.sleep(0.005)
        with lock:
            seen.append((message.partition() or 0, message.offset() or 0))
            if len(set(seen)) == 300:
                for consumer in consumers:
                    consumer.stop()

    threads = [threading.Thread(target=consumer.run, args=(handle,)) for consumer in consumers]
    threads[0].start()
    while len(seen) < 20:
        time.sleep(0.01)
    threads[1].start()
    for thread in threads:
        thread.join(60)
    assert len(set(seen)) == 300
    last = consumer_of(cluster, commit_interval=0.1)  # commits what the mock refused to take from the others
    thread = threading.Thread(target=last.run, args=(lambda _: None,))
    thread.start()
    wait_until(lambda: committed(cluster) == {0: 100, 1: 100, 2: 100}, 40, "all is committed")
    last.close()
    thread.join(30)


def test_C4_a_handler_longer_than_the_poll_interval_keeps_its_partitions(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 2, partition=0)
    config = {"session.timeout.ms": 1000, "heartbeat.interval.ms": 200, "max.poll.interval.ms": 1000}
    handled = run(consumer_of(cluster, config, drain_timeout=0.9), Handled(2, lambda _: time.sleep(3)))
    assert handled.seen == [(0, 0), (0, 1)]
    assert "partitions_lost" not in caplog.text
    assert "partitions_revoked" not in caplog.text


def test_C7_what_is_held_in_memory_is_bounded_whatever_the_handler_does(cluster: MockCluster) -> None:
    fill(cluster, 200)
    consumer = consumer_of(cluster, {"queued.min.messages": 1}, max_in_flight=20)
    most = 0

    def slow(_: Message) -> None:
        nonlocal most
        most = max(most, consumer.stats().in_flight)
        time.sleep(0.002)

    handled = run(consumer, Handled(200, slow))
    assert len(set(handled.seen)) == 200
    assert most <= 21


def test_C7_large_messages_are_bounded_by_their_bytes(cluster: MockCluster) -> None:
    fill(cluster, 60, partition=0, value=bytes(50_000))
    consumer = consumer_of(cluster, max_in_flight_bytes=200_000)
    most = 0

    def slow(_: Message) -> None:
        nonlocal most
        most = max(most, *(lanes.progress.bytes for lanes in consumer._session._partitions.values()))
        time.sleep(0.005)

    handled = run(consumer, Handled(60, slow))
    assert handled.seen == [(0, offset) for offset in range(60)]
    assert 100_000 <= most <= 250_000


@pytest.mark.timeout(180)
def test_B_C13_a_consumer_paused_for_back_pressure_goes_on_after_a_rebalance(cluster: MockCluster) -> None:
    fill(cluster, 300)
    config = {"partition.assignment.strategy": "range"}
    consumer = consumer_of(cluster, config, max_in_flight=20, drain_timeout=1.0)
    gate = threading.Event()
    seen: set[tuple[int | None, int | None]] = set()
    most = 0

    def handle(message: Message) -> None:
        nonlocal most
        most = max(most, consumer.stats().in_flight)
        gate.wait(1.5)  # longer than the consumer goes without polling before it pauses
        seen.add((message.partition(), message.offset()))

    thread = threading.Thread(target=consumer.run, args=(handle,))
    thread.start()
    wait_until(lambda: consumer.stats().paused, 30, "the pause")
    other = consumer_of(cluster, config)
    joined = threading.Thread(target=other.run, args=(handle,))
    joined.start()
    wait_until(lambda: bool(other._session._partitions), 60, "the other member's partitions")
    other.close()
    joined.join(30)
    gate.set()
    wait_until(lambda: len(seen) == 300, 60, "all messages")
    consumer.close()
    thread.join(30)
    assert most <= 21


def test_B_C30_a_worker_that_dies_stops_the_consumer(cluster: MockCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster, drain_timeout=1.0)

    def broken(*_: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(ThreadPool, "_take", broken)
    with pytest.raises(RuntimeError, match="injected"):
        consumer.run(lambda _: None)
    assert not consumer.health().ok


@pytest.mark.parametrize(
    "options",
    [
        {"commit_interval": float("nan")},
        {"commit_interval": 0},
        {"drain_timeout": -1},
        {"shutdown_timeout": "5"},
        {"max_in_flight": 0},
        {"max_in_flight_bytes": None},
        {"retry": 3},
        {"dead_letter": ""},
        {"dead_letter": "bad name!"},
    ],
)
def test_an_impossible_option_is_refused_by_name_or_value(options: dict[str, Any]) -> None:
    name, value = next(iter(options.items()))
    with pytest.raises(ValueError, match=re.escape(name if name != "dead_letter" else repr(value))):
        SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": GROUP}, [TOPIC], **options)


def test_C6_close_from_a_signal_handler_on_the_running_thread_does_not_wait_for_itself(cluster: MockCluster) -> None:
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster)
    closed: list[float] = []

    def stats(_: str) -> None:  # on the thread of run(), as a signal handler would be
        if not closed:
            began = time.monotonic()
            consumer.close()
            closed.append(time.monotonic() - began)

    consumer = consumer_of(cluster, {"statistics.interval.ms": 100, "stats_cb": stats})
    consumer.run(lambda _: None)
    assert closed[0] < 5


def test_C6_a_handler_that_never_returns_does_not_keep_run_from_ending(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 3, partition=0)
    consumer = consumer_of(cluster, drain_timeout=0.3, shutdown_timeout=6.0)
    never = threading.Event()
    threading.Timer(3, consumer.stop).start()
    began = time.monotonic()
    consumer.run(lambda _: never.wait(120))
    assert time.monotonic() - began < 3 + 6 + 5
    assert "handler_abandoned" in caplog.text
    assert committed(cluster)[0] == 0
    never.set()


def test_C6_waiting_for_a_retry_does_not_hold_up_the_stop(cluster: MockCluster) -> None:
    fill(cluster, 1, partition=0)
    consumer = consumer_of(cluster, retry=Retry(attempts=9, wait=tenacity.wait_fixed(600)), dead_letter=DEAD)

    def fail(_: Message) -> None:
        threading.Timer(0.2, consumer.stop).start()
        raise ValueError("later")

    began = time.monotonic()
    consumer.run(fail)
    assert time.monotonic() - began < 10  # drain_timeout is 15: what waits is not waited for
    assert committed(cluster)[0] == 0
    assert read_log(cluster.bootstrap_servers, DEAD, timeout=30) == []


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_C6_a_stop_during_a_revocation_counts_from_its_own_moment(cluster: MockCluster, strategy: str) -> None:
    fill(cluster, 6)
    options = {"concurrency": 3, "drain_timeout": 30, "shutdown_timeout": 4}
    consumer = consumer_of(cluster, {"partition.assignment.strategy": strategy}, **options)
    stuck, begun, revoked, never = set[int](), threading.Event(), threading.Event(), threading.Event()

    def handle(message: Message) -> None:
        stuck.add(message.partition() or 0)
        if len(stuck) == 3:
            begun.set()
        never.wait(120)

    consumer.subscribe([TOPIC], on_revoke=lambda *_: revoked.set())
    one = threading.Thread(target=consumer.run, args=(handle,))
    one.start()
    assert begun.wait(60)
    other = consumer_of(cluster, {"partition.assignment.strategy": strategy})
    two = threading.Thread(target=other.run, args=(lambda _: None,))
    two.start()
    assert revoked.wait(60)
    began = time.monotonic()
    consumer.stop()
    one.join(60)
    seconds = time.monotonic() - began
    never.set()
    other.close()
    two.join(60)
    assert seconds < 4 + 5


def test_C3_the_partitions_of_a_revocation_share_one_deadline(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 3)
    consumer = consumer_of(cluster, concurrency=3, drain_timeout=3, shutdown_timeout=4)
    begun, never = set[int](), threading.Event()

    def handle(message: Message) -> None:
        begun.add(message.partition() or 0)
        never.wait(120)

    times: list[float] = []
    consumer.subscribe([TOPIC], on_revoke=lambda *_: times.append(time.monotonic()))
    one = threading.Thread(target=consumer.run, args=(handle,))
    one.start()
    wait_until(lambda: len(begun) == 3, 60, "a handler in each partition")
    other = consumer_of(cluster)
    two = threading.Thread(target=other.run, args=(lambda _: None,))
    two.start()
    wait_until(lambda: "partitions_revoked" in caplog.text, 60, lambda: caplog.text)
    seconds = time.monotonic() - times[0]
    never.set()
    for member, thread in ((consumer, one), (other, two)):
        member.close()
        thread.join(60)
    assert caplog.text.count("handler_abandoned") == 1
    assert 3 <= seconds < 5


def test_C5_attempts_are_counted_anew_behind_a_dead_letter(cluster: MockCluster) -> None:
    fill(cluster, 4, partition=0)
    attempts: list[tuple[int, int]] = []

    def handle(message: Message) -> None:
        attempts.append((message.offset() or 0, current().attempt))
        if message.offset() in (0, 2):
            raise ValueError("bad")
        if message.offset() == 3:
            consumer.stop()

    consumer = consumer_of(cluster, dead_letter=DEAD)
    consumer.run(handle)
    assert attempts == [(0, 1), (0, 2), (0, 3), (1, 1), (2, 1), (2, 2), (2, 3), (3, 1)]


@pytest.mark.parametrize("way", ["sync", "async", "batch"])
def test_C5_each_attempt_and_the_dead_letter_get_the_message_as_it_came(cluster: MockCluster, way: str) -> None:
    """Whatever the handler made of it before it failed."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce(TOPIC, b'{"total": 7}', b"k", partition=0, headers=[("h", b"1")])
    assert producer.flush(30) == 0
    seen: list[Any] = []

    def handle(message: Message) -> None:
        seen.append((message.value(), message.key(), list(message.headers() or [])))
        message.set_value(json.loads(message.value() or b""))
        message.set_key("another")  # type: ignore[arg-type]
        headers = message.headers()
        assert isinstance(headers, list)
        headers.append(("more", b"2"))
        threading.Timer(0.5, consumer.stop).start()
        raise ConnectionError("the database is down")

    async def ahandle(message: Message) -> None:
        handle(message)

    consumer = consumer_of(cluster, dead_letter=DEAD)
    if way == "batch":
        consumer.run_batches(lambda messages: handle(messages[0]), max_records=10, max_wait=0.1)
    else:
        consumer.run(handle if way == "sync" else ahandle)
    original = (b'{"total": 7}', b"k", [("h", b"1")])
    assert seen == [original] * 3
    (letter,) = read_log(cluster.bootstrap_servers, DEAD, timeout=30)
    assert (letter.value(), letter.key()) == original[:2]
    assert [header for header in letter.headers() or [] if not header[0].startswith(PREFIX)] == original[2]


@pytest.mark.parametrize(
    "error",
    [KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.REBALANCE_IN_PROGRESS, KafkaError.ILLEGAL_GENERATION],
)
def test_B_C10_a_commit_that_fails_is_made_again_and_the_consumer_lives_on(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    fill(cluster, 10, partition=0)
    cluster.push_request_errors(ApiKey.OffsetCommit, *[error] * 2)
    consumer = consumer_of(cluster, commit_interval=0.2)
    thread = threading.Thread(target=consumer.run, args=(lambda _: None,))
    thread.start()
    wait_until(lambda: committed(cluster)[0] == 10, 40, "committed")
    assert committed(cluster)[0] == 10
    assert thread.is_alive()
    consumer.close()
    thread.join(30)
    if error != KafkaError.COORDINATOR_LOAD_IN_PROGRESS:  # which the client tries again by itself
        assert "commit_failed" in caplog.text


def test_brokers_that_cannot_be_reached_are_told_by_an_event_with_address_and_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    consumer = SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": GROUP}, [TOPIC])
    thread = threading.Thread(target=consumer.run, args=(lambda _: None,))
    thread.start()
    wait_until(lambda: "cluster_unreachable" in caplog.text, 30, "the event")
    assert "127.0.0.1:1" in caplog.text
    assert "check that the brokers run" in caplog.text
    began = time.monotonic()
    consumer.close()
    thread.join(30)
    assert not thread.is_alive()
    assert time.monotonic() - began < 20


def test_C8_brokers_that_are_gone_are_in_health_until_they_are_back_though_no_message_comes(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 3)
    consumer = consumer_of(cluster, {"reconnect.backoff.max.ms": 500})
    thread = threading.Thread(target=consumer.run, args=(lambda _: None,))
    thread.start()
    wait_until(lambda: consumer.stats().finished == 3, 30, lambda: f"all: {consumer.stats()}")
    assert consumer.health().ok
    cluster.set_broker_down()
    wait_until(lambda: not consumer.health().ok, 30, "the outage")
    assert cluster.bootstrap_servers in consumer.health().problems[0]
    cluster.set_broker_up()
    wait_until(lambda: consumer.health().ok, 30, lambda: f"{consumer.health()}")
    assert "cluster_reachable" in caplog.text
    consumer.close()
    thread.join(30)


def test_B_D06_a_dead_letter_topic_that_is_subscribed_is_refused() -> None:
    with pytest.raises(ValueError, match="also subscribed"):
        SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": GROUP}, [TOPIC], dead_letter=TOPIC)
    with pytest.raises(ValueError, match="also subscribed"):
        SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": GROUP}, ["^orders.*"], dead_letter=DEAD)


def test_topics_given_as_one_string_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"\['orders'\]"):
        SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": GROUP}, TOPIC)
    with SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": GROUP}, iter([TOPIC])) as consumer:  # type: ignore[arg-type]
        assert consumer._topics == [TOPIC], "used up by the check"


def test_a_consumer_runs_once(cluster: MockCluster) -> None:
    consumer = consumer_of(cluster)
    consumer.stop()
    consumer.run(lambda _: None)
    with pytest.raises(ClosedError, match="make a new one"):
        consumer.run(lambda _: None)
    consumer.close()


def test_a_consumer_that_never_ran_can_be_closed(cluster: MockCluster) -> None:
    with consumer_of(cluster, dead_letter=DEAD) as consumer:
        pass
    consumer.close()


@pytest.mark.parametrize("loop", ["run", "own"])
def test_C1_callbacks_of_the_program_that_raise_lose_nothing(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, loop: str
) -> None:
    """One that raises inside `consume()` would take along what is fetched by then."""
    count = 30_000
    fill(cluster, count)
    called: set[str] = set()

    def raises(name: str) -> Callable[..., None]:
        def call(*_: Any) -> None:
            called.add(name)
            raise RuntimeError(name)

        return call

    config = {
        **{name: raises(name) for name in ("stats_cb", "on_commit", "error_cb", "throttle_cb")},
        "statistics.interval.ms": 5,
    }
    consumer = consumer_of(cluster, config, commit_interval=0.05, retry=QUICK if loop == "run" else None)
    consumer.subscribe([TOPIC], on_assign=raises("on_assign"), on_revoke=raises("on_revoke"))
    handled = Handled(count)
    if loop == "run":
        run(consumer, handled)
    else:
        end = time.monotonic() + 40
        while len(handled.seen) < count and time.monotonic() < end:
            for message in consumer.consume(500, 0.5):
                handled(message)
                consumer.done(message)
        consumer.close()
    assert len(handled.seen) == len(set(handled.seen)) == count
    assert committed(cluster) == dict.fromkeys(range(3), count // 3)
    assert called >= {"stats_cb", "on_commit", "on_assign"}
    assert "callback_failed callback='stats_cb' error='RuntimeError'" in caplog.text


def test_a_commit_is_made_after_so_many_messages_too(cluster: MockCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safekafka.consumer.consumer._COMMIT_RECORDS", 20)
    fill(cluster, 30)
    consumer = consumer_of(cluster, commit_interval=999)
    thread = threading.Thread(target=consumer.run, args=(lambda _: None,))
    thread.start()
    wait_until(lambda: consumer.stats().finished == 30, 30, lambda: f"all: {consumer.stats()}")
    fill(cluster, 30)
    wait_until(lambda: sum(committed(cluster).values()) >= 20, 30, "a commit before the interval")
    consumer.close()
    thread.join(30)


@pytest.mark.parametrize("shutdown_timeout", [2.0, 5.0])
def test_C6_a_handler_gets_most_of_a_short_shutdown_timeout(
    cluster: MockCluster, shutdown_timeout: float, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 1, partition=0)
    consumer = consumer_of(cluster, shutdown_timeout=shutdown_timeout)
    stopped_at = 0.0

    def handle(_: Message) -> None:
        nonlocal stopped_at
        consumer.stop()
        stopped_at = time.monotonic()
        time.sleep(shutdown_timeout / 2)  # what is under test

    consumer.run(handle)
    assert time.monotonic() - stopped_at < shutdown_timeout + 1
    assert committed(cluster)[0] == 1
    assert "handler_abandoned" not in caplog.text


@pytest.mark.parametrize("static", [False, True])
def test_C6_the_group_is_left_at_once_and_a_static_member_keeps_its_place(cluster: MockCluster, static: bool) -> None:
    fill(cluster, 3)
    cluster.start_request_tracking()
    run(consumer_of(cluster, {"group.instance.id": "one"} if static else {}), Handled(3))
    assert len(cluster.requests(ApiKey.LeaveGroup)) == (0 if static else 1)
    assert committed(cluster) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("config", [{}, {"partition.assignment.strategy": "cooperative-sticky"}])
def test_C6_the_group_is_left_before_the_client_is_closed(
    cluster: MockCluster, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebalance answered inside the client's close() may wait for ever, with the interpreter's lock held."""
    fill(cluster, 3)
    had: list[list[TopicPartition]] = []

    def close(client: _Consumer) -> None:
        had.append(client.assignment())
        Consumer.close(client)

    monkeypatch.setattr(_Consumer, "close", close)
    run(consumer_of(cluster, config), Handled(3))
    assert had == [[]]
    assert committed(cluster) == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("static", [False, True])
def test_C6_a_last_commit_that_nobody_answers_does_not_keep_run_from_ending(
    cluster: MockCluster, static: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It hangs for session.timeout.ms, 45 s by default, and the client lets no other call in meanwhile."""
    fill(cluster, 3, partition=0)
    config = {"session.timeout.ms": 45_000, "heartbeat.interval.ms": 3_000}
    config |= {"group.instance.id": "one"} if static else {}
    consumer = consumer_of(cluster, config, commit_interval=999, shutdown_timeout=4.0)
    stopped_at = 0.0

    def gone(message: Message) -> None:
        nonlocal stopped_at
        if message.offset() == 2:
            cluster.set_broker_down()
            stopped_at = time.monotonic()

    run(consumer, Handled(3, gone))
    assert time.monotonic() - stopped_at < 4 + 5
    assert "close_timed_out" in caplog.text


def test_errors_that_no_waiting_mends_stop_the_consumer(cluster: MockCluster) -> None:
    cluster.push_request_errors(ApiKey.FindCoordinator, *[KafkaError.GROUP_AUTHORIZATION_FAILED] * 5)
    with pytest.raises(SafeKafkaError, match=r"GROUP_AUTHORIZATION_FAILED.*Remedy"):
        run(consumer_of(cluster), Handled(1))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_B_C26_a_signal_stops_the_consumer_with_what_was_finished_committed(
    cluster: MockCluster, number: signal.Signals
) -> None:
    fill(cluster, 5, partition=0)
    program = textwrap.dedent(f"""
        import time
        from safekafka import SafeConsumer
        consumer = SafeConsumer(
            {{"bootstrap.servers": {cluster.bootstrap_servers!r}, "group.id": {GROUP!r}}},
            [{TOPIC!r}],
            commit_interval=999,
        )
        def handle(message):
            if message.offset() == 2:
                print("at 2", flush=True)
                time.sleep(1)
        consumer.run(handle)
        print("ended", flush=True)
    """)
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at 2\n"
        os.kill(process.pid, number)
        rest, _ = process.communicate(timeout=60)
    assert (rest, process.returncode) == ("ended\n", 0)
    assert committed(cluster)[0] == 3  # the running one was waited for; the queued ones were given up


NEVER = {
    "sync": "def handle(m): print('begun', flush=True); threading.Event().wait()",
    "async": "async def handle(m): print('begun', flush=True); await asyncio.sleep(3600)",
    "async, deaf": """
        async def handle(m):
            print('begun', flush=True)
            while True:
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(3600)
        """,
    "async, blocking": "async def handle(m): print('begun', flush=True); threading.Event().wait()",
}
WAYS = {
    "run": "consumer.run(handle)",
    "run_batches": "consumer.run_batches(handle, max_wait=0.1)",
    "arun": """
        async def main():
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, consumer.stop)
            await consumer.arun(handle)
        asyncio.run(main())
        """,
}


@pytest.mark.parametrize(
    ("way", "kind", "brokers"),
    [
        *(("run", kind, "there") for kind in NEVER),
        ("run_batches", "sync", "there"),
        ("arun", "sync", "there"),
        ("arun", "async", "there"),
        ("run", "sync", "gone"),
    ],
)
def test_C6_a_process_ends_in_time_although_a_handler_never_returns(
    cluster: MockCluster, way: str, kind: str, brokers: str
) -> None:
    fill(cluster, 3, partition=0)
    program = "\n".join(
        [
            "import asyncio, contextlib, signal, threading",
            "from safekafka import SafeConsumer",
            f"config = {{'bootstrap.servers': {cluster.bootstrap_servers!r}, 'group.id': {GROUP!r}}}",
            f"consumer = SafeConsumer(config, [{TOPIC!r}], drain_timeout=0.5, shutdown_timeout=6)",
            textwrap.dedent(NEVER[kind]),
            textwrap.dedent(WAYS[way]),
            "print('ended', flush=True)",
        ]
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "begun\n"
            if brokers == "gone":
                cluster.set_broker_down()
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            rest, _ = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (rest, process.returncode) == ("ended\n", 0)
    assert time.monotonic() - began < 6 + 5
    if brokers == "there":
        assert committed(cluster)[0] == 0
