"""What happened to users of other clients (see docs/known-failures.md), where no other suite has it."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import tenacity
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

from safekafka import HandlerFailed, Retry, RetryLater, SafeConsumer, current
from safekafka.consumer.topic_ids import TopicIds
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.processes import wait_until

TOPIC, DEAD, GROUP, PARTITIONS = "orders", "orders.dlq", "billing", 2
RANGE = {"partition.assignment.strategy": "range"}  # takes all partitions away at each rebalance
Place = tuple[int, int]


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    kafka_mock.create_topic(DEAD, partitions=1, replication_factor=3)
    return kafka_mock


def fill(cluster: MockCluster, count: int, partition: int | None = None, keys: int = 0) -> None:
    """`keys`: how many different ones; 0: none."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for n in range(count):
        key = str(n % keys) if keys else None
        producer.produce(TOPIC, str(n), key, partition=n % PARTITIONS if partition is None else partition)
    assert producer.flush(30) == 0


def committed(cluster: MockCluster) -> list[int]:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    try:
        answer = client.committed([TopicPartition(TOPIC, number) for number in range(PARTITIONS)], timeout=10)
        return [max(0, one.offset) for one in answer]
    finally:
        client.close()


def consumer_of(cluster: MockCluster, config: dict[str, Any] | None = None, **options: Any) -> SafeConsumer:
    own = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": GROUP,
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 200,
    }
    return SafeConsumer({**own, **(config or {})}, [TOPIC], **{"commit_interval": 0.1, **options})


@contextlib.contextmanager
def running(consumer: SafeConsumer, handler: Any, batches: bool = False) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=consumer.run_batches if batches else consumer.run, args=(handler,))
    thread.start()
    try:
        yield thread
    finally:
        consumer.close()
        thread.join(60)
    assert not thread.is_alive()


def at(message: Message) -> Place:
    return message.partition() or 0, message.offset() or 0


def everything(count: int) -> set[Place]:
    return {(number, offset) for number in range(PARTITIONS) for offset in range(count)}


def has_partitions(consumer: SafeConsumer) -> bool:
    return consumer.stats().assigned > 0


def test_lag_is_known_although_a_partition_is_empty_or_was_read_before(cluster: MockCluster) -> None:
    fill(cluster, 10, partition=0)
    for left in (10, 0):
        consumer = consumer_of(cluster, stuck_after=60)
        gate = threading.Event()
        with running(consumer, lambda _, gate=gate: gate.wait(30)):
            wait_until(lambda left=left: consumer.stats().lag == left, 20, lambda: f"lag: {consumer.stats()}")  # type: ignore[misc]
            gate.set()
            wait_until(lambda: consumer.stats().lag == 0, 20, lambda: f"no lag: {consumer.stats()}")


# ---- what is committed


def test_B_C02_a_message_that_is_never_ready_stops_the_consumer_uncommitted(cluster: MockCluster) -> None:
    fill(cluster, 5, partition=0)

    def handle(message: Message) -> None:
        if message.offset() == 2:
            raise RetryLater(0.2)

    with pytest.raises(HandlerFailed, match=r"orders\[0\]@2"):
        consumer_of(cluster, retry=Retry(max_hold=1.0)).run(handle)
    assert committed(cluster) == [2, 0]


def test_B_C07_what_is_fetched_and_not_handled_is_not_committed(cluster: MockCluster) -> None:
    fill(cluster, 20)

    def handle(message: Message) -> None:
        if at(message) >= (0, 3):  # and all of partition 1
            wait_until(lambda: current().revoked, 60, "the stop")
            raise ValueError("not handled")

    consumer = consumer_of(cluster, concurrency=2)
    with running(consumer, handle):
        wait_until(lambda: consumer.stats()[:2] == (PARTITIONS, 17), 30, lambda: f"all fetched: {consumer.stats()}")
        wait_until(lambda: committed(cluster) == [3, 0], 20, "three to be committed")
    assert committed(cluster) == [3, 0]


