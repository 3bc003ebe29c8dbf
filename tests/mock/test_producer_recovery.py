"""SafeProducer without a spool when the client can't go on, a topic refuses records, or the cluster is away."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError, cimpl

from safekafka import (
    DeliveryFailed,
    DeliveryUnknown,
    ProducerFatalError,
    Receipt,
    SafeProducer,
    UndeliveredError,
)
from safekafka.producer import direct, recovery
from safekafka.producer.direct import DirectDelivery
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey, _handle, load_librdkafka
from tests.mock.conftest import TOPIC
from tests.processes import wait_until


def log_of(cluster: MockCluster, topic: str = TOPIC, partition: int = 0) -> list[int]:
    messages = read_log(cluster.bootstrap_servers, topic, timeout=30)
    return [int((m.value() or b"").split()[0]) for m in messages if m.partition() == partition]


def in_order(numbers: list[int]) -> bool:
    firsts = list(dict.fromkeys(numbers))
    return firsts == sorted(firsts)


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests in flight at a fatal error are not waited for as long as a real broker might need."""
    monkeypatch.setattr(recovery, "FATAL_WAIT_SECONDS", 0.5)


@pytest.mark.parametrize("brokers", ["up", "down"])
def test_P6_a_fatal_error_is_healed_and_nothing_is_lost_or_overtaken(
    cluster: MockCluster,
    make: Callable[..., SafeProducer],
    caplog: pytest.LogCaptureFixture,
    no_waits: None,
    brokers: str,
) -> None:
    producer = make()
    first = producer.raw_client
    producer.send(TOPIC, b"0", partition=0).result(30)
    if brokers == "down":
        cluster.set_broker_down()
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(1, 300)]
    cluster.trigger_fatal_error(producer, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost the thread")
    receipts += [producer.send(TOPIC, str(n), partition=0) for n in range(300, 600)]
    if brokers == "down":
        wait_until(lambda: producer.stats().rebuilds == 1, 30, "a new client")
        cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert {receipt.status for receipt in receipts} == {"delivered"}
    log = log_of(cluster)
    assert sorted(set(log)) == list(range(600))
    assert in_order(log)
    stats = producer.stats()
    assert stats.rebuilds == 1
    assert len(log) - 600 <= stats.sent_again
    assert "client_rebuilt" in caplog.text
    assert "lost the thread" in caplog.text
    assert producer.raw_client is not first
    wait_until(lambda: producer.health().ok, 10, lambda: str(producer.health()))  # looked at every 20 ms


def test_P6_on_fatal_report_ends_the_records_in_doubt_instead_of_sending_them_again(
    cluster: MockCluster, make: Callable[..., SafeProducer], no_waits: None
) -> None:
    producer = make(on_fatal="report")
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.set_broker_down()
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(1, 100)]
    cluster.trigger_fatal_error(producer)
    wait_until(lambda: all(receipt.done() for receipt in receipts), 30, "outcomes")
    cluster.set_broker_up()
    assert {receipt.status for receipt in receipts} == {"unknown"}
    later = producer.send(TOPIC, b"100", partition=0)
    assert later.result(30).partition == 0
    assert log_of(cluster) == [0, 100]
    with pytest.raises(UndeliveredError) as caught:
        producer.close()
    assert caught.value.count == 99


def test_P6_too_many_fatal_errors_in_a_row_end_the_producer_loudly(
    cluster: MockCluster, make: Callable[..., SafeProducer], no_waits: None, caplog: pytest.LogCaptureFixture
) -> None:
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.set_broker_down()
    receipt = producer.send(TOPIC, b"1", partition=0)
    for n in range(recovery.MAX_REBUILDS):
        client = producer.raw_client
        cluster.trigger_fatal_error(producer)
        wait_until(lambda client=client: producer.raw_client is not client, 30, f"rebuild {n}")  # type: ignore[misc]
    cluster.trigger_fatal_error(producer)
    with pytest.raises(DeliveryUnknown):
        receipt.result(30)
    for call in (lambda: producer.send(TOPIC, b"2"), producer.flush, producer.close):
        with pytest.raises(ProducerFatalError, match="did not help"):
            call()
    assert "producer_fatal" in caplog.text
    assert not producer.health().ok


def test_B_P02_all_receipts_end_although_flush_raises_in_the_client(
    cluster: MockCluster, make: Callable[..., SafeProducer], no_waits: None
) -> None:
    producer = make()
    producer.send(TOPIC, b"0").result(30)
    cluster.set_broker_down()
    receipts = [producer.send(TOPIC, str(n)) for n in range(100)]
    cluster.trigger_fatal_error(producer)
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert all(receipt.done() for receipt in receipts)


