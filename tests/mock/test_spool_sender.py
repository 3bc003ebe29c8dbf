"""What the spool sends and in which order, while topics refuse records and partitions are stuck."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from safekafka import (
    DeliveryFailed,
    Receipt,
    Record,
    SafeProducer,
    Spool,
    SpoolFullError,
    SpoolUnusableError,
    UndeliveredError,
)
from safekafka.spool import drain as drain_module
from safekafka.spool import sender, stuck
from safekafka.spool.retention import RetentionWatch
from safekafka.spool.spooled import SpooledDelivery
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.mock.conftest import TOPIC
from tests.processes import wait_until

OTHER = "payments"


@pytest.fixture(autouse=True)
def all_events(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="safekafka")


@pytest.fixture
def make(make: Callable[..., SafeProducer], tmp_path: Path) -> Callable[..., SafeProducer]:
    def make_one(config: dict[str, Any] | None = None, **options: Any) -> SafeProducer:
        return make(config, **{"spool": tmp_path / "spool", **options})

    return make_one


def way(producer: SafeProducer) -> SpooledDelivery:
    assert isinstance(producer._way, SpooledDelivery)
    return producer._way


def numbers(cluster: MockCluster, topic: str = TOPIC) -> list[int]:
    return [int(m.value() or b"") for m in read_log(cluster.bootstrap_servers, topic, timeout=30)]


def test_a_topic_that_refuses_records_waits_in_order_while_others_flow(
    cluster: MockCluster,
    make: Callable[..., SafeProducer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """More than the window holds, so its records have to be passed over on the disk, and found again."""
    monkeypatch.setattr(sender, "WINDOW", 100)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 50)
    cluster.create_topic(OTHER, partitions=1, replication_factor=3)
    cluster.set_topic_error(TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    producer = make()
    for n in range(500):
        producer.send(TOPIC, str(n), partition=0)
        producer.send(OTHER, str(n), partition=0)
    wait_until(lambda: producer.stats().delivered == 500, 60, lambda: str(producer.stats()))
    assert producer.stats().blocked_topics == (TOPIC,)
    assert numbers(cluster, OTHER) == list(range(500))
    assert "topic_blocked" in caplog.text
    cluster.set_topic_error(TOPIC, None)
    assert producer.flush(60) == 0
    assert numbers(cluster) == list(range(500))
    assert producer.rejected() == []
    assert "topic_unblocked" in caplog.text


def test_many_topics_that_refuse_records_hold_up_no_other(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each there are more records than the window holds."""
    monkeypatch.setattr(sender, "WINDOW", 100)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 50)
    refusing = [f"refusing-{number}" for number in range(6)]
    for topic in (OTHER, *refusing):
        cluster.create_topic(topic, partitions=1, replication_factor=3)
        if topic != OTHER:
            cluster.set_topic_error(topic, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    producer = make()
    for topic in (*refusing, OTHER):
        producer.send_many([Record(topic, str(n), partition=0) for n in range(150)])
    wait_until(lambda: producer.stats().delivered == 150, 60, lambda: str(producer.stats()))
    assert numbers(cluster, OTHER) == list(range(150))
    for topic in refusing:
        cluster.set_topic_error(topic, None)
    assert producer.flush(60) == 0
    assert all(numbers(cluster, topic) == list(range(150)) for topic in refusing)


def test_a_topic_blocked_at_the_end_goes_on_with_the_next_start(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    cluster.set_topic_error(TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    for n in range(50):
        producer.send(TOPIC, str(n), partition=0)
    wait_until(lambda: producer.stats().blocked_topics == (TOPIC,), 30, "the topic is blocked")
    producer.close(0.5)
    cluster.set_topic_error(TOPIC, None)
    producer = make()
    assert producer.flush(30) == 0
    assert numbers(cluster) == list(range(50))


def test_records_of_a_topic_blocked_for_too_long_are_rejected_by_choice(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "WINDOW", 20)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 5)
    cluster.create_topic(OTHER, partitions=1, replication_factor=3)
    producer = make(spool=Spool(tmp_path / "spool", reject_blocked_after=1.0))
    cluster.set_topic_error(TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(100)]
    producer.send(OTHER, b"0").result(30)
    with pytest.raises(DeliveryFailed, match=r"refused records for more than 1 s.*rejected\(\)"):
        receipts[99].result(30)
    with pytest.raises(UndeliveredError) as raised:
        producer.flush(30)
    assert raised.value.count == 99
    assert [int(record.fields[1] or b"") for record in producer.rejected()] == list(range(100))
    assert len(producer) == 0
    producer.close(10)
    cluster.set_topic_error(TOPIC, None)
    assert numbers(cluster) == []


def test_a_stuck_partition_holds_half_of_the_window_and_the_others_flow(
    cluster: MockCluster,
    make: Callable[..., SafeProducer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sender, "WINDOW", 100)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 50)
    monkeypatch.setattr(stuck, "STUCK_SECONDS", 0.5)
    for partition in range(4):
        cluster.set_leader(TOPIC, partition, 1 if partition == 0 else 2)
    producer = make()
    for partition in range(4):
        producer.send(TOPIC, b"0", partition=partition).result(30)
    cluster.set_broker_down(1)
    stop = threading.Event()

    def send() -> None:
        n = 1
        while not stop.is_set():
            producer.send_many([Record(TOPIC, str(n), partition=partition) for partition in range(4)])
            n += 1
            time.sleep(0.002)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        wait_until(lambda: "partition_stuck" in caplog.text, 30, lambda: str(producer.stats()))
        before = producer.stats().delivered
        wait_until(lambda: producer.stats().delivered > before + 300, 30, lambda: str(producer.stats()))
    finally:
        stop.set()
        thread.join()
    drain = way(producer)._own
    assert sum(receipt.fields()[4] == 0 for receipt in list(drain.open.values())) <= 50
    cluster.set_broker_up(1)
    assert producer.flush(60) == 0
    log = [(m.partition(), int(m.value() or b"")) for m in read_log(cluster.bootstrap_servers, TOPIC, timeout=30)]
    for partition in range(4):
        sent = [n for at, n in log if at == partition]
        assert [n for i, n in enumerate(sent) if n not in sent[:i]] == list(range(max(sent) + 1))


@pytest.mark.parametrize("by", ["number", "size", "the client's queue"])
def test_partitions_that_get_stuck_one_after_another_hold_up_no_other(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch, by: str, caplog: Any
) -> None:
    """Of each there are more records, or bytes, than the window holds, or than the program lets the client queue."""
    config = {}
    if by == "the client's queue":
        config = {"queue.buffering.max.messages": 200}
    elif by == "number":
        monkeypatch.setattr(sender, "WINDOW", 100)
    else:
        monkeypatch.setattr(sender, "_WINDOW_BYTES", 100_000)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 50)
    monkeypatch.setattr(stuck, "STUCK_SECONDS", 0.5)
    for partition, leader in enumerate((1, 2, 3, 3)):
        cluster.set_leader(TOPIC, partition, leader)
    producer = make(config)
    receipts = [producer.send(TOPIC, b"0", partition=partition) for partition in range(4)]
    assert [receipt.result(30).partition for receipt in receipts] == [0, 1, 2, 3]
    for partition in (0, 1):
        cluster.set_broker_down(partition + 1)
        producer.send_many([Record(TOPIC, str(n) + " " * 1_000, partition=partition) for n in range(1, 201)])
        told = f"partition_stuck topic='{TOPIC}' partition={partition} "
        wait_until(lambda told=told: told in caplog.text, 30, "told")  # type: ignore[misc]
    producer.send_many([Record(TOPIC, str(n) + " " * 1_000, partition=2) for n in range(1, 201)])
    wait_until(lambda: producer.stats().delivered == 204, 60, lambda: str(producer.stats()))
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    for partition, last in enumerate((200, 200, 200, 0)):
        messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
        sent = [int(m.value() or b"") for m in messages if m.partition() == partition]
        assert [n for i, n in enumerate(sent) if n not in sent[:i]] == list(range(last + 1))


def test_a_partition_that_is_not_there_blocks_its_topic_and_rejects_nothing(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.create_topic(OTHER, partitions=1, replication_factor=3)
    producer = make()
    producer.send(TOPIC, b"0", partition=99)
    producer.send(OTHER, b"0").result(30)
    wait_until(lambda: producer.stats().blocked_topics == (TOPIC,), 30, "the topic is blocked")
    assert producer.rejected() == []
    wait_until(lambda: len(producer) == 1, 10, "the other one is delivered and deleted")


def test_tasks_send_in_the_order_of_their_calls_and_the_loop_goes_on(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make()
    journal = way(producer)._journal
    append, writers = journal.append, set()

    def noted(rows: Any) -> int:
        writers.add(threading.current_thread())
        return append(rows)

    monkeypatch.setattr(journal, "append", noted)

    async def main() -> list[Receipt]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        receipts = await asyncio.gather(*(producer.asend(TOPIC, str(n), partition=0) for n in range(300)))
        assert all(receipt.durable for receipt in receipts)
        for receipt in receipts:
            await receipt
        ticking.cancel()
        assert ticks > 10
        return list(receipts)

    asyncio.run(main())
    assert numbers(cluster) == list(range(300))
    assert writers
    assert threading.current_thread() not in writers, "the loop waited for the disk"


def test_a_task_cancelled_while_it_waits_for_room_has_not_sent(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    cluster.set_broker_down()
    producer = make(spool=Spool(tmp_path / "small", max_bytes=100), max_block=30)

    async def main() -> None:
        await producer.asend(TOPIC, b"0" + b" " * 200, partition=0)
        waiting = [asyncio.create_task(producer.asend(TOPIC, str(n), partition=0)) for n in (1, 2)]
        done, _ = await asyncio.wait(waiting, timeout=0.3)
        assert not done
        waiting[0].cancel()
        cluster.set_broker_up()
        with pytest.raises(asyncio.CancelledError):
            await waiting[0]
        await (await waiting[1])

    asyncio.run(main())
    assert producer.flush(30) == 0
    assert numbers(cluster) == [0, 2]


def test_asend_gives_up_at_max_block_in_a_full_spool(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    cluster.set_broker_down()
    producer = make(spool=Spool(tmp_path / "small", max_bytes=100), max_block=0.3)

    async def main() -> None:
        await producer.asend(TOPIC, b" " * 200)
        with pytest.raises(SpoolFullError, match="max_bytes=100"):
            await producer.asend(TOPIC, b"1")

    asyncio.run(main())
    assert len(producer) == 1


def test_a_disk_with_less_room_than_min_free_bytes_is_full(
    make: Callable[..., SafeProducer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    producer = make(spool=Spool(tmp_path / "spool", min_free_bytes=1 << 60), max_block=0.3)
    with pytest.raises(SpoolFullError, match=r"min_free_bytes.*nothing was dropped"):
        producer.send(TOPIC, b"0")
    assert "spool_full" in caplog.text
    assert not producer.health().ok
    assert len(producer) == 0


def test_records_from_memory_and_from_the_disk_keep_their_order(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of what was just appended is tiny, so the sender goes back and forth between it and the disk."""
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 3)
    monkeypatch.setattr(sender, "WINDOW", 40)
    producer = make()
    for n in range(0, 3_000, 10):
        producer.send_many([Record(TOPIC, str(n + i), partition=0) for i in range(10)])
    assert producer.flush(60) == 0
    assert numbers(cluster) == list(range(3_000))


def test_stats_tell_what_the_spool_holds(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make()
    producer.send(TOPIC, b"0").result(30)
    time.sleep(0.3)  # the age has been looked at, and there was none: the next look at its time is in 5 s
    cluster.set_broker_down()
    for n in range(10):
        producer.send(TOPIC, str(n), timestamp=int(time.time() * 1000) - 90_000)
    wait_until(lambda: producer.stats().oldest_pending_seconds is not None, 2, "the age was looked at")
    stats = producer.stats()
    assert (stats.pending, stats.rejected, stats.lanes) == (10, 0, 1)
    assert stats.bytes > 0
    assert 89 < (stats.oldest_pending_seconds or 0) < 150
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    wait_until(lambda: way(producer)._sender.oldest_at is None, 2, "the age went with the records")
    producer.send(TOPIC, b"0")
    assert (producer.stats().oldest_pending_seconds or 0) < 10
    assert producer.flush(30) == 0


def test_stats_tell_the_rejected_records_after_the_end_and_raise_nothing_when_the_disk_refuses(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make()
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2)
    assert producer.send(TOPIC, b"0", partition=0).exception(30) is not None
    assert producer.stats().rejected == 1

    def refuse() -> int:
        raise SpoolUnusableError("disk I/O error")

    with monkeypatch.context() as patched:
        patched.setattr(way(producer)._journal, "rejected_count", refuse)
        assert producer.stats().rejected == 1
    producer.close(10)
    assert producer.stats().rejected == 1


def test_an_old_record_is_told_and_kept(
    cluster: MockCluster,
    make: Callable[..., SafeProducer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(sender, "_AGE_SECONDS", 0.05)
    cluster.set_broker_down()
    producer = make(spool=Spool(tmp_path / "spool", max_age=0.2))
    producer.send(TOPIC, b"0")
    wait_until(lambda: "spool_old" in caplog.text, 20, "told")
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert numbers(cluster) == [0]


def test_records_older_than_the_retention_of_a_younger_topic_are_told_though_many_of_another_lie_before_them(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In front are more records of the one topic than a look takes: the other's are found where they are the next, and
    while they wait for their topic. Only the ages are looked at here: mock brokers tell no retention."""
    monkeypatch.setattr(sender, "_AGE_RECORDS", 50)
    monkeypatch.setattr(sender, "WINDOW", 100)
    looked: list[dict[str, float]] = []
    monkeypatch.setattr(sender, "_AGE_SECONDS", 0.05)
    monkeypatch.setattr(RetentionWatch, "look", lambda self, age, ages: looked.append(ages()))
    cluster.set_broker_down()
    producer = make()
    now = int(time.time() * 1000)

    def send(topic: str, count: int, seconds: int) -> None:
        producer.send_many([Record(topic, str(n), partition=0, timestamp=now - seconds * 1000) for n in range(count)])

    def told(**ages: float) -> bool:
        return bool(looked) and all(abs(looked[-1].get(topic, 0) - age) < 30 for topic, age in ages.items())

    send(TOPIC, 80, 9_000)
    send("second", 60, 6_000)
    wait_until(lambda: told(orders=9_000, second=6_000), 20, lambda: str(looked[-1:]))
    send(TOPIC, 200, 5_000)
    send("third", 2, 3_000)
    for topic in ("second", "third"):
        cluster.create_topic(topic, partitions=1, replication_factor=3)
        cluster.set_topic_error(topic, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    cluster.set_broker_up()
    wait_until(lambda: producer.stats().delivered == 280, 60, lambda: str(producer.stats()))
    send(TOPIC, 200, 100)
    wait_until(lambda: producer.stats().delivered == 480, 60, lambda: str(producer.stats()))
    wait_until(lambda: told(second=6_000, third=3_000), 20, lambda: str(looked[-1:]))
    wait_until(lambda: producer.stats().pending == 62, 10, lambda: str(producer.stats()))
    for topic in ("second", "third"):
        cluster.set_topic_error(topic, None)
    assert producer.flush(60) == 0


def test_ids_tell_a_record_again_and_can_be_left_out(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    producer = make()
    for n in range(3):
        producer.send(TOPIC, str(n), partition=0)
    assert producer.flush(30) == 0
    producer.close(10)
    producer = make(spool=Spool(tmp_path / "other", record_ids=False))
    producer.send(TOPIC, b"3", partition=0)
    assert producer.flush(30) == 0
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    ids = [dict(message.headers() or []).get("safekafka.id") for message in messages]
    assert ids[3] is None
    assert len(set(ids)) == 4


def test_a_spool_refuses_to_leave_a_fate_open(make: Callable[..., SafeProducer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"on_fatal='report'.*Leave on_fatal out"):
        make(on_fatal="report")