def test_B_C08_a_dead_letter_behind_a_running_message_moves_no_commit_past_it(cluster: MockCluster) -> None:
    fill(cluster, 10, partition=0, keys=10)
    gate = threading.Event()

    def handle(message: Message) -> None:
        if message.offset() == 3:
            assert gate.wait(60)
        if message.offset() == 5:
            raise ValueError("bad")

    consumer = consumer_of(cluster, order="key", concurrency=4, dead_letter=DEAD, retry=Retry(attempts=1))
    with running(consumer, handle):
        wait_until(lambda: consumer.stats().finished == 9, 30, lambda: f"the others: {consumer.stats()}")
        assert len(read_log(cluster.bootstrap_servers, DEAD, timeout=20)) == 1
        wait_until(lambda: committed(cluster) == [3, 0], 20, "what is in front of it to be committed")
        gate.set()
        wait_until(lambda: committed(cluster) == [10, 0], 20, "all to be committed")


def test_B_C11_a_commit_that_fails_meanwhile_takes_no_attempt_from_a_failing_message(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 3, partition=0)
    cluster.push_request_errors(ApiKey.OffsetCommit, *[KafkaError.UNKNOWN] * 3)
    seen: list[tuple[int | None, int]] = []

    def handle(message: Message) -> None:
        seen.append((message.offset(), current().attempt))
        if message.offset() == 1 and current().attempt < 3:
            raise ValueError("not yet")

    with running(consumer_of(cluster, retry=Retry(attempts=3, wait=tenacity.wait_fixed(0.5))), handle):
        wait_until(lambda: committed(cluster) == [3, 0], 30, lambda: f"all to be committed: {seen}")
    assert seen == [(0, 1), (1, 1), (1, 2), (1, 3), (2, 1)]
    assert "commit_failed" in caplog.text


# ---- slow handlers


@pytest.mark.parametrize("busy_with", ["a full queue", "a backoff"])
def test_B_C14_neither_a_full_queue_nor_a_backoff_longer_than_the_poll_interval_costs_the_partitions(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, busy_with: str
) -> None:
    fill(cluster, 6, partition=0)
    config = {"session.timeout.ms": 1000, "heartbeat.interval.ms": 200, "max.poll.interval.ms": 1000}
    calls: Counter[int] = Counter()

    def handle(message: Message) -> None:
        calls[at(message)[1]] += 1
        if busy_with == "a full queue" and message.offset() == 0:
            threading.Event().wait(3)
        if busy_with == "a backoff" and calls[0] == 1:
            raise ValueError("later")

    retry = Retry(wait=tenacity.wait_fixed(3))
    with running(consumer_of(cluster, config, max_in_flight=2, drain_timeout=0.9, retry=retry), handle):
        wait_until(lambda: committed(cluster) == [6, 0], 30, lambda: f"all to be committed: {calls}")
    assert calls == {n: 1 + (n == 0 and busy_with == "a backoff") for n in range(6)}
    assert "partitions_revoked" not in caplog.text
    assert "partitions_lost" not in caplog.text


def test_B_C27_messages_that_all_fail_and_wait_are_bounded(cluster: MockCluster) -> None:
    fill(cluster, 3_000, partition=0, keys=3_000)
    calls: Counter[int] = Counter()

    def fail(message: Message) -> None:
        calls[at(message)[1]] += 1
        raise ValueError("always")

    retry = Retry(wait=tenacity.wait_fixed(600))
    consumer = consumer_of(cluster, order="key", concurrency=4, max_in_flight=50, retry=retry)
    with running(consumer, fail):
        wait_until(lambda: consumer.stats().paused, 30, lambda: f"the pause: {consumer.stats()}")
        wait_until(lambda: consumer.stats().retries == len(calls), 10, "the last one to fail")
        assert consumer.stats().in_flight == len(calls) == 50
    assert committed(cluster) == [0, 0]