def test_P1_one_record_too_large_among_many_fails_alone_and_order_is_kept(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    # The mock has no limit of its own: the broker's verdict on each batch that holds the culprit is played.
    producer = make({"linger.ms": 50})
    producer.send(TOPIC, b"0 warm", partition=0).result(30)
    culprit = 700
    receipts: list[Receipt] = []
    cluster.push_request_errors(ApiKey.Produce, *([KafkaError.MSG_SIZE_TOO_LARGE] * 1))
    for n in range(1, 1_500):
        receipts.append(producer.send(TOPIC, f"{n} " + "x" * 50, partition=0))
    assert producer.flush(60) == 0
    assert {receipt.status for receipt in receipts} == {"delivered"}
    log = log_of(cluster)
    assert log == list(range(1_500)), culprit


def test_P1_a_record_that_is_refused_alone_fails_and_the_next_goes_on(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.push_request_errors(ApiKey.Produce, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.MSG_SIZE_TOO_LARGE)
    refused = producer.send(TOPIC, b"1", partition=0)
    with pytest.raises(DeliveryFailed, match="is not in Kafka"):
        refused.result(30)
    assert producer.send(TOPIC, b"2", partition=0).result(30).offset == 1
    assert log_of(cluster) == [0, 2]


def test_a_blocked_topic_waits_and_goes_on_in_order_while_others_flow(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "safekafka")
    cluster.create_topic("other", partitions=1)
    producer = make()
    for topic in (TOPIC, "other"):
        producer.send(topic, b"0", partition=0).result(30)
    cluster.push_request_errors(ApiKey.Produce, *([KafkaError.TOPIC_AUTHORIZATION_FAILED] * 3))
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(1, 50)]
    wait_until(lambda: producer.stats().blocked_topics == (TOPIC,), 30, "blocked")
    assert "refuses records" in producer.health().problems[0]
    receipts += [producer.send(TOPIC, str(n), partition=0) for n in range(50, 100)]
    assert producer.send("other", b"1", partition=0).result(30).offset == 1
    assert producer.flush(30) == 0
    assert {receipt.status for receipt in receipts} == {"delivered"}
    assert log_of(cluster) == list(range(100))
    assert producer.stats().blocked_topics == ()
    wait_until(lambda: "topic_unblocked" in caplog.text, 30, "event")
    assert caplog.text.count(f"topic_blocked topic={TOPIC!r}") == 1  # told once


def test_a_blocked_topic_that_stays_blocked_ends_its_records_in_time(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make(delivery_timeout=3.0)
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.push_request_errors(ApiKey.Produce, *([KafkaError.TOPIC_AUTHORIZATION_FAILED] * 1_000))
    first = producer.send(TOPIC, b"1", partition=0)
    wait_until(lambda: bool(producer.stats().blocked_topics), 30, "blocked")
    later = [producer.send(TOPIC, str(n), partition=0) for n in range(2, 20)]
    began = time.monotonic()
    with pytest.raises(DeliveryUnknown, match="refuses records"):
        first.result(30)
    for receipt in later[5:]:
        with pytest.raises(DeliveryFailed, match="refuses records"):
            receipt.result(30)
    assert time.monotonic() - began < 10
    cluster.clear_request_errors(ApiKey.Produce)
    assert producer.send(TOPIC, b"20", partition=0).result(30)


def test_P1_in_an_outage_what_was_never_sent_ends_as_failed_and_is_never_delivered(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    producer = make(delivery_timeout=3.0)
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.set_broker_down()
    with_client = producer.send(TOPIC, b"1", partition=0)
    wait_until(lambda: "cluster_unreachable" in caplog.text, 30, "outage noticed")
    wait_until(lambda: _way(producer)._gate is None, 30, "held back")
    held = [producer.send(TOPIC, str(n), partition=0) for n in range(2, 50)]
    assert producer.stats().held == 48
    assert with_client.exception(30).__class__ is DeliveryUnknown
    assert {receipt.exception(30).__class__ for receipt in held} == {DeliveryFailed}
    cluster.set_broker_up()
    assert producer.send(TOPIC, b"50", partition=0).result(30)
    log = log_of(cluster)
    assert log in ([0, 1, 50], [0, 50])
    wait_until(lambda: producer.stats().late == log.count(1), 30, "late report")


def test_records_held_back_in_an_outage_are_delivered_in_order_and_once_when_it_ends(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.set_broker_down()
    receipts = [producer.send(TOPIC, b"1", partition=0)]
    wait_until(lambda: _way(producer)._gate is None, 30, "held back")
    receipts += [producer.send(TOPIC, str(n), partition=0) for n in range(2, 1_000)]
    assert not producer.health().ok
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    assert log_of(cluster) == list(range(1_000))
    wait_until(lambda: _way(producer)._gate is not None, 30, "the straight way again")


def test_a_record_keeps_the_time_of_its_send_though_it_was_held_back(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    cluster.set_broker_down()
    producer.send(TOPIC, b"0", partition=0)
    wait_until(lambda: _way(producer)._gate is None, 30, "held back")
    before = time.time() * 1000
    receipt = producer.send(TOPIC, b"1", partition=0)
    after = time.time() * 1000
    time.sleep(0.5)
    cluster.set_broker_up()
    receipt.result(30)
    message = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)[1]
    assert before - 20 <= message.timestamp()[1] <= after + 20


def test_P4_what_is_held_back_is_bounded_too(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 50}, max_block=0.2)
    producer.send(TOPIC, b"0", partition=0)
    wait_until(lambda: _way(producer)._gate is None, 30, "held back")
    for n in range(1, 50):
        producer.send(TOPIC, str(n), partition=0)
    with pytest.raises(BufferError):
        producer.send(TOPIC, b"50", partition=0)
    cluster.set_broker_up()
    assert producer.flush(30) == 0
    assert log_of(cluster) == list(range(50))


def test_a_partition_that_does_not_exist_fails_its_record_alone(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_rtt(None, 0.5)  # so that the client can't know the topic's partitions yet
    producer = make()
    wrong = producer.send(TOPIC, b"1", partition=99)
    cluster.set_rtt(None, 0.0)
    with pytest.raises(DeliveryFailed, match="no partition 99"):
        wrong.result(30)
    assert producer.send(TOPIC, b"2", partition=0).result(30)
    with pytest.raises(ValueError, match="no partition 99"):
        producer.send(TOPIC, b"3", partition=99)
    assert len(producer) == 0


def test_a_client_that_is_wedged_though_the_cluster_is_well_is_replaced(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "WEDGED_SECONDS", 1.0)
    monkeypatch.setattr(direct, "WELL_SECONDS", 0.5)
    monkeypatch.setattr(direct, "_WEDGED_ASK_SECONDS", 0.5)
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    _pause_producing(producer)
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(1, 20)]
    assert producer.flush(60) == 0
    assert {receipt.status for receipt in receipts} == {"delivered"}
    assert producer.stats().rebuilds == 1
    assert log_of(cluster) == list(range(20))


def test_a_healthy_client_is_kept_through_a_long_outage_and_does_not_send_again_what_it_has(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "WEDGED_SECONDS", 1.0)
    monkeypatch.setattr(direct, "_WEDGED_ASK_SECONDS", 0.1)
    producer = make()
    client = producer.raw_client
    producer.send(TOPIC, b"0", partition=0).result(30)
    _way(producer)._well_since = time.monotonic() - direct.WELL_SECONDS  # an answer that came late, after another one
    cluster.set_broker_down()
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(1, 20)]
    time.sleep(3)  # an outage lasts: well beyond WEDGED_SECONDS
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    assert {receipt.status for receipt in receipts} == {"delivered"}
    assert producer.stats().rebuilds == 0
    assert producer.raw_client is client


def test_P1_what_an_earlier_client_had_is_unknown_though_every_later_client_refuses_it(
    cluster: MockCluster, make: Callable[..., SafeProducer], no_waits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make()
    way = _way(producer)
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.start_request_tracking()
    cluster.set_rtt(None, 3.0)  # it will be appended, and its acknowledgement be on the way for long
    receipt = producer.send(TOPIC, b"1", partition=0)
    wait_until(lambda: bool(cluster.requests(ApiKey.Produce)), 30, "the record at the broker")
    make_client = way._make_client

    def make_ill_client(gapless: bool) -> Any:
        client, watch = make_client(gapless)
        load_librdkafka().rd_kafka_test_fatal_error(
            ctypes.c_void_p(_handle(load_librdkafka(), client)), KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, b"ill"
        )
        return client, watch

    monkeypatch.setattr(way, "_make_client", make_ill_client)
    cluster.trigger_fatal_error(producer, KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER, "lost the thread")
    wait_until(receipt.done, 30, "an outcome")
    assert receipt.status == "unknown"
    cluster.set_rtt(None, 0.0)
    assert log_of(cluster) == [0, 1]


@pytest.mark.parametrize("seen", [True, False], ids=["in time to be seen", "too late to be seen"])
def test_P3_a_sender_who_comes_through_the_gate_of_a_client_given_up_meanwhile_is_neither_lost_nor_overtaken(
    cluster: MockCluster, make: Callable[..., SafeProducer], seen: bool
) -> None:
    producer = make(delivery_timeout=30.0)
    way = _way(producer)
    producer.send(TOPIC, b"0", partition=0).result(30)
    way._known.topics.add(TOPIC)  # so no lock is taken on the way
    old, old_gate = way.client, way._gate
    arrived, may_go = threading.Event(), threading.Event()

    class SlowGate:
        """The thread loses the processor between the look at the gate and the client."""

        __self__ = old

        def __call__(self, *arguments: Any) -> None:
            receipt = arguments[4].__self__
            if not seen:
                state = way._open.pop(receipt)
            arrived.set()
            may_go.wait()
            if not seen:
                way._open[receipt] = state
            assert old_gate is not None
            old_gate(*arguments)

    way._gate = SlowGate()
    receipts: list[Receipt] = []

    def send() -> None:
        receipts.append(producer.send(TOPIC, b"1", partition=0))
        receipts.append(producer.send(TOPIC, b"2", partition=0))

    sender = threading.Thread(target=send)
    sender.start()
    assert arrived.wait(10)
    way._recovery.wait_no_longer()
    way._on_fatal(KafkaError(KafkaError._TIMED_OUT, "wedged"))
    wait_until(lambda: way.client is not old and way._gate is not None, 30, "a new client")
    may_go.set()
    sender.join(30)
    for receipt in receipts:
        receipt.result(10)
    assert producer.flush(10) == 0
    assert (len(way._held), len(producer)) == (0, 0)
    producer.send(TOPIC, b"3", partition=0).result(10)
    assert list(dict.fromkeys(log_of(cluster))) == [0, 1, 2, 3]


def test_on_delivery_of_a_record_that_was_refused_at_first_gets_the_message_of_its_delivery(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.push_request_errors(ApiKey.Produce, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    told: list[Any] = []
    producer.produce(TOPIC, b"1", partition=0, headers={"a": b"b"}, on_delivery=lambda *report: told.append(report))
    assert producer.flush(30) == 0
    ((error, message),) = told
    assert error is None
    assert message.error() is None
    assert (message.topic(), message.partition(), message.offset(), message.value()) == (TOPIC, 0, 1, b"1")


def test_B_P25_a_producer_built_while_another_ends_gets_its_records_acknowledged(
    cluster: MockCluster, make: Callable[..., SafeProducer], no_waits: None
) -> None:
    for n in range(5):
        old = make()
        old.send(TOPIC, b"0", partition=0)
        ending = threading.Thread(target=old.close)
        other = make()
        cluster.trigger_fatal_error(other)
        ending.start()
        new = make()
        assert new.send(TOPIC, str(n), partition=0).result(30)
        assert other.send(TOPIC, str(n), partition=0).result(30)
        ending.join(30)
        new.close()


def _way(producer: SafeProducer) -> DirectDelivery:
    assert isinstance(producer._way, DirectDelivery)
    return producer._way


def _pause_producing(producer: SafeProducer) -> None:
    """librdkafka's own switch, which no Python call reaches: the client stops sending, and says nothing."""
    library: Any = load_librdkafka()
    extension = ctypes.CDLL(cimpl.__file__)
    for name, result, arguments in (
        ("rd_kafka_topic_partition_list_new", ctypes.c_void_p, [ctypes.c_int]),
        ("rd_kafka_topic_partition_list_add", ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32]),
        ("rd_kafka_pause_partitions", ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p]),
    ):
        function = getattr(extension, name)
        function.restype, function.argtypes = result, arguments
    partitions = extension.rd_kafka_topic_partition_list_new(1)
    extension.rd_kafka_topic_partition_list_add(partitions, TOPIC.encode(), 0)
    assert extension.rd_kafka_pause_partitions(_handle(library, producer.raw_client), partitions) == 0


class Changing(dict[Any, int]):
    """Somebody sends between the two steps of each second look."""

    looks = 0

    def __iter__(self) -> Any:
        self.pop("sent meanwhile", None)
        found = super().__iter__()
        self.looks += 1
        if self.looks % 2:
            self["sent meanwhile"] = 1
        return found


def test_P1_records_expire_although_others_are_sent_while_they_are_looked_for(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make(delivery_timeout=0.5)
    way = producer._way
    assert isinstance(way, DirectDelivery)
    way._open = Changing(way._open)
    receipts = [producer.send(TOPIC, str(number), partition=0) for number in range(10)]
    errors = [receipt.exception(timeout=30) for receipt in receipts]
    assert all(isinstance(error, (DeliveryFailed, DeliveryUnknown)) for error in errors)
    assert way._open.looks > 10
    assert way._death is None, "the outcomes are those of the thread's end"
