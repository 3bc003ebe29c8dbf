"""Many handlers at once: order by partition, key or not at all; retries, batches, tasks, what a handler can know."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import tenacity
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition

import safekafka
from safekafka import (
    DeadLetter,
    DeadLetterFailed,
    HandlerFailed,
    Reject,
    Retry,
    RetryLater,
    SafeConsumer,
    SafeKafkaError,
)
from safekafka.consumer.offset_map import decode
from safekafka.consumer.topic_ids import TopicIds
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.processes import wait_until

TOPIC, DEAD, GROUP, PARTITIONS = "orders", "orders.dlq", "billing", 3
QUICK = Retry(attempts=3, wait=tenacity.wait_none())


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    kafka_mock.create_topic(DEAD, partitions=1, replication_factor=3)
    return kafka_mock


def fill(cluster: MockCluster, keys: list[bytes | None], partition: int | None = None) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for number, key in enumerate(keys):
        where = number % PARTITIONS if partition is None else partition
        producer.produce(TOPIC, str(number).encode(), key, partition=where)
    assert producer.flush(30) == 0


def committed(cluster: MockCluster) -> dict[int, int]:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    try:
        answer = client.committed([TopicPartition(TOPIC, partition) for partition in range(PARTITIONS)], timeout=10)
        return {partition.partition: max(0, partition.offset) for partition in answer}
    finally:
        client.close()


def consumer_of(cluster: MockCluster, **options: Any) -> SafeConsumer:
    options.setdefault("retry", QUICK)
    config = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, "session.timeout.ms": 6000}
    return SafeConsumer(config, [TOPIC], **options)


class Log:
    """What was handled, in the order of beginning; `overlaps` are lanes of which two were handled at once."""

    def __init__(self, consumer: SafeConsumer, enough: int, lane: Callable[[Message], Any]) -> None:
        self.consumer, self.enough, self.lane = consumer, enough, lane
        self.lock = threading.Lock()
        self.begun: list[tuple[int, int, bytes | None]] = []
        self.running: Counter[Any] = Counter()
        self.overlaps = 0
        self.most = 0
        self.done = 0

    def begin(self, message: Message) -> None:
        with self.lock:
            self.begun.append((message.partition() or 0, message.offset() or 0, message.key()))  # type: ignore[arg-type]
            self.running[self.lane(message)] += 1
            self.overlaps += self.running[self.lane(message)] > 1
            self.most = max(self.most, sum(self.running.values()))

    def end(self, message: Message) -> None:
        with self.lock:
            self.running[self.lane(message)] -= 1
            self.done += 1
            if self.done >= self.enough:
                self.consumer.stop()

    def check_order(self, by_key: bool) -> None:
        lines: dict[Any, list[int]] = defaultdict(list)
        for partition, offset, key in self.begun:
            lines[partition, key if by_key else None].append(offset)
        assert all(offsets == sorted(offsets) for offsets in lines.values())


def run(consumer: SafeConsumer, handler: Any, seconds: float = 60) -> None:
    guard = threading.Timer(seconds, consumer.stop)  # a test that waits in vain fails by its assertions
    guard.start()
    try:
        consumer.run(handler)
    finally:
        guard.cancel()


def sync_handler(log: Log, seconds: float) -> Callable[[Message], None]:
    def handle(message: Message) -> None:
        log.begin(message)
        time.sleep(seconds)
        log.end(message)

    return handle


def async_handler(log: Log, seconds: float) -> Callable[[Message], Any]:
    async def handle(message: Message) -> None:
        log.begin(message)
        await asyncio.sleep(seconds)
        log.end(message)

    return handle


@pytest.mark.parametrize("kind", [sync_handler, async_handler])
@pytest.mark.parametrize("order", ["partition", "key", "none"])
def test_C2_handlers_of_a_lane_never_overlap_and_begin_in_order_and_lanes_run_side_by_side(
    cluster: MockCluster, order: Any, kind: Callable[[Log, float], Any]
) -> None:
    keys = [None if n % 10 == 0 else b"%d" % (n % 17) for n in range(300)]
    fill(cluster, keys)
    consumer = consumer_of(cluster, concurrency=16, order=order)
    lanes: dict[str, Callable[[Message], Any]] = {
        "partition": lambda message: message.partition(),
        "key": lambda message: (message.partition(), message.key()),
        "none": lambda message: (message.partition(), message.offset()),
    }
    log = Log(consumer, 300, lanes[order])
    run(consumer, kind(log, 0.005))
    assert len(set(log.begun)) == len(log.begun) == 300
    assert log.overlaps == 0
    if order != "none":
        log.check_order(by_key=order == "key")
    assert log.most == PARTITIONS if order == "partition" else 8 < log.most <= 16
    assert committed(cluster) == {0: 100, 1: 100, 2: 100}


@pytest.mark.parametrize("is_async", [False, True])
def test_B_C28_a_message_that_waits_for_its_retry_holds_up_its_own_lane_and_no_worker(
    cluster: MockCluster, is_async: bool
) -> None:
    """One worker, and the first message needs ten attempts, half a second apart."""
    fill(cluster, [b"bad", b"good", b"bad", b"other"], partition=0)
    consumer = consumer_of(cluster, order="key", retry=Retry(attempts=10, wait=tenacity.wait_fixed(0.5)))
    attempts: list[int] = []
    ended: list[str] = []

    def handle(message: Message) -> None:
        if message.offset() == 0:
            attempts.append(safekafka.current().attempt)
            if len(attempts) < 4:
                raise ValueError("not yet")
        ended.append(message.value().decode())  # type: ignore[union-attr]
        if len(ended) == 4:
            consumer.stop()

    async def handle_async(message: Message) -> None:
        handle(message)

    run(consumer, handle_async if is_async else handle)
    assert ended == ["1", "3", "0", "2"], "others waited for it, or its key did not"
    assert attempts == [1, 2, 3, 4]
    assert committed(cluster)[0] == 4


def test_retry_later_does_not_count_and_max_hold_bounds_it(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, [b"a", b"b"], partition=0)
    consumer = consumer_of(cluster, dead_letter=DEAD, retry=Retry(attempts=1, max_hold=1.0))
    calls: Counter[int | None] = Counter()

    def handle(message: Message) -> None:
        calls[message.offset()] += 1
        if message.offset() == 0:
            raise RetryLater(0.2)
        consumer.stop()

    run(consumer, handle)
    assert 4 <= calls[0] <= 6
    assert "partition_held" in caplog.text
    assert len(read_log(cluster.bootstrap_servers, DEAD, timeout=20)) == 1
    assert committed(cluster)[0] == 2


@pytest.mark.parametrize("when", ["taken", "refused", "refused at the end"])
def test_what_is_finished_behind_the_commit_is_left_out_where_brokers_refuse_the_metadata(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    monkeypatch.setattr(TopicIds, "ask", lambda *_: {TOPIC: "id"})  # mock brokers don't tell it
    fill(cluster, [b"%d" % number for number in range(6)], partition=0)
    refusals = [KafkaError.OFFSET_METADATA_TOO_LARGE] * (0 if when == "taken" else 1)
    cluster.push_request_errors(ApiKey.OffsetCommit, *refusals)
    interval = 999.0 if when == "refused at the end" else 0.2
    consumer = consumer_of(cluster, order="key", concurrency=2, commit_interval=interval, drain_timeout=0.5)
    gate = threading.Event()

    def handle(message: Message) -> None:
        if message.offset() == 1:
            gate.wait(60)

    thread = threading.Thread(target=consumer.run, args=(handle,))
    thread.start()
    try:
        wait_until(lambda: consumer.stats().finished == 5, 30, lambda: f"the others: {consumer.stats()}")
        if when != "refused at the end":
            wait_until(lambda: committed(cluster)[0] == 1, 20, "what is in front of it to be committed")
    finally:
        consumer.close()
        gate.set()
        thread.join(30)
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    (told,) = client.committed([TopicPartition(TOPIC, 0)], timeout=10)
    client.close()
    assert told.offset == 1
    assert (decode(told.metadata) is not None) == (when == "taken")


# ---- batches


@pytest.mark.parametrize("is_async", [False, True])
def test_a_poison_message_never_sinks_the_rest_of_its_batch(cluster: MockCluster, is_async: bool) -> None:
    fill(cluster, [b"k"] * 500, partition=0)
    consumer = consumer_of(cluster, dead_letter=DEAD, retry=Retry(attempts=2, wait=tenacity.wait_none()))
    handled: list[int] = []
    sizes: list[int] = []

    def handle(messages: list[Message]) -> None:
        sizes.append(len(messages))
        offsets = [message.offset() or 0 for message in messages]
        if 333 in offsets:
            raise ValueError("poison")
        handled.extend(offsets)
        if len(handled) == 499:
            consumer.stop()

    async def handle_async(messages: list[Message]) -> None:
        handle(messages)

    guard = threading.Timer(60, consumer.stop)
    guard.start()
    consumer.run_batches(handle_async if is_async else handle, max_records=500, max_wait=2.0)
    guard.cancel()
    assert handled == [offset for offset in range(500) if offset != 333], "left out, twice, or out of order"
    assert max(sizes) > 100
    assert len(sizes) < 40, sizes
    assert [record.value() for record in read_log(cluster.bootstrap_servers, DEAD, timeout=20)] == [b"333"]
    assert committed(cluster)[0] == 500


def test_a_batch_waits_for_more_as_long_as_max_wait_and_holds_at_most_max_records(cluster: MockCluster) -> None:
    fill(cluster, [None] * 100, partition=0)
    consumer = consumer_of(cluster)
    sizes: list[int] = []

    def handle(messages: list[Message]) -> None:
        sizes.append(len(messages))
        if sum(sizes) >= 100:
            consumer.stop()

    consumer.run_batches(handle, max_records=30, max_wait=0.3)
    assert max(sizes) == 30
    assert sum(sizes) == 100
    assert len(sizes) <= 6


def test_batches_of_several_workers_keep_the_order_of_keys(cluster: MockCluster) -> None:
    fill(cluster, [b"%d" % (n % 7) for n in range(600)])
    consumer = consumer_of(cluster, concurrency=4, order="key")
    log = Log(consumer, 600, lambda message: (message.partition(), message.key()))
    failed: set[int] = set()

    def handle(messages: list[Message]) -> None:
        first = messages[0].offset() or 0
        if first % 5 == 0 and first not in failed:
            failed.add(first)
            raise ValueError("once")
        lanes = {(message.partition(), message.key()) for message in messages}
        for lane in lanes:
            with log.lock:
                log.running[lane] += 1
                log.overlaps += log.running[lane] > 1
        time.sleep(0.002)
        for message in messages:
            log.begun.append((message.partition() or 0, message.offset() or 0, message.key()))  # type: ignore[arg-type]
        with log.lock:
            log.running.subtract(lanes)
            log.done += len(messages)
            if log.done >= 600:
                consumer.stop()

    guard = threading.Timer(60, consumer.stop)
    guard.start()
    consumer.run_batches(handle, max_records=20, max_wait=0.05)
    guard.cancel()
    assert log.overlaps == 0
    assert len(set(log.begun)) == len(log.begun) == 600
    log.check_order(by_key=True)


def test_B_C12_a_batch_that_waits_for_its_retry_is_given_up_at_the_stop_and_comes_again(cluster: MockCluster) -> None:
    fill(cluster, [None] * 10, partition=0)
    consumer = consumer_of(cluster, retry=Retry(attempts=9, wait=tenacity.wait_fixed(300)))

    def fail(_: list[Message]) -> None:
        threading.Timer(0.3, consumer.stop).start()
        raise ValueError("later")

    began = time.monotonic()
    consumer.run_batches(fail, max_wait=0.1)
    assert time.monotonic() - began < 20
    assert committed(cluster)[0] == 0
    seen: list[int] = []
    again = consumer_of(cluster)

    def handle(messages: list[Message]) -> None:
        seen.extend(message.offset() or 0 for message in messages)
        if len(seen) == 10:
            again.stop()

    again.run_batches(handle, max_wait=0.1)
    assert seen == list(range(10))


def test_a_batch_without_dead_letters_stops_at_the_poison_message_with_what_stands_before_it_committed(
    cluster: MockCluster,
) -> None:
    fill(cluster, [None] * 100, partition=0)
    consumer = consumer_of(cluster)

    def handle(messages: list[Message]) -> None:
        if any(message.offset() == 50 for message in messages):
            raise ValueError("poison")

    with pytest.raises(HandlerFailed, match=r"orders\[0\]@50"):
        consumer.run_batches(handle, max_wait=1.0)
    assert committed(cluster)[0] == 50


def run_batches(consumer: SafeConsumer, handler: Callable[[list[Message]], None], is_async: bool, size: int) -> None:
    async def handle_async(messages: list[Message]) -> None:
        handler(messages)

    guard = threading.Timer(60, consumer.stop)
    guard.start()
    try:
        consumer.run_batches(handle_async if is_async else handler, max_records=size, max_wait=5.0)
    finally:
        guard.cancel()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("error", "attempts", "wait"),
    [(RetryLater(0.3), 1, 0.0), (ValueError("poison"), 99, 0.3), (ValueError("poison"), 2, 0.7)],
    ids=["RetryLater", "out of time as a batch", "out of time alone"],
)
def test_B_C02_max_hold_bounds_a_message_of_a_batch_in_all(
    cluster: MockCluster,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    attempts: int,
    wait: float,
    is_async: bool,
) -> None:
    """However often the batch is split until the message stands alone."""
    fill(cluster, [b"k"] * 16, partition=0)
    retry = Retry(attempts=attempts, wait=tenacity.wait_fixed(wait), max_hold=1.0)
    consumer = consumer_of(cluster, dead_letter=DEAD, retry=retry)
    handled: list[int] = []
    failed: list[tuple[int, float]] = []  # how many in the batch, and when

    def handle(messages: list[Message]) -> None:
        offsets = [message.offset() or 0 for message in messages]
        if 5 in offsets:
            failed.append((len(offsets), time.monotonic()))
            raise error
        handled.extend(offsets)
        if len(handled) == 15:
            consumer.stop()

    run_batches(consumer, handle, is_async, 16)
    assert handled == [offset for offset in range(16) if offset != 5], "left out, twice, or out of order"
    assert [size for size, _ in failed][-4:] == [8, 4, 2, 1], failed
    assert 0.5 < failed[-1][1] - failed[0][1] < 3, failed
    held = [record.getMessage() for record in caplog.records if "partition_held" in record.getMessage()]
    assert len(held) == 1, held
    assert "offset=5 " in held[0]
    assert [record.value() for record in read_log(cluster.bootstrap_servers, DEAD, timeout=20)] == [b"5"]
    assert committed(cluster)[0] == 16


def test_B_C02_every_message_of_a_batch_that_is_out_of_time_is_tried_alone_once_and_told_of(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, [b"k"] * 8, partition=0)
    consumer = consumer_of(cluster, dead_letter=DEAD, retry=Retry(max_hold=0.5))
    alone: list[int] = []
    begun: list[float] = []

    def handle(messages: list[Message]) -> None:
        begun.append(time.monotonic())
        offsets = [message.offset() or 0 for message in messages]
        if len(offsets) == 1:
            alone.extend(offsets)
            if offsets == [7]:
                consumer.stop()
        raise RetryLater(0.2)

    run_batches(consumer, handle, False, 8)
    assert alone == list(range(8))
    assert begun[-1] - begun[0] < 3
    held = [record.getMessage() for record in caplog.records if "partition_held" in record.getMessage()]
    assert [f"offset={offset} " in line for offset, line in enumerate(held)] == [True] * 8, held
    assert len(read_log(cluster.bootstrap_servers, DEAD, timeout=20)) == 8
    assert committed(cluster)[0] == 8


def test_B_C02_a_message_of_a_batch_out_of_time_stops_the_consumer_where_there_are_no_dead_letters(
    cluster: MockCluster,
) -> None:
    fill(cluster, [b"k"] * 8, partition=0)
    consumer = consumer_of(cluster, retry=Retry(max_hold=0.5))

    def handle(messages: list[Message]) -> None:
        if any(message.offset() == 5 for message in messages):
            raise RetryLater(0.2)

    with pytest.raises(HandlerFailed, match=r"orders\[0\]@5"):
        run_batches(consumer, handle, False, 8)
    assert committed(cluster)[0] == 5


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_reject_of_one_message_splits_its_batch_at_once_until_it_stands_alone(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    fill(cluster, [b"k"] * 8, partition=0)
    consumer = consumer_of(cluster, dead_letter=DEAD, retry=Retry(attempts=9, wait=tenacity.wait_fixed(300)))
    handled: list[int] = []
    sizes: list[int] = []

    def handle(messages: list[Message]) -> None:
        offsets = [message.offset() or 0 for message in messages]
        sizes.append(len(offsets))
        if 2 in offsets:
            raise Reject("never")
        handled.extend(offsets)
        if len(handled) == 7:
            consumer.stop()

    run_batches(consumer, handle, is_async, 8)
    assert handled == [0, 1, 3, 4, 5, 6, 7]
    assert sizes == [8, 4, 2, 2, 1, 1, 4]
    assert "handler_retry" not in caplog.text
    assert [record.value() for record in read_log(cluster.bootstrap_servers, DEAD, timeout=20)] == [b"2"]
    assert committed(cluster)[0] == 8


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_current_tells_the_handler_of_a_batch_which_attempt_it_is(cluster: MockCluster, is_async: bool) -> None:
    fill(cluster, [b"k"] * 4, partition=0)
    consumer = consumer_of(cluster, retry=Retry(attempts=3, wait=tenacity.wait_none()))
    errors: list[Exception] = [ValueError("once"), RetryLater(0.1), ValueError("twice")]
    attempts: list[int] = []
    sizes: list[int] = []

    def handle(messages: list[Message]) -> None:
        attempts.append(safekafka.current().attempt)
        sizes.append(len(messages))
        if errors:
            raise errors.pop(0)
        if len(sizes) == 5:
            consumer.stop()
        else:
            fill(cluster, [b"k"] * 4, partition=0)

    run_batches(consumer, handle, is_async, 4)
    assert attempts == [1, 2, 2, 3, 1], "RetryLater counted, or the next batch did not begin at 1"
    assert sizes == [4] * 5
    assert committed(cluster)[0] == 8


# ---- the circuit


@pytest.mark.parametrize("is_async", [False, True])
def test_a_broken_downstream_floods_no_dead_letter_topic_and_is_probed_until_it_is_well(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture, is_async: bool
) -> None:
    fill(cluster, [b"%d" % n for n in range(60)])
    consumer = consumer_of(
        cluster, concurrency=4, order="key", dead_letter=DeadLetter(DEAD, max_consecutive=5), retry=Retry(attempts=1)
    )
    broken = True
    calls = 0
    handled: set[tuple[int | None, int | None]] = set()

    def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        if broken:
            raise ConnectionError("downstream")
        handled.add((message.partition(), message.offset()))
        if len(handled) >= 55:
            consumer.stop()

    async def handle_async(message: Message) -> None:
        handle(message)

    def mend() -> None:
        nonlocal broken
        wait_until(lambda: "dead_letter_circuit_open" in caplog.text, 30, "the circuit")
        before = calls
        time.sleep(2.5)  # long enough for a probe
        assert 1 <= calls - before <= 8, "not probed, or flooded"
        broken = False

    mending = threading.Thread(target=mend)
    mending.start()
    run(consumer, handle_async if is_async else handle)
    mending.join()
    letters = len(read_log(cluster.bootstrap_servers, DEAD, timeout=20))
    assert letters == 5
    assert len(handled) == 55
    assert "dead_letter_circuit_closed" in caplog.text
    assert sum(committed(cluster).values()) == 60


def test_a_limit_with_stop_ends_the_consumer_and_commits_nothing_of_what_it_held(cluster: MockCluster) -> None:
    fill(cluster, [None] * 20, partition=0)
    letters = DeadLetter(DEAD, max_rate=(3, 60.0), on_limit="stop")
    consumer = consumer_of(cluster, dead_letter=letters, retry=Retry(attempts=1))

    def fail(_: Message) -> None:
        raise ConnectionError("downstream")

    with pytest.raises(DeadLetterFailed, match="max_rate"):
        run(consumer, fail)
    assert len(read_log(cluster.bootstrap_servers, DEAD, timeout=20)) == 3
    assert committed(cluster)[0] == 3


# ---- liveness and the end


def test_a_handler_that_does_not_come_back_is_told_with_its_message_and_ends_the_consumer_by_choice(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, [b"a", b"b"], partition=0)
    consumer = consumer_of(cluster, stuck_after=0.5, on_stuck="stop", drain_timeout=0.5, shutdown_timeout=6.0)
    forever = threading.Event()

    def handle(message: Message) -> None:
        if message.offset() == 1:
            forever.wait()

    try:
        with pytest.raises(SafeKafkaError, match=r"has not come back from orders\[0\]@1"):
            run(consumer, handle)
    finally:
        forever.set()
    assert "handler_stuck topic='orders' partition=0 offset=1" in caplog.text
    assert "handler_abandoned" in caplog.text
    assert not consumer.health().ok
    assert committed(cluster)[0] == 1


def test_C6_an_async_handler_that_never_returns_does_not_keep_run_from_ending(cluster: MockCluster) -> None:
    fill(cluster, [b"a"], partition=0)
    consumer = consumer_of(cluster, drain_timeout=0.5, shutdown_timeout=6.0)

    async def handle(_: Message) -> None:
        consumer.stop()
        await asyncio.sleep(3600)

    began = time.monotonic()
    run(consumer, handle)
    assert time.monotonic() - began < 30
    assert committed(cluster)[0] == 0


def test_current_tells_a_handler_that_its_time_is_running_out(cluster: MockCluster) -> None:
    fill(cluster, [b"a"], partition=0)
    consumer = consumer_of(cluster, drain_timeout=10.0)
    seen: list[tuple[bool, bool]] = []

    def handle(_: Message) -> None:
        now = safekafka.current()
        seen.append((now.revoked, now.deadline is None))
        consumer.stop()
        wait_until(lambda: now.revoked, 10, "to hear of the stop")
        assert now.deadline is not None
        seen.append((now.revoked, 5 < now.deadline - time.monotonic() <= 10))

    run(consumer, handle)
    assert seen == [(False, True), (True, True)]
    assert committed(cluster)[0] == 1
    with pytest.raises(SafeKafkaError, match="in a handler"):
        safekafka.current()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, MemoryError, asyncio.CancelledError])
@pytest.mark.parametrize("kind", ["sync", "async", "batch"])
def test_B_C30_what_is_not_the_messages_fault_stops_the_consumer_and_commits_nothing_of_it(
    cluster: MockCluster, error: type[BaseException], kind: str
) -> None:
    fill(cluster, [b"a", b"b"], partition=0)
    consumer = consumer_of(cluster, dead_letter=DEAD, concurrency=2, drain_timeout=1.0)

    def handle(_: Any) -> None:
        raise error

    async def handle_async(_: Any) -> None:
        raise error

    with pytest.raises(error):
        if kind == "batch":
            consumer.run_batches(handle, max_wait=0.1)
        else:
            consumer.run(handle if kind == "sync" else handle_async)
    assert committed(cluster)[0] == 0
    assert not read_log(cluster.bootstrap_servers, DEAD, timeout=20)


# ---- in a running loop


def test_arun_handles_as_tasks_of_the_running_loop(cluster: MockCluster) -> None:
    fill(cluster, [b"%d" % (n % 5) for n in range(90)])

    async def main() -> tuple[int, bool]:
        consumer = consumer_of(cluster, concurrency=10, order="key")
        loop = asyncio.get_running_loop()
        count = 0
        same = True

        async def handle(_: Message) -> None:
            nonlocal count, same
            same &= asyncio.get_running_loop() is loop
            await asyncio.sleep(0.001)
            count += 1
            if count == 90:
                consumer.stop()

        await asyncio.wait_for(consumer.arun(handle), 60)
        return count, same

    assert asyncio.run(main()) == (90, True)
    assert sum(committed(cluster).values()) == 90


def test_arun_cancelled_stops_the_consumer_with_what_was_finished_committed(cluster: MockCluster) -> None:
    fill(cluster, [b"a"] * 5, partition=0)

    async def main() -> None:
        consumer = consumer_of(cluster, drain_timeout=1.0)
        third = asyncio.Event()

        async def handle(message: Message) -> None:
            if message.offset() == 3:
                third.set()
                await asyncio.sleep(3600)

        task = asyncio.create_task(consumer.arun(handle))
        await asyncio.wait_for(third.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not consumer.health().ok

    asyncio.run(main())
    assert committed(cluster)[0] == 3


@pytest.mark.parametrize("called", ["in a handler", "in another task"])
def test_C6_close_on_the_loop_of_arun_lets_handlers_finish(cluster: MockCluster, called: str) -> None:
    fill(cluster, [b"a"] * 5, partition=0)

    async def main() -> None:
        consumer = consumer_of(cluster)
        begun = asyncio.Event()

        async def handle(_: Message) -> None:
            begun.set()
            if called == "in a handler":
                consumer.close()
            await asyncio.sleep(0.5)

        task = asyncio.create_task(consumer.arun(handle))
        await asyncio.wait_for(begun.wait(), 30)
        began = time.monotonic()
        if called == "in another task":
            consumer.close()
        await task
        assert time.monotonic() - began < 10

    asyncio.run(main())
    assert committed(cluster)[0] == 1


def test_arun_raises_what_stopped_the_consumer(cluster: MockCluster) -> None:
    fill(cluster, [b"a"], partition=0)

    async def main() -> None:
        async def handle(_: Message) -> None:
            raise Reject("never")

        with pytest.raises(HandlerFailed):
            await consumer_of(cluster).arun(handle)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"concurrency": 0}, "concurrency=0"),
        ({"concurrency": True}, "concurrency=True"),
        ({"order": "keys"}, "order='keys'"),
        ({"stuck_after": 0}, "stuck_after=0"),
        ({"on_stuck": "kill"}, "on_stuck='kill'"),
        ({"max_in_flight": 0.5}, "max_in_flight=0.5"),
        ({"value_deserializer": "json"}, "value_deserializer='json'"),
    ],
)
def test_an_impossible_option_is_refused_by_name_and_value(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g"}, [TOPIC], **options)


def yields(_: Message) -> Iterator[None]:
    yield


async def yields_async(_: Message) -> AsyncIterator[None]:
    yield


class Yields:
    def __call__(self, _: Message) -> Iterator[None]:
        yield


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (None, "handler=None: give a function"),
        (yields, "has a yield.*count as handled"),
        (yields_async, "has a yield"),
        (Yields(), "has a yield"),
        (functools.partial(yields), "has a yield"),
        (lambda: None, "with one argument: too many"),
        (lambda _, other: other, "with one argument: missing.*'other'"),
    ],
)
def test_C1_a_handler_that_can_handle_nothing_is_refused_before_a_message_is_taken(handler: Any, text: str) -> None:
    """Else every message counts as handled, or goes to the dead letter topic."""
    with SafeConsumer({"bootstrap.servers": "127.0.0.1:1", "group.id": "g"}, [TOPIC]) as consumer:
        for run_ in (consumer.run, consumer.run_batches, lambda handler: asyncio.run(consumer.arun(handler))):
            with pytest.raises(ValueError, match=text):
                run_(handler)
        with pytest.raises(ValueError, match=r"max_records=0\.5"):
            consumer.run_batches(print, max_records=0.5)  # type: ignore[arg-type]


def test_seek_from_a_handler_goes_on_at_the_offset_though_messages_wait(cluster: MockCluster) -> None:
    fill(cluster, [None] * 10, partition=0)
    consumer = consumer_of(cluster, concurrency=3)
    begun: list[int] = []

    def handle(message: Message) -> None:
        begun.append(message.offset() or 0)
        if begun[-1] == 5 and begun.count(5) == 1:
            consumer.seek(TopicPartition(TOPIC, 0, 2))
        if begun[-1] == 9 and begun.count(2) == 2:
            consumer.stop()

    run(consumer, handle, 20)
    assert begun[:6] == [0, 1, 2, 3, 4, 5]
    assert begun[-8:] == [2, 3, 4, 5, 6, 7, 8, 9]
    assert committed(cluster)[0] == 10


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_C4_a_handler_that_does_not_come_back_holds_up_no_other_key(cluster: MockCluster, is_async: bool) -> None:
    """Though its worker had taken more than one lane at once, as it does while handlers are quick."""
    fill(cluster, [b"%d" % number for number in range(3_000)], partition=0)
    consumer = consumer_of(cluster, order="key", concurrency=4)
    seen: set[int] = set()
    go_on = threading.Event()

    def handle(message: Message) -> None:
        seen.add(message.offset() or 0)
        if message.offset() in (1_000, 2_000):
            go_on.wait(60)

    async def ahandle(message: Message) -> None:
        seen.add(message.offset() or 0)
        if message.offset() in (1_000, 2_000):
            await asyncio.to_thread(go_on.wait, 60)

    thread = threading.Thread(target=consumer.run, args=(ahandle if is_async else handle,))
    thread.start()
    try:
        wait_until(lambda: len(seen) == 3_000, 20, lambda: f"{len(seen)} of 3,000")
    finally:
        go_on.set()
        consumer.stop()
        thread.join(60)