def test_B_C33_a_stuck_handler_is_seen_by_its_age_a_growing_lag_and_bad_health(cluster: MockCluster) -> None:
    fill(cluster, 30, partition=0, keys=2)
    gate = threading.Event()

    def handle(message: Message) -> None:
        if message.offset() == 1:
            assert gate.wait(60)

    consumer = consumer_of(cluster, order="key", concurrency=2, max_in_flight=12, stuck_after=1.0)
    with running(consumer, handle):
        wait_until(lambda: not consumer.health().ok and consumer.stats().paused, 30, lambda: f"{consumer.stats()}")
        assert "orders[0]@1" in consumer.health().problems[0]
        before = consumer.stats()
        assert before.oldest_unfinished is not None
        assert before.oldest_unfinished[:3] == (TOPIC, 0, 1)
        assert before.lag == 29
        fill(cluster, 50, partition=0)
        wait_until(lambda: consumer.stats().lag == 79, 20, lambda: f"a growing lag: {consumer.stats()}")
        now = consumer.stats().oldest_unfinished
        assert now is not None
        assert now.seconds > before.oldest_unfinished.seconds
        gate.set()
        wait_until(lambda: consumer.stats().lag == 0, 20, lambda: f"no lag: {consumer.stats()}")
        assert consumer.health().ok


# ---- rebalances


def hold(_: Any) -> None:
    """A handler of a member that is to handle nothing."""
    wait_until(lambda: current().revoked, 60, "the partition to be taken away")
    raise ValueError("not handled")


@contextlib.contextmanager
def another_member(cluster: MockCluster, config: dict[str, Any], handler: Any, batches: bool = False) -> Iterator[None]:
    consumer = consumer_of(cluster, config)
    with running(consumer, handler, batches):
        wait_until(lambda: has_partitions(consumer), 60, "the other member's partitions")
        yield


def test_B_C12_a_batch_in_backoff_when_its_partitions_move_is_handled_by_whoever_has_them(cluster: MockCluster) -> None:
    fill(cluster, 40)
    failed, joined = threading.Event(), threading.Event()
    handled: set[Place] = set()

    def handle(messages: list[Message]) -> None:
        if not joined.is_set():
            failed.set()
            raise ValueError("later")
        handled.update(map(at, messages))

    consumer = consumer_of(cluster, RANGE, retry=Retry(wait=tenacity.wait_fixed(600)))
    with running(consumer, handle, batches=True):
        assert failed.wait(30)
        joined.set()
        with another_member(cluster, RANGE, handle, batches=True):
            wait_until(lambda: handled == everything(20), 60, lambda: f"all: {sorted(handled)}")
            wait_until(lambda: committed(cluster) == [20, 20], 20, "all to be committed")


@pytest.mark.parametrize("told", ["lost", "revoked"])
def test_B_C15_B_C16_nothing_of_a_lost_assignment_is_committed_although_the_partition_came_back(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, told: str
) -> None:
    """A loop that is away for longer than the poll interval. If a rebalance is under way then, the client says
    "revoked"."""
    fill(cluster, 10, partition=0)
    short = {"session.timeout.ms": 1000, "max.poll.interval.ms": 1000}
    with consumer_of(cluster, short, drain_timeout=0.5) as consumer:
        messages: list[Message] = []
        wait_until(lambda: len(messages.__iadd__(consumer.consume(10, 0.2))) == 10, 30, "all messages")
        assert [consumer.done(message) for message in messages[:3]] == [True] * 3
        if told == "lost":
            threading.Event().wait(2.5)  # what is under test
        with running(consumer_of(cluster), lambda _: None):
            wait_until(lambda: committed(cluster) == [10, 0], 30, "the other member's commit")
        wait_until(
            lambda: (consumer.poll(0.1), "partitions_lost" in caplog.text and len(consumer.assignment()) == 2)[1],
            30,
            "the partitions to come back",
        )
        assert [consumer.done(message) for message in messages[3:]] == [False] * 7
        for _ in range(5):  # of many commit intervals
            assert consumer.poll(0.2) is None
        assert committed(cluster) == [10, 0]
    assert committed(cluster) == [10, 0]
    assert "commit_failed" not in caplog.text


