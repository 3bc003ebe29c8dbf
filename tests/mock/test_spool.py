"""SafeProducer with a spool, against mock brokers that can be taken down, slowed and made to refuse."""

from __future__ import annotations

import contextlib
import gc
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaError

from safekafka import (
    ClosedError,
    DeliveryFailed,
    DeliveryUnknown,
    InvalidRecordError,
    ProducerFatalError,
    Receipt,
    Record,
    SafeProducer,
    Spool,
    SpoolCorruptError,
    SpoolFullError,
    SpoolUnusableError,
    UndeliveredError,
)
from safekafka.spool import drain as drain_module
from safekafka.spool import lane as lane_module
from safekafka.spool import sender, spooled
from safekafka.spool.journal import Journal
from safekafka.spool.spooled import SpooledDelivery
from safekafka.testing import MockCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from safekafka.testing.mock import ApiKey
from tests.mock.conftest import TOPIC
from tests.processes import wait_until


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


def test_P5_a_record_is_durable_when_send_returns_although_no_broker_answers(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make()
    receipt = producer.send(TOPIC, b"0")
    assert receipt.durable
    assert receipt.status == "pending"
    assert (producer.flush(0.2), len(producer)) == (1, 1)
    cluster.set_broker_up()
    assert receipt.result(60).topic == TOPIC
    assert producer.flush(30) == 0
    assert numbers(cluster) == [0]


def test_P5_what_was_left_is_sent_by_the_next_start_before_anything_new_and_as_it_was(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.set_broker_down()
    producer = make()
    headers: list[tuple[str, bytes | None]] = [("a", None), ("a", b"")]
    receipts = [producer.send(TOPIC, str(n), b"k", headers, 2) for n in range(100)]
    receipts.append(producer.send(TOPIC, b"100", partition=2, timestamp=1_700_000_000_000))
    producer.close(0.2)
    assert "spool_left" in caplog.text
    with pytest.raises(DeliveryUnknown, match="on the disk"):
        receipts[0].result(0)
    assert receipts[0].durable
    cluster.set_broker_up()
    producer = make()
    assert "spool_recovered" in caplog.text
    producer.send(TOPIC, b"101", partition=2)
    assert producer.flush(30) == 0
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    assert [int(m.value() or b"") for m in messages] == list(range(102))
    *sent, identity = messages[0].headers() or []
    assert sent == headers
    assert identity[0] == "safekafka.id"
    assert str(identity[1]).endswith("-1'")
    assert messages[0].key() == b"k"
    assert messages[100].timestamp()[1] == 1_700_000_000_000


def test_B_S06_a_spool_that_was_delivered_and_closed_sends_nothing_again(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    for n in range(500):
        producer.send(TOPIC, str(n))
    producer.close(30)
    producer = make()
    assert len(producer) == 0
    producer.close(30)
    assert sorted(numbers(cluster)) == list(range(500))


def test_B_S06_a_restarted_program_that_sends_nothing_still_drains_its_spool(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make()
    producer.send(TOPIC, b"0")
    producer.close(0.1)
    cluster.set_broker_up()
    assert make().flush(30) == 0
    assert numbers(cluster) == [0]


def test_P3_order_of_each_thread_is_kept_with_outages_in_between(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()

    def send(thread: int) -> None:
        for n in range(150):
            producer.send(TOPIC, str(thread * 1_000 + n), key=str(thread))

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.05)
        cluster.set_broker_down()
        time.sleep(0.05)
        cluster.set_broker_up()
    for thread in threads:
        thread.join(60)
    assert producer.flush(60) == 0
    accepted = [Entry(str(thread).encode(), thread * 1_000 + n) for thread in range(4) for n in range(150)]
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    report = audit_log(accepted, log_entries(messages, lambda message: int(message.value() or b"")))
    assert (report.lost, report.out_of_order, report.unexpected) == (0, 0, 0), report


def test_B_S08_a_record_appended_as_the_sender_goes_to_sleep_is_delivered(
    make: Callable[..., SafeProducer],
) -> None:
    producer = make()
    for _ in range(200):
        producer.send(TOPIC, b"0").result(5)


def test_a_verdict_on_a_batch_rejects_none_of_its_records(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make()
    for n in range(50):
        producer.send(TOPIC, str(n), partition=1)
    cluster.push_request_errors(ApiKey.Produce, KafkaError.MSG_SIZE_TOO_LARGE)
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    assert producer.rejected() == []
    assert numbers(cluster) == list(range(50))


def test_B_S10_a_record_that_fails_alone_is_kept_in_rejected_and_the_others_flow(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    producer = make()
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2)  # in a batch of one, then alone
    bad = producer.send(TOPIC, b"0", b"k", {"a": b"1"}, partition=1)
    with pytest.raises(DeliveryFailed, match="rejected"):
        bad.result(30)
    producer.send(TOPIC, b"1", partition=1)
    assert producer.flush(30) == 0
    (rejected,) = producer.rejected()
    assert rejected.fields[:4] == (TOPIC, b"0", b"k", [("a", b"1")])
    assert "large" in rejected.reason
    assert numbers(cluster) == [1]
    assert "record_rejected" in caplog.text
    producer.close(10)
    assert [row.seq for row in make().rejected()] == [rejected.seq]


def test_a_rejected_record_nobody_looked_at_is_raised_by_flush(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.INVALID_RECORD] * 2)
    producer.send(TOPIC, b"0", b"k")
    with pytest.raises(UndeliveredError) as caught:
        producer.flush(30)
    assert caught.value.failures[0].record.key == b"k"


def test_a_topic_that_is_missing_blocks_and_rejects_nothing_and_goes_on_by_itself(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    producer = make({"topic.metadata.propagation.max.ms": 200})
    for n in range(20):
        producer.send("later", str(n), partition=0)
    while "topic_blocked" not in caplog.text:
        time.sleep(0.05)
    cluster.create_topic("later", partitions=1)
    assert producer.flush(60) == 0
    assert producer.rejected() == []
    assert numbers(cluster, "later") == list(range(20))
    assert "topic_unblocked" in caplog.text


def test_P6_a_fatal_client_error_is_healed_by_a_new_client_and_nothing_is_lost(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    before = producer.raw_client
    for n in range(1, 100):
        producer.send(TOPIC, str(n), partition=0)
    cluster.trigger_fatal_error(producer, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost the thread")
    for n in range(100, 200):
        producer.send(TOPIC, str(n), partition=0)
    assert producer.flush(60) == 0
    assert producer.raw_client is not before
    assert "client_rebuilt" in caplog.text
    log = numbers(cluster)
    assert [n for i, n in enumerate(log) if n not in log[:i]] == list(range(200))  # nothing lost, first copies in order


def test_P4_a_full_spool_blocks_for_max_block_then_raises_and_works_again_once_there_is_room(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    cluster.set_broker_down()
    producer = make(spool=Spool(tmp_path / "small", max_bytes=2_000), max_block=0.3)
    accepted = 0
    with pytest.raises(SpoolFullError, match=r"max_bytes=2000.*nothing was dropped.*Remedy"):
        for _ in range(100):
            producer.send(TOPIC, str(accepted).encode() + b" " * 200, partition=0)
            accepted += 1
    assert 5 < accepted < 12
    cluster.set_broker_up()
    producer._way._max_block = 60
    producer.send(TOPIC, str(accepted), partition=0)
    assert producer.flush(30) == 0
    assert numbers(cluster) == list(range(accepted + 1))


def test_a_record_larger_than_the_clients_limit_is_refused_before_it_is_accepted(
    make: Callable[..., SafeProducer],
) -> None:
    producer = make({"message.max.bytes": 2_000})
    with pytest.raises(InvalidRecordError, match=r"message\.max\.bytes=2000"):
        producer.send(TOPIC, b"x" * 5_000)
    assert len(producer) == 0


@pytest.mark.parametrize("full", ["max_bytes", "disk"])
def test_P4_a_callback_that_sends_into_a_full_spool_is_refused_at_once(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch, full: str
) -> None:
    """It runs on the thread that makes room."""
    producer = make(max_block=3_600)
    refused: list[BaseException] = []

    def no_room(rows: Sequence[bytes]) -> int:
        raise SpoolFullError("database or disk is full")

    def send_again(_: Receipt) -> None:
        with monkeypatch.context() as patch:
            if full == "disk":
                patch.setattr(way(producer)._journal, "append", no_room)
            else:
                patch.setattr(SpooledDelivery, "_has_room", lambda self: False)
            try:
                producer.send(TOPIC, b"1")
            except SpoolFullError as error:
                refused.append(error)

    producer.send(TOPIC, b"0").add_done_callback(send_again)
    wait_until(lambda: bool(refused), 30, "refused")
    producer.send(TOPIC, b"2").result(30)
    assert sorted(numbers(cluster)) == [0, 2]


def test_P4_receipts_nobody_holds_take_no_memory_and_callbacks_run_all_the_same(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "WINDOW", 10)
    monkeypatch.setattr(drain_module, "_FRESH_RECORDS", 5)
    cluster.set_broker_down()
    producer = make()
    told: list[Receipt] = []
    for n in range(40):
        producer.send(TOPIC, str(n))
    producer.send(TOPIC, b"40").add_done_callback(told.append)
    wait_until(lambda: len(way(producer)._open) == 5, 10, "half of the window is with the client")
    gc.collect()
    drain = way(producer)._own
    assert len(drain.fresh) + len(drain.receipts) <= 5 + 5 + 1  # with the client, in memory, waited for
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    assert [receipt.status for receipt in told] == ["delivered"]
    assert not way(producer)._watched
    assert not drain.receipts
    assert sorted(numbers(cluster)) == list(range(41))


def test_producers_that_share_a_spool_have_a_lane_each(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    first, second = make(), make()
    first.send(TOPIC, b"0", partition=0)
    second.send(TOPIC, b"1", partition=1)
    assert first.flush(30) == second.flush(30) == 0
    assert sorted(path.name for path in (tmp_path / "spool").iterdir()) == ["lane-0", "lane-1"]
    assert sorted(numbers(cluster)) == [0, 1]


def test_a_refused_setting_leaves_no_folder_behind(make: Callable[..., SafeProducer], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="acks"):
        make({"acks": 1}, spool=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def damage_one(spool: Path, seq: int) -> None:
    with contextlib.closing(sqlite3.connect(spool / "lane-0" / "journal.sqlite3")) as file:
        (data,) = file.execute("SELECT fields FROM record WHERE seq = ?", (seq,)).fetchone()
        file.execute("UPDATE record SET fields = ? WHERE seq = ?", (data[:-1] + bytes([data[-1] ^ 1]), seq))
        file.commit()


def test_B_S03_a_damaged_record_is_kept_aside_and_told_and_the_others_are_delivered_in_order(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.set_broker_down()
    producer = make()
    for n in range(20):
        producer.send(TOPIC, str(n), partition=0)
    producer.close(0.1)
    damage_one(tmp_path / "spool", 8)
    cluster.set_broker_up()
    producer = make()
    assert producer.flush(30) == 0
    assert numbers(cluster) == [n for n in range(20) if n != 7]
    (told,) = [record.getMessage() for record in caplog.records if "record_damaged" in record.getMessage()]
    assert "seqs='8'" in told
    producer.close(10)
    with contextlib.closing(sqlite3.connect(tmp_path / "spool" / "lane-0" / "journal.sqlite3")) as file:
        assert file.execute("SELECT seq FROM damaged").fetchall() == [(8,)]


def test_P5_nothing_is_accepted_into_a_journal_that_was_deleted_and_what_was_is_delivered(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    """By a cleaner of old files, say. SQLite itself would write on, and the end of the process would take it away."""
    cluster.set_broker_down()
    producer = make()
    producer.send(TOPIC, b"0", partition=0)
    (tmp_path / "spool" / "lane-0" / "journal.sqlite3").unlink()
    time.sleep(spooled._FREE_LOOK_SECONDS)
    for _ in range(3):
        with pytest.raises(SpoolUnusableError, match=r"is gone.*Remedy"):
            producer.send(TOPIC, b"1", partition=0)
    assert any("is gone" in problem for problem in producer.health().problems)
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert numbers(cluster) == [0]


def test_P5_nothing_is_accepted_into_a_lane_that_another_process_made_anew_and_what_was_is_delivered(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    cluster.set_broker_down()
    first = make()
    first.send(TOPIC, b"0", partition=0)
    shutil.rmtree(tmp_path / "spool" / "lane-0")
    second = make()
    second.send(TOPIC, b"1", partition=1)
    time.sleep(spooled._FREE_LOOK_SECONDS)
    for _ in range(2):
        with pytest.raises(SpoolUnusableError, match=r"is gone \(another file is in its place\).*Remedy"):
            first.send(TOPIC, b"2", partition=0)
    cluster.set_broker_up()
    assert first.flush(30) == 0
    first.close(10)
    second.send(TOPIC, b"3", partition=1)
    assert second.flush(30) == 0
    assert sorted(numbers(cluster)) == [0, 1, 3]


def test_B_S11_records_of_a_deleted_journal_that_could_not_be_sent_are_told_as_lost(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.set_broker_down()
    producer = make()
    producer.send(TOPIC, b"0", partition=0)
    (tmp_path / "spool" / "lane-0" / "journal.sqlite3").unlink()
    producer.close(0.1)
    assert "spool_left" not in caplog.text
    assert re.search(r"spool_records_lost .* records=1 ", caplog.text)


def test_B_S11_what_is_lost_with_a_deleted_journal_is_told_though_the_delivery_thread_died(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    cluster.set_broker_down()
    producer = make()
    producer.send(TOPIC, b"0", partition=0)
    (tmp_path / "spool" / "lane-0" / "journal.sqlite3").unlink()

    def fail() -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(way(producer)._sender, "turn", fail)
    wait_until(lambda: way(producer).ended and not way(producer)._thread.is_alive(), 10, "the thread ended")
    assert "thread_died" in caplog.text
    assert "spool_left" not in caplog.text
    assert caplog.text.count("spool_records_lost") == 1
    assert re.search(r"spool_records_lost .* records=1 ", caplog.text)


@pytest.mark.parametrize("deleted", [(0,), (1,), (0, 1)])
def test_B_S11_each_lane_whose_journal_was_deleted_is_told_as_lost_and_the_others_as_left(
    cluster: MockCluster,
    make: Callable[..., SafeProducer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    deleted: tuple[int, ...],
) -> None:
    """The second is the adopted one of a dead process."""
    monkeypatch.setattr(sender, "_ADOPT_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(sender, "_ADOPT_SECONDS", 0.1)
    cluster.set_broker_down()
    for count, old in zip((2, 3), [make(), make()], strict=True):
        old.send_many([Record(TOPIC, str(n), partition=0) for n in range(count)])
        old.close(0.1)
    cluster.set_topic_error(TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    cluster.set_broker_up()
    producer = make()
    wait_until(lambda: producer.stats().lanes == 2, 30, lambda: caplog.text)
    for number in deleted:
        (tmp_path / "spool" / f"lane-{number}" / "journal.sqlite3").unlink()
    caplog.clear()
    producer.close(0.1)
    told = {
        int(lane): int(n) for lane, n in re.findall(r"records_lost lane='.*lane-(\d)' .* records=(\d) ", caplog.text)
    }
    assert told == {number: number + 2 for number in deleted}
    left = re.findall(r"spool_left .* records=(\d) ", caplog.text)
    assert left == [str(number + 2) for number in range(2) if number not in deleted]


def test_B_S11_the_receipt_of_a_record_lost_with_its_journal_does_not_promise_that_the_next_start_sends_it(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of one that is on its way, nor of one that waits behind it."""
    monkeypatch.setattr(sender, "WINDOW", 10)
    cluster.set_broker_down()
    producer = make()
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(20)]
    wait_until(lambda: len(way(producer)._open) == 5, 10, "half of the window is with the client")
    (tmp_path / "spool" / "lane-0" / "journal.sqlite3").unlink()
    producer.close(0.1)
    for receipt in receipts:
        with pytest.raises(DeliveryUnknown, match=r"may or may not be in Kafka.*lane-0'.*was deleted\. Remedy"):
            receipt.result(0)


def test_damage_stops_the_spool_loudly_where_it_is_to_be_refused(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    cluster.set_broker_down()
    producer = make()
    producer.send(TOPIC, b"0")
    producer.close(0.1)
    damage_one(tmp_path / "spool", 1)
    cluster.set_broker_up()
    producer = make(spool=Spool(tmp_path / "spool", on_damage="refuse"))
    with pytest.raises(ProducerFatalError, match="checksum"):
        for _ in range(1_000):
            producer.send(TOPIC, b"1")
            time.sleep(0.01)
    for call in (producer.flush, producer.close):
        with pytest.raises(ProducerFatalError, match="checksum"):
            call()
    assert numbers(cluster) == []


def test_P5_a_lane_that_cannot_be_opened_holds_up_no_other_and_is_sent_when_it_can(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    """At the start it is the first lane, so the start would have taken it."""
    monkeypatch.setattr(sender, "_ADOPT_AFTER_SECONDS", 0.1)
    monkeypatch.setattr(sender, "_ADOPT_SECONDS", 0.1)
    monkeypatch.setattr(lane_module, "_AGAIN_SECONDS", 0.0)
    cluster.set_broker_down()
    producers = [make() for _ in range(3)]
    for n, producer in enumerate(producers):
        producer.send(TOPIC, str(n), partition=0)
    for producer in producers:
        producer.close(0.1)
    lane = tmp_path / "spool" / "lane-0"
    about = (lane / "lane.json").read_text()
    (lane / "lane.json").write_text(about[:20])
    cluster.set_broker_up()
    producer = make()
    wait_until(lambda: sorted(numbers(cluster)) == [1, 2], 30, lambda: caplog.text)
    assert any(str(lane) in problem for problem in producer.health().problems)
    (lane / "lane.json").write_text(about)
    wait_until(lambda: sorted(numbers(cluster)) == [0, 1, 2], 30, lambda: caplog.text)
    assert caplog.text.count("lane_unusable") == 1
    assert "spool_sender_failing" not in caplog.text
    wait_until(lambda: producer.health().ok, 30, lambda: str(producer.health()))


def test_B_S02_a_disk_that_refuses_while_a_failure_is_settled_loses_none_of_the_others(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make()
    journal = producer._way._journal  # type: ignore[union-attr]
    reject, refusals = journal.reject, [SpoolFullError("disk full"), SpoolFullError("disk full")]

    def refusing(*arguments: Any) -> None:
        if refusals:
            raise refusals.pop()
        reject(*arguments)

    monkeypatch.setattr(journal, "reject", refusing)
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2)
    bad = producer.send(TOPIC, b"0", partition=1)
    producer.send(TOPIC, b"1", partition=1)
    assert bad.exception(60) is not None
    assert producer.flush(60) == 0
    assert not refusals
    assert len(producer.rejected()) == 1
    assert numbers(cluster) == [1]


def test_B_S02_a_disk_that_refuses_to_be_read_is_told_once_and_everything_is_sent_when_it_is_well_again(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    cluster.set_broker_down()
    producer = make()
    producer.send_many([Record(TOPIC, str(n), partition=0) for n in range(100)])
    producer.close(0.1)
    read, refusals = Journal.read, 3

    def refusing(*arguments: Any) -> Any:
        nonlocal refusals
        if arguments[0].count and refusals:
            refusals -= 1
            raise SpoolUnusableError("the spool's disk refused: disk I/O error")
        return read(*arguments)

    monkeypatch.setattr(Journal, "read", refusing)
    cluster.set_broker_up()
    producer = make()
    wait_until(lambda: "spool_sender_failing" in caplog.text, 10, "told")
    assert any("refuses" in problem for problem in producer.health().problems)
    assert producer.flush(30) == 0
    assert refusals == 0
    assert numbers(cluster) == list(range(100))
    assert caplog.text.count("spool_sender_failing") == 1
    assert producer.health().ok


def test_B_S03_a_file_found_damaged_while_it_is_drained_is_mended_and_told_and_the_flow_goes_on(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path, monkeypatch: Any, caplog: Any
) -> None:
    """Here SQLite calls a file damaged that is not, so all of it can be read."""
    cluster.set_broker_down()
    producer = make()
    producer.send_many([Record(TOPIC, str(n), partition=0) for n in range(100)])
    producer.close(0.1)
    producer = make()
    journal, read = way(producer)._journal, Journal.read
    found = threading.Event()

    def damaged(*arguments: Any) -> Any:
        if not found.is_set():
            found.set()
            raise SpoolCorruptError("database disk image is malformed")
        return read(*arguments)

    monkeypatch.setattr(journal, "is_damaged", found.is_set)
    monkeypatch.setattr(Journal, "read", damaged)
    wait_until(found.is_set, 10, "read")
    producer.send(TOPIC, b"100", partition=0)
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert numbers(cluster) == list(range(101))
    assert "spool_mended" in caplog.text
    # With the evidence; that there were none is said in it.
    wait_until(lambda: "spool_records_lost" in caplog.text, 10, lambda: caplog.text)
    assert list((tmp_path / "spool" / "lane-0").glob("damaged-*.sqlite3"))


@pytest.mark.parametrize("refusals", [0, 1], ids=["", "no-room-at-first"])
def test_B_S03_damage_met_while_somebody_waits_for_all_to_be_through_ends_nothing(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch, caplog: Any, refusals: int
) -> None:
    cluster.set_broker_down()
    producer = make()
    receipts = producer.send_many([Record(TOPIC, str(n), partition=0) for n in range(100)])
    journal = way(producer)._journal
    delete, mend = Journal.delete, Journal.mend
    found, flushed = threading.Event(), threading.Event()

    def damaged(*arguments: Any) -> Any:
        if way(producer)._flushing and "spool_mended" not in caplog.text:
            found.set()
            raise SpoolCorruptError("database disk image is malformed")
        return delete(*arguments)

    def without_room(self: Journal) -> None:
        if "spool_sender_failing" not in caplog.text and refusals:
            raise SpoolFullError("no room on the disk")
        mend(self)

    monkeypatch.setattr(journal, "is_damaged", lambda: found.is_set() and "spool_mended" not in caplog.text)
    monkeypatch.setattr(Journal, "delete", damaged)
    monkeypatch.setattr(Journal, "mend", without_room)
    flushing = threading.Thread(target=lambda: (producer.flush(60), flushed.set()))
    flushing.start()
    wait_until(lambda: bool(way(producer)._flushing), 10, "somebody waits")
    cluster.set_broker_up()
    assert flushed.wait(60), caplog.text
    flushing.join()
    assert found.is_set()
    assert "thread_died" not in caplog.text
    assert caplog.text.count("spool_sender_failing") == refusals
    assert {receipt.status for receipt in receipts} == {"delivered"}
    assert numbers(cluster) == list(range(100))
    assert producer.stats().pending == 0


def test_a_folder_that_goes_with_its_container_is_told_at_the_start(
    make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lane_module, "look", lambda folder, durability: "its records are lost with the container")
    make()
    assert re.search("spool_on_unsafe_disk .*lost with the container", caplog.text)


def test_send_many_is_one_write_to_the_disk(make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch) -> None:
    producer = make()
    journal = way(producer)._journal
    append, written = journal.append, []

    def counted(rows: Any) -> int:
        written.append(len(rows))
        return append(rows)

    monkeypatch.setattr(journal, "append", counted)
    receipts = producer.send_many([Record(TOPIC, str(n), partition=0) for n in range(25_000)])
    assert written == [25_000]
    assert all(receipt.durable for receipt in receipts)
    producer.send(TOPIC, b"25000", partition=0)
    assert written == [25_000, 1]


def test_P1_receipts_have_an_outcome_although_the_disk_refuses_the_end(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    cluster.set_broker_down()
    producer = make()
    receipt = producer.send(TOPIC, b"0")
    journal = producer._way._journal  # type: ignore[union-attr]
    close = journal.close

    def refusing() -> None:
        close()
        raise OSError("disk error")

    monkeypatch.setattr(journal, "close", refusing)
    producer.close(0.1)
    assert receipt.status == "unknown"
    assert "thread_died" in caplog.text


def test_a_closed_producer_refuses_and_close_is_idempotent(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    producer.close()
    producer.close()
    with pytest.raises(ClosedError):
        producer.send(TOPIC, b"0")
    with pytest.raises(ClosedError):
        producer.rejected()


def test_durability_process_accepts_and_delivers_as_well(
    cluster: MockCluster, make: Callable[..., SafeProducer], tmp_path: Path
) -> None:
    producer = make(spool=Spool(tmp_path / "fast", durability="process"))
    for n in range(500):
        producer.send(TOPIC, str(n), partition=0)
    assert producer.flush(30) == 0
    assert numbers(cluster) == list(range(500))