def test_B_C13_a_partition_that_the_program_paused_is_paused_when_it_comes_back(cluster: MockCluster) -> None:
    handled: set[Place] = set()
    consumer = consumer_of(cluster, RANGE)
    with running(consumer, lambda message: handled.add(at(message))):
        wait_until(lambda: consumer.stats().assigned == PARTITIONS, 30, "both partitions")
        consumer.pause([TopicPartition(TOPIC, 0)])
        with another_member(cluster, RANGE, hold):
            fill(cluster, 20)
        wait_until(lambda: committed(cluster) == [0, 10], 60, lambda: f"partition 1: {sorted(handled)}")
        wait_until(lambda: consumer.stats()[:2] == (PARTITIONS, 0), 10, lambda: f"both are back: {consumer.stats()}")
        assert handled == {(1, offset) for offset in range(10)}
        consumer.resume([TopicPartition(TOPIC, 0)])
        wait_until(lambda: handled == everything(10), 30, lambda: f"all: {sorted(handled)}")


def test_nothing_is_taken_of_a_partition_that_is_paused_before_it_is_assigned(cluster: MockCluster) -> None:
    fill(cluster, 20)
    consumer = consumer_of(cluster)
    consumer.pause([TopicPartition(TOPIC, 0)])
    handled: set[Place] = set()
    with running(consumer, lambda message: handled.add(at(message))):
        wait_until(lambda: len(handled) >= 10, 30, lambda: f"partition 1: {sorted(handled)}")
        wait_until(lambda: consumer.stats().finished >= 10, 10, lambda: f"{consumer.stats()}")
        assert handled == {(1, offset) for offset in range(10)}
        consumer.resume([TopicPartition(TOPIC, 0)])
        wait_until(lambda: handled == everything(10), 30, lambda: f"all: {sorted(handled)}")


@pytest.mark.parametrize("order", ["partition", "key", "none"])
@pytest.mark.parametrize("why", ["retry", "stuck", "large"])
def test_B_C28_a_partition_that_stands_still_leaves_room_for_the_others(
    cluster: MockCluster, order: Any, why: str
) -> None:
    """However much comes in behind what it stands at."""
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})

    def write(partition: int) -> None:
        for number in range(300):
            value = b"x" * (10_000 if why == "large" else 10)
            producer.produce(TOPIC, value, "same" if partition == 0 else str(number), partition=partition)
        assert producer.flush(60) == 0

    options = {"max_in_flight_bytes": 500_000} if why == "large" else {"max_in_flight": 50}
    never = threading.Event()
    stood: list[int] = []

    def handle(message: Message) -> None:
        if message.partition() == 0:
            stood.append(1)
            if why == "stuck":
                never.wait(120)
            raise ValueError("not yet")
        handled.add(at(message))

    retry = Retry(attempts=9, wait=tenacity.wait_fixed(600))
    handled: set[Place] = set()
    consumer = consumer_of(cluster, order=order, concurrency=400, retry=retry, drain_timeout=1, **options)
    write(0)
    with running(consumer, handle):
        wait_until(lambda: bool(stood), 60, "it to stand still")
        write(1)
        wait_until(lambda: len(handled) == 300, 60, lambda: f"{len(handled)}, {consumer.stats()}")
        assert consumer.stats().in_flight <= 2 * 50
        never.set()


def _half_finished(cluster: MockCluster, **options: Any) -> set[Place]:
    """A run in which the handler of offset 0 does not come back. What it finished."""
    gate, handled = threading.Event(), set[Place]()

    def handle(message: Message) -> None:
        if message.offset() == 0:
            gate.wait(120)
        handled.add(at(message))

    consumer = consumer_of(cluster, order="key", concurrency=4, drain_timeout=0.5, **options)
    with running(consumer, handle):
        wait_until(lambda: consumer.stats().finished > 0, 30, "the first ones")
        before = -1
        while before != consumer.stats().finished:
            before = consumer.stats().finished
            time.sleep(1.5)  # statistics are a second old at most
    finished = set(handled)
    gate.set()
    return finished


@pytest.mark.parametrize("topic_id", ["the same", "another"])
def test_C1_what_was_finished_beyond_the_commit_is_not_handled_again_but_in_another_topic(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, topic_id: str
) -> None:
    ids = ["the same"]
    monkeypatch.setattr(TopicIds, "ask", lambda *_: {TOPIC: ids[0]})  # mock brokers don't tell it
    fill(cluster, 20, partition=0, keys=20)
    finished = _half_finished(cluster)
    assert finished == {(0, offset) for offset in range(1, 20)}
    assert committed(cluster)[0] == 0
    ids[0] = topic_id
    again: set[Place] = set()
    consumer = consumer_of(cluster, order="key")
    with running(consumer, lambda message: again.add(at(message))):
        wait_until(lambda: committed(cluster)[0] == 20, 30, lambda: f"{consumer.stats()}")
    assert again == ({(0, 0)} if topic_id == "the same" else {(0, offset) for offset in range(20)})


def test_C1_no_more_is_taken_than_can_be_told_of_in_a_commit_whatever_of_it_is_finished(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TopicIds, "ask", lambda *_: {TOPIC: "x" * 22})
    chance = random.Random(1)
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "queue.buffering.max.messages": 50_000})
    for number in range(45_000):
        key = "stuck" if number == 0 or chance.random() < 0.3 else str(number)
        producer.produce(TOPIC, b"", key, partition=0)
    assert producer.flush(60) == 0
    finished = _half_finished(cluster, max_in_flight=50_000)
    assert len(finished) > 5_000
    consumer, again = consumer_of(cluster, order="key", concurrency=4), set[Place]()
    with running(consumer, lambda message: again.add(at(message))):
        wait_until(lambda: committed(cluster)[0] == 45_000, 60, lambda: f"{consumer.stats()}")
    assert again.isdisjoint(finished)
    assert again | finished == {(0, offset) for offset in range(45_000)}


def test_nothing_is_taken_of_a_partition_that_is_paused_as_it_is_assigned(cluster: MockCluster) -> None:
    fill(cluster, 20)
    consumer = consumer_of(cluster)
    consumer.subscribe([TOPIC], on_assign=lambda consumer, _: consumer.pause([TopicPartition(TOPIC, 0)]))
    handled: set[Place] = set()
    with running(consumer, lambda message: handled.add(at(message))):
        wait_until(lambda: consumer.stats().finished >= 10, 30, lambda: f"partition 1: {sorted(handled)}")
        assert handled == {(1, offset) for offset in range(10)}
        consumer.resume([TopicPartition(TOPIC, 0)])
        wait_until(lambda: handled == everything(10), 30, lambda: f"all: {sorted(handled)}")


def test_B_C15_a_loop_that_was_away_too_long_commits_nothing_when_it_closes(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 10, partition=0)
    short = {"session.timeout.ms": 1000, "max.poll.interval.ms": 1000}
    with consumer_of(cluster, short, drain_timeout=0.5) as consumer:
        messages: list[Message] = []
        wait_until(lambda: len(messages.__iadd__(consumer.consume(10, 0.2))) == 10, 30, "all messages")
        assert consumer.done(messages[0])
        with running(consumer_of(cluster), lambda _: None):
            wait_until(lambda: committed(cluster) == [10, 0], 30, "the other member's commit")
    assert committed(cluster) == [10, 0]
    assert "commit_failed" not in caplog.text


def test_B_C18_a_handler_that_ends_after_its_partition_came_back_marks_nothing(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 10)
    gate, lock = threading.Event(), threading.Lock()
    calls: Counter[Place] = Counter()
    running_now: Counter[int] = Counter()
    overlaps: list[Place] = []

    def handle(message: Message) -> None:
        place = at(message)
        with lock:
            calls[place] += 1
            first = calls[place] == 1
            running_now[place[0]] += 1
            if running_now[place[0]] > 1:
                overlaps.append(place)
        if first and place == (1, 0):
            assert gate.wait(90)
        with lock:
            running_now[place[0]] -= 1

    consumer = consumer_of(cluster, RANGE, concurrency=3, drain_timeout=0.5)
    with running(consumer, handle):
        wait_until(lambda: calls[1, 0] == 1, 30, "its handler")
        with another_member(cluster, RANGE, hold):
            assert "handler_abandoned" in caplog.text
        wait_until(lambda: consumer.stats().assigned == PARTITIONS, 30, "both partitions")
        assert calls[1, 0] == 1
        gate.set()
        wait_until(lambda: committed(cluster) == [5, 5], 30, lambda: f"all to be committed: {calls}")
    assert calls[1, 0] == 2
    assert not overlaps


def test_B_C19_a_message_of_a_partition_that_is_not_ours_is_not_taken_and_comes_again(cluster: MockCluster) -> None:
    fill(cluster, 3, partition=0)
    raw = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "another"})
    raw.assign([TopicPartition(TOPIC, 0, 0)])
    early = raw.consume(3, 30)
    raw.close()
    seen: list[Place] = []
    consumer = consumer_of(cluster)
    consumer._session.accept(early, lambda _, messages: seen.extend(map(at, messages)))
    assert seen == []
    with running(consumer, lambda message: seen.append(at(message))):
        wait_until(lambda: committed(cluster) == [3, 0], 30, "all to be committed")
    assert seen == [(0, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize("strategy", ["range", "cooperative-sticky"])
def test_B_C23_after_ten_rebalances_in_a_row_every_partition_makes_progress(
    cluster: MockCluster, strategy: str
) -> None:
    config = {"partition.assignment.strategy": strategy}
    handled: set[Place] = set()
    with running(consumer_of(cluster, config), lambda message: handled.add(at(message))):
        for _ in range(5):  # it comes and it goes
            with another_member(cluster, config, lambda message: handled.add(at(message))):
                pass
        fill(cluster, 20)
        wait_until(lambda: handled == everything(10), 30, lambda: f"all: {sorted(handled)}")
        wait_until(lambda: committed(cluster) == [10, 10], 20, "all to be committed")


@pytest.mark.timeout(120)
def test_B_C25_a_coordinator_that_does_not_answer_commits_holds_up_neither_a_rebalance_nor_the_end(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 20)
    consumer = consumer_of(cluster, RANGE, commit_interval=999, drain_timeout=2.0, shutdown_timeout=8.0)
    begun: list[float] = []
    consumer.subscribe([TOPIC], on_revoke=lambda *_: begun.append(time.monotonic()))
    with running(consumer, lambda _: None):
        wait_until(lambda: consumer.stats().finished == 20, 30, lambda: f"all: {consumer.stats()}")
        for broker in (1, 2, 3):  # all answers on the same connection wait behind these
            cluster.push_broker_request_errors(broker, ApiKey.OffsetCommit, *[(0, 60.0)] * 20)
        other = consumer_of(cluster, RANGE, shutdown_timeout=8.0)
        with running(other, lambda _: None):
            wait_until(lambda: "partitions_revoked" in caplog.text, 30, "the rebalance")
            assert time.monotonic() - begun[0] < 2 + 0.5
            wait_until(lambda: has_partitions(other), 30, "the other member's partitions")
            began = time.monotonic()
            consumer.close()
            assert time.monotonic() - began < 8 + 2


def test_B_C25_with_all_brokers_gone_the_end_is_bounded(cluster: MockCluster) -> None:
    fill(cluster, 20)
    consumer = consumer_of(cluster, commit_interval=999, drain_timeout=2.0, shutdown_timeout=7.0)
    with running(consumer, lambda _: None):
        wait_until(lambda: consumer.stats().finished == 20, 30, lambda: f"all: {consumer.stats()}")
        cluster.set_broker_down()
        began = time.monotonic()
        consumer.close()
        assert time.monotonic() - began < 7 + 2


def test_B_C29_after_a_rebalance_attempts_begin_at_one(cluster: MockCluster) -> None:
    fill(cluster, 1, partition=0)
    attempts: list[int] = []

    def fail(_: Message) -> None:
        attempts.append(current().attempt)
        raise ValueError("always")

    retry = Retry(attempts=3, wait=tenacity.wait_chain(tenacity.wait_none(), tenacity.wait_fixed(600)))
    with running(consumer_of(cluster, RANGE, retry=retry, dead_letter=DEAD), fail):
        wait_until(lambda: attempts == [1, 2], 30, "two attempts")
        with another_member(cluster, RANGE, hold):
            pass
        # It may have come back in between: how many rebalances there are is the members' matter.
        wait_until(lambda: len(attempts) > 2 and attempts[-1] == 2, 60, lambda: f"two more: {attempts}")
    assert attempts == [1, 2] * (len(attempts) // 2)
    assert read_log(cluster.bootstrap_servers, DEAD, timeout=20) == []
    assert committed(cluster) == [0, 0]
