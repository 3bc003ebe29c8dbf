"""Code written for confluent_kafka's `Producer` works with `SafeProducer` in its place.

The same: `produce()` with the raw client's names, positions and defaults; str, bytes and None as key and value; headers
as dict or list; `callback=` or `on_delivery=` called once with (None, Message) or (KafkaError, Message); `poll()`,
`flush()`, `len()`, `bool()`, `list_topics()`, `set_sasl_credentials()`, `with`; error_cb, stats_cb, throttle_cb, logger
and partitioner in the config; `BufferError` when the buffer is full; subclasses.

Different on purpose:
- Callbacks run on the delivery thread whether or not somebody polls. So a lone record is reported without `poll()`,
  and what a callback raises can't surface from `poll()` or `flush()`: it is told by an event, and the callbacks behind
  it run. Inside a callback `poll()` returns 0 at once, `flush()` and `close()` raise: they would wait for themselves.
- A full buffer is waited for, `max_block` seconds, before `BufferError`.
- A record that can't be sent raises `InvalidRecordError` (a `ValueError`) from `produce()`: the raw client raises
  `TypeError`, `OverflowError` or `KafkaException`, or takes it and fails later (illegal topic names, negative
  partitions, a header name with a NUL, which it cuts).
- `on_delivery`/`dr_cb` and `transactional.id` in the config are refused: reports belong to the receipts, and there are
  no transactions. So `init_transactions()` and its like do not exist; nor does `purge()`, which drops records, nor
  `produce_batch()`, for which there is `send_many()`.
- `message.timeout.ms` is refused: the clock is `delivery_timeout`, and its end is told as `_MSG_TIMED_OUT`.
- Failures without an `on_delivery` are raised by `flush()` and `close()`, which the raw client passes over.
- After `close()` every call raises `ClosedError` instead of `RuntimeError`. `close()` is bounded, and returns None.
- `flush(timeout)` counts what was produced before it, not what other threads produce meanwhile.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import TIMESTAMP_CREATE_TIME, KafkaError, KafkaException, Message, Producer

from safekafka import (
    BufferFullError,
    ClosedError,
    InvalidRecordError,
    SafeKafkaError,
    SafeProducer,
    UndeliveredError,
    UnsafeConfigError,
)
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.mock.conftest import TOPIC
from tests.processes import wait_until


class Reports:
    """An on_delivery that keeps what it was told, and on which thread."""

    def __init__(self) -> None:
        self.all: list[tuple[KafkaError | None, Message]] = []
        self.threads: set[threading.Thread] = set()

    def __call__(self, error: KafkaError | None, message: Message) -> None:
        self.all.append((error, message))
        self.threads.add(threading.current_thread())

    def wait(self, count: int, seconds: float = 30) -> list[tuple[KafkaError | None, Message]]:
        wait_until(lambda: len(self.all) >= count, seconds, lambda: f"{count} reports, only {len(self.all)}")
        return self.all


def log_of(cluster: MockCluster) -> list[Message]:
    return read_log(cluster.bootstrap_servers, TOPIC, timeout=30)


# ---- produce(): what it takes


@pytest.mark.parametrize("value", [None, b"", "", b"\x00\xff", "Zoë ☃", "text"])
@pytest.mark.parametrize("key", [None, b"", "Zoë", b"\xff"])
def test_keys_and_values_arrive_as_from_the_raw_client(
    cluster: MockCluster, make: Callable[..., SafeProducer], value: Any, key: Any
) -> None:
    producer = make()
    assert producer.produce(TOPIC, value, key) is None  # type: ignore[func-returns-value]
    assert producer.flush(30) == 0
    (message,) = log_of(cluster)
    expected = tuple(field.encode() if isinstance(field, str) else field for field in (value, key))
    assert (message.value(), message.key()) == expected


def test_the_topic_alone_is_enough(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make()
    producer.produce(TOPIC)
    producer.produce(topic=TOPIC)
    assert producer.flush(30) == 0
    assert [(message.value(), message.key(), message.headers()) for message in log_of(cluster)] == [(None,) * 3] * 2


def test_arguments_go_by_position_as_in_the_raw_client(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    reports, other = Reports(), Reports()
    producer = make()
    producer.produce(TOPIC, "v", "k", 2, reports)
    producer.produce(TOPIC, "v", "k", 2, None, other, 1_700_000_000_123, {"h": "1"})
    assert producer.flush(30) == 0
    first, second = log_of(cluster)
    assert [(m.value(), m.key(), m.partition()) for m in (first, second)] == [(b"v", b"k", 2)] * 2
    assert (second.timestamp(), second.headers()) == ((TIMESTAMP_CREATE_TIME, 1_700_000_000_123), [("h", b"1")])
    assert (len(reports.all), len(other.all)) == (1, 1)


def test_arguments_go_by_name_as_in_the_raw_client(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    reports = Reports()
    producer = make()
    producer.produce(
        headers=[("h", b"1")],
        timestamp=1_700_000_000_123,
        on_delivery=reports,
        partition=3,
        key=b"k",
        value=b"v",
        topic=TOPIC,
    )
    assert producer.flush(30) == 0
    (message,) = log_of(cluster)
    assert (message.value(), message.key(), message.partition(), message.headers()) == (b"v", b"k", 3, [("h", b"1")])
    assert message.timestamp() == (TIMESTAMP_CREATE_TIME, 1_700_000_000_123)
    assert len(reports.all) == 1


BINARY = struct.pack("hhl", 1, 2, 3)


@pytest.mark.parametrize(
    ("headers", "arrived"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ([("name", "text")], [("name", b"text")]),
        (
            [("a", "1"), ("none", None), ("a", "2"), ("empty", "")],
            [("a", b"1"), ("none", None), ("a", b"2"), ("empty", b"")],
        ),
        ({"a": "1", "none": None, "empty": b""}, [("a", b"1"), ("none", None), ("empty", b"")]),
        ([("binary", BINARY)], [("binary", BINARY)]),
        ({"ort": "Småland", "bytes": "Småland".encode()}, [("ort", "Småland".encode()), ("bytes", "Småland".encode())]),
        ([("Småland", "1")], [("Småland", b"1")]),
    ],
)
def test_headers_arrive_as_from_the_raw_client(
    cluster: MockCluster, make: Callable[..., SafeProducer], headers: Any, arrived: Any
) -> None:
    producer = make()
    producer.produce(TOPIC, "v", headers=headers)
    assert producer.flush(30) == 0
    (message,) = log_of(cluster)
    assert message.headers() == arrived


@pytest.mark.parametrize("headers", [("a", "b"), ["malformed"], {"number": 1234}, [("a", "b", "c")], "a=b", 7])
def test_malformed_headers_are_refused_at_once(
    cluster: MockCluster, make: Callable[..., SafeProducer], headers: Any
) -> None:
    producer = make()
    with pytest.raises(InvalidRecordError, match="header"):
        producer.produce(TOPIC, "v", headers=headers)
    assert len(producer) == 0
    assert log_of(cluster) == []


@pytest.mark.parametrize("timestamp", [0, None])
def test_no_timestamp_means_now(cluster: MockCluster, make: Callable[..., SafeProducer], timestamp: Any) -> None:
    producer = make()
    before = int(time.time() * 1000)
    producer.produce(TOPIC, "v", timestamp=timestamp)
    assert producer.flush(30) == 0
    (message,) = log_of(cluster)
    assert before <= message.timestamp()[1] <= int(time.time() * 1000)


def test_partition_minus_one_means_the_partitioners_choice(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make({"partitioner": "murmur2"})
    for n in range(40):
        producer.produce(TOPIC, str(n), key=str(n % 8), partition=-1)
    assert producer.flush(30) == 0
    homes: dict[bytes | None, set[int | None]] = {}
    for message in log_of(cluster):
        homes.setdefault(message.key(), set()).add(message.partition())
    assert len(homes) == 8
    assert all(len(partitions) == 1 for partitions in homes.values())
    assert len(set().union(*homes.values())) > 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"value": 7},
        {"key": 7.5},
        {"value": {"a": 1}},
        {"value": "\udc80"},
        {"partition": -2},
        {"partition": 2**31},
        {"partition": "0"},
        {"timestamp": -5},
        {"timestamp": 1.5},
        {"timestamp": 2**63},
        {"topic": ""},
        {"topic": "no spaces"},
        {"topic": None},
        {"topic": b"orders"},
        {"headers": {"cut\0here": "1"}},
        {"value": b"v" * 1_000_000},
    ],
    ids=lambda arguments: str(arguments)[:40],
)
def test_what_can_not_be_sent_is_a_value_error_at_once_and_is_not_reported(
    cluster: MockCluster, make: Callable[..., SafeProducer], arguments: dict[str, Any]
) -> None:
    reports = Reports()
    producer = make()
    with pytest.raises(ValueError) as caught:
        producer.produce(**{"topic": TOPIC, "on_delivery": reports, **arguments})
    assert isinstance(caught.value, InvalidRecordError)
    assert len(producer) == 0
    assert producer.flush(10) == 0
    assert reports.all == []


def test_a_record_is_too_large_from_the_same_byte_on(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make({"message.max.bytes": 2_000})
    largest = 0
    for size in range(1_900, 2_001):
        try:
            producer.raw_client.produce(TOPIC, b"v" * size, partition=0)
            largest = size
        except KafkaException as error:
            if error.args[0].code() != KafkaError.MSG_SIZE_TOO_LARGE:
                raise
    producer.produce(TOPIC, b"v" * largest, partition=1)
    with pytest.raises(InvalidRecordError, match=r"message\.max\.bytes=2000"):
        producer.produce(TOPIC, b"v" * (largest + 1), partition=1)
    assert producer.flush(30) == 0
    assert [len(m.value() or b"") for m in log_of(cluster) if m.partition() == 1] == [largest]


def test_a_callback_that_can_not_be_called_is_refused_at_once(make: Callable[..., SafeProducer]) -> None:
    """The raw client takes it, and fails when the report comes."""
    producer = make()
    for name in ("callback", "on_delivery"):
        with pytest.raises(TypeError, match="on_delivery"):
            producer.produce(TOPIC, "v", **{name: 7})
    assert len(producer) == 0


# ---- on_delivery


@pytest.mark.parametrize("name", ["callback", "on_delivery"])
def test_a_delivery_is_told_with_the_message(
    cluster: MockCluster, make: Callable[..., SafeProducer], name: str
) -> None:
    reports = Reports()
    producer = make()
    producer.produce(TOPIC, "first", partition=1)
    producer.produce(TOPIC, "Zoë", "k", 1, **{name: reports})
    assert producer.flush(30) == 0
    ((error, message),) = reports.all
    assert error is None
    assert message.error() is None
    assert (message.topic(), message.partition(), message.offset()) == (TOPIC, 1, 1)
    assert (message.value(), message.key()) == ("Zoë".encode(), b"k")
    assert len(message) == len("Zoë".encode())


@pytest.mark.parametrize("timestamp", [0, 1_700_000_000_123])
def test_the_message_of_a_delivery_is_that_of_the_raw_client(
    cluster: MockCluster, make: Callable[..., SafeProducer], timestamp: int
) -> None:
    """Its timestamp as well: given by the broker where it has an opinion, as the mock brokers do."""
    of_raw, of_ours = Reports(), Reports()
    raw, ours = Producer({"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}), make()
    for producer, reports, partition in ((raw, of_raw, 0), (ours, of_ours, 1)):
        producer.produce(TOPIC, "v", "k", partition, timestamp=timestamp, on_delivery=reports)
        assert producer.flush(30) == 0
    told = [
        (error, m.topic(), m.offset(), m.value(), m.key(), m.timestamp(), m.error(), m.latency() is not None)
        for ((error, m),) in (of_raw.all, of_ours.all)
    ]
    assert told[1] == told[0]


def test_of_two_callbacks_callback_is_called_as_in_the_raw_client(make: Callable[..., SafeProducer]) -> None:
    reports, other = Reports(), Reports()
    producer = make()
    producer.produce(TOPIC, "v", callback=reports, on_delivery=other)
    assert producer.flush(30) == 0
    assert (len(reports.all), len(other.all)) == (1, 0)


def test_P1_each_record_is_reported_once_and_in_order(make: Callable[..., SafeProducer]) -> None:
    reports = Reports()
    producer = make()
    for n in range(3_000):
        producer.produce(TOPIC, str(n), partition=n % 4, on_delivery=reports)
        producer.poll(0)
    assert producer.flush(60) == 0
    assert [error for error, _ in reports.all] == [None] * 3_000
    for partition in range(4):
        told = [message for _, message in reports.all if message.partition() == partition]
        assert [int(message.value() or b"") for message in told] == list(range(partition, 3_000, 4))
        assert [message.offset() for message in told] == list(range(750))


def test_B_P17_a_callback_needs_no_poll_and_runs_on_the_delivery_thread(make: Callable[..., SafeProducer]) -> None:
    reports = Reports()
    make().produce(TOPIC, "v", on_delivery=reports)
    reports.wait(1)
    assert threading.current_thread() not in reports.threads


def test_a_refused_record_is_told_with_its_error_and_its_message(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    reports = Reports()
    producer = make()
    producer.produce(TOPIC, "good", partition=0, on_delivery=reports)
    assert producer.flush(30) == 0
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.INVALID_RECORD] * 50)  # at every attempt
    producer.produce(TOPIC, "bad", "k", 0, on_delivery=reports)
    error, message = reports.wait(2)[1]
    cluster.clear_request_errors(ApiKey.Produce)
    assert error is not None
    assert error.code() == KafkaError.INVALID_RECORD
    assert message.error() == error
    assert (message.topic(), message.value(), message.key()) == (TOPIC, b"bad", b"k")
    producer.produce(TOPIC, "next", partition=0, on_delivery=reports)
    assert producer.flush(30) == 0  # raises nothing: somebody was told
    assert [error is None for error, _ in reports.all] == [True, False, True]
    assert [m.value() for m in log_of(cluster)] == [b"good", b"next"]


def test_the_end_of_delivery_timeout_is_told_as_a_timeout(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    reports = Reports()
    producer = make(delivery_timeout=0.5)
    producer.produce(TOPIC, "\xc2\xc2", "k", 1, on_delivery=reports)
    ((error, message),) = reports.wait(1)
    assert error is not None
    assert error.code() == KafkaError._MSG_TIMED_OUT
    assert (message.topic(), message.partition()) == (TOPIC, 1)
    assert (message.value(), message.key()) == ("\xc2\xc2".encode(), b"k")
    assert message.error() is not None
    assert producer.flush(10) == 0
    producer.close(1)  # raises nothing either


def test_P1_close_tells_what_it_could_not_deliver(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    cluster.set_broker_down()
    reports = Reports()
    producer = make()
    for n in range(5):
        producer.produce(TOPIC, str(n), on_delivery=reports)
    producer.close(0.3)
    assert sorted(message.value() or b"" for _, message in reports.all) == [b"0", b"1", b"2", b"3", b"4"]
    assert all(error is not None for error, _ in reports.all)


def test_P5_what_nobody_was_told_of_is_raised_by_flush(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    """The raw client tells it to nobody."""
    cluster.set_broker_down()
    told = Reports()
    producer = make(delivery_timeout=0.5)
    producer.produce(TOPIC, "silent")
    producer.produce(TOPIC, "told", on_delivery=told)
    with pytest.raises(UndeliveredError) as caught:
        producer.flush(30)
    assert [failure.record.value for failure in caught.value.failures] == [b"silent"]
    assert len(told.all) == 1


@pytest.mark.parametrize("kind", [RuntimeError, KafkaException, SystemExit, KeyboardInterrupt])
def test_B_P13_a_callback_that_raises_keeps_no_other_from_being_called(
    make: Callable[..., SafeProducer], kind: type[BaseException]
) -> None:
    reports = Reports()

    def fail(*_: Any) -> None:
        raise kind("of the program")

    producer = make()
    for n in range(20):
        producer.produce(TOPIC, str(n), partition=0, on_delivery=fail if n % 2 else reports)
    assert producer.flush(30) == 0
    assert len(reports.all) == 10
    producer.produce(TOPIC, "after", on_delivery=reports)
    assert producer.flush(30) == 0
    assert len(reports.all) == 11


# ---- inside a callback


def test_produce_inside_a_callback_works(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    reports = Reports()
    producer = make()

    def chain(error: KafkaError | None, message: Message) -> None:
        reports(error, message)
        number = int(message.value() or b"")
        if number < 20:
            producer.produce(TOPIC, str(number + 1), partition=0, on_delivery=chain)

    producer.produce(TOPIC, "0", partition=0, on_delivery=chain)
    reports.wait(21)
    assert producer.flush(30) == 0
    assert [int(message.value() or b"") for message in log_of(cluster)] == list(range(21))


def test_produce_inside_a_callback_does_not_wait_for_room(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    """The callback's thread is the one that makes room."""
    outcomes: list[BaseException | None] = []
    told = threading.Event()
    producer = make({"queue.buffering.max.messages": 2}, max_block=60)

    def overfill(*_: Any) -> None:
        try:
            for _number in range(10):
                producer.produce(TOPIC, "more", partition=0)
        except BaseException as error:  # noqa: BLE001 - told to the test
            outcomes.append(error)
        told.set()

    producer.produce(TOPIC, "v", partition=0, on_delivery=overfill)
    assert told.wait(20)
    assert all(isinstance(error, BufferError) for error in outcomes)
    assert producer.flush(30) == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda producer: producer.poll(),
        lambda producer: producer.poll(60),
        lambda producer: producer.flush(),
        lambda producer: producer.flush(60),
        lambda producer: producer.close(),
        lambda producer: len(producer),
        lambda producer: bool(producer),
    ],
    ids=["poll()", "poll(60)", "flush()", "flush(60)", "close()", "len()", "bool()"],
)
def test_B_P14_no_call_inside_a_callback_hangs(
    make: Callable[..., SafeProducer], call: Callable[[SafeProducer], Any]
) -> None:
    outcomes: list[Any] = []
    producer = make()

    def inside(*_: Any) -> None:
        try:
            outcomes.append(call(producer))
        except BaseException as error:  # noqa: BLE001 - told to the test
            outcomes.append(error)

    producer.produce(TOPIC, "v", on_delivery=inside)
    wait_until(lambda: bool(outcomes), 20, "the callback to return")
    assert outcomes[0] is None or isinstance(outcomes[0], (int, SafeKafkaError))
    producer.close(30)


def test_poll_inside_a_callback_returns_0(make: Callable[..., SafeProducer]) -> None:
    polled: list[int] = []
    producer = make()
    producer.produce(TOPIC, "v", on_delivery=lambda *_: polled.append(producer.poll(30)))
    assert producer.flush(20) == 0
    assert polled == [0]


# ---- poll, flush, len, bool


def test_poll_counts_the_reports(make: Callable[..., SafeProducer]) -> None:
    reports = Reports()
    producer = make()
    assert producer.poll(0) == 0
    for n in range(50):
        producer.produce(TOPIC, str(n), on_delivery=reports)
    counted, end = 0, time.monotonic() + 30
    while counted < 50 and time.monotonic() < end:
        counted += producer.poll(1)
    assert counted == 50
    assert len(reports.all) == 50, "a report is counted when its callback has run"
    assert producer.poll(0) == 0


@pytest.mark.parametrize("form", ["()", "(-1)", "(None)", "(timeout=30)", "(30.0)"])
def test_poll_returns_when_a_report_comes(make: Callable[..., SafeProducer], form: str) -> None:
    reports = Reports()
    producer = make()
    producer.produce(TOPIC, "v", on_delivery=reports)
    calls: dict[str, Callable[[], int]] = {
        "()": lambda: producer.poll(),
        "(-1)": lambda: producer.poll(-1),
        "(None)": lambda: producer.poll(None),
        "(timeout=30)": lambda: producer.poll(timeout=30),
        "(30.0)": lambda: producer.poll(30.0),
    }
    began = time.monotonic()
    assert calls[form]() == 1
    assert time.monotonic() - began < 25
    assert len(reports.all) == 1


def test_poll_without_a_report_waits_for_its_timeout(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    began = time.monotonic()
    assert producer.poll(0.3) == 0
    assert 0.25 < time.monotonic() - began < 20


def test_the_loop_of_the_raw_clients_manual_works(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    """Poll after each `produce()`; when the buffer is full, poll and try again."""
    reports = Reports()
    producer = make({"queue.buffering.max.messages": 20, "linger.ms": 5}, max_block=0.01)
    for n in range(500):
        for _ in range(10_000):
            try:
                producer.produce(TOPIC, str(n), partition=0, callback=reports)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    assert producer.flush() == 0
    assert [int(message.value() or b"") for message in log_of(cluster)] == list(range(500))
    assert len(reports.all) == 500


@pytest.mark.parametrize("form", ["()", "(-1)", "(None)", "(timeout=30)", "(30)"])
def test_flush_returns_0_when_all_is_delivered(make: Callable[..., SafeProducer], form: str) -> None:
    reports = Reports()
    producer = make()
    for n in range(10):
        producer.produce(TOPIC, str(n), on_delivery=reports)
    calls: dict[str, Callable[[], int]] = {
        "()": lambda: producer.flush(),
        "(-1)": lambda: producer.flush(-1),
        "(None)": lambda: producer.flush(None),
        "(timeout=30)": lambda: producer.flush(timeout=30),
        "(30)": lambda: producer.flush(30),
    }
    assert calls[form]() == 0
    assert len(reports.all) == 10, "flush() returns when the callbacks have run"
    assert len(producer) == 0


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_flush_returns_the_number_left(cluster: MockCluster, make: Callable[..., SafeProducer], timeout: float) -> None:
    cluster.set_broker_down()
    reports = Reports()
    producer = make()
    for n in range(7):
        producer.produce(TOPIC, str(n), on_delivery=reports)
    began = time.monotonic()
    assert producer.flush(timeout) == 7
    assert time.monotonic() - began < 20
    assert len(producer) == 7
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    assert len(reports.all) == 7


def test_a_producer_is_true_also_without_records(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    assert len(producer) == 0
    assert bool(producer)
    producer.close()
    assert bool(producer)
    assert len(producer) == 0


def test_P4_a_full_buffer_is_a_buffer_error_after_max_block(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    accepted, refused = Reports(), Reports()
    producer = make({"queue.buffering.max.messages": 5}, max_block=0.3)
    for n in range(5):
        producer.produce(TOPIC, str(n), partition=0, on_delivery=accepted)
    began = time.monotonic()
    with pytest.raises(BufferError) as caught:
        producer.produce(TOPIC, "5", partition=0, on_delivery=refused)
    assert 0.25 < time.monotonic() - began < 20
    assert isinstance(caught.value, BufferFullError)
    assert len(producer) == 5
    cluster.set_broker_up()
    assert producer.flush(60) == 0
    assert [message.value() for _, message in accepted.all] == [b"0", b"1", b"2", b"3", b"4"]
    assert refused.all == []


# ---- everything else


def test_list_topics_tells_brokers_and_partitions(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make()
    for metadata in (
        producer.list_topics(timeout=30),
        producer.list_topics(TOPIC, 30),
        producer.list_topics(topic=TOPIC, timeout=30),
    ):
        assert sorted(metadata.topics[TOPIC].partitions) == [0, 1, 2, 3]
        assert len(metadata.brokers) == cluster.brokers


def test_list_topics_gives_up_after_its_timeout(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    cluster.set_broker_down()
    producer = make()
    began = time.monotonic()
    with pytest.raises(KafkaException):
        producer.list_topics(timeout=0.3)
    assert time.monotonic() - began < 20


def test_sasl_credentials_can_be_set_again_and_again(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    producer.set_sasl_credentials("user", "password")
    producer.set_sasl_credentials("other", "password")
    with pytest.raises(TypeError):
        producer.set_sasl_credentials(None, "password")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        producer.set_sasl_credentials("user", None)  # type: ignore[arg-type]
    producer.produce(TOPIC, "v")
    assert producer.flush(30) == 0


@pytest.mark.parametrize(
    "name",
    [
        "purge",
        "produce_batch",
        "init_transactions",
        "begin_transaction",
        "commit_transaction",
        "abort_transaction",
        "send_offsets_to_transaction",
    ],
)
def test_what_a_safe_producer_does_not_do_is_no_attribute(make: Callable[..., SafeProducer], name: str) -> None:
    producer = make()
    assert not hasattr(producer, name)
    with pytest.raises(AttributeError, match=name):
        getattr(producer, name)


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"on_delivery": print}, "receipt"),
        ({"dr_cb": print}, "receipt"),
        ({"transactional.id": "t"}, "transactions"),
        ({"message.timeout.ms": 1_000}, "delivery_timeout"),
        ({"default.topic.config": {"message.timeout.ms": 1_000}}, "delivery_timeout"),
        ({"partitioner": "murmur"}, "partitioner"),
        ({"should.fail": False}, r"should\.fail"),
    ],
    ids=lambda given: str(given)[:40],
)
def test_settings_that_are_refused_name_the_way_out(
    make: Callable[..., SafeProducer], config: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(UnsafeConfigError, match=remedy):
        make(config)


@pytest.mark.parametrize("partitioner", ["consistent_random", "murmur2", "murmur2_random", "fnv1a_random"])
def test_every_partitioner_can_be_chosen(make: Callable[..., SafeProducer], partitioner: str) -> None:
    producer = make({"partitioner": partitioner})
    producer.produce(TOPIC, "v", "k")
    assert producer.flush(30) == 0


def test_the_callbacks_of_the_config_are_called_and_may_raise(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    called: list[str] = []

    def error_cb(error: KafkaError) -> None:
        called.append("error_cb")
        raise ValueError(error)

    def stats_cb(text: str) -> None:
        called.append("stats_cb")
        raise RuntimeError(text)

    producer = make({"error_cb": error_cb, "stats_cb": stats_cb, "statistics.interval.ms": 100})
    wait_until(lambda: "stats_cb" in called, 20, "stats_cb")
    cluster.set_broker_down()
    producer.produce(TOPIC, "v")
    wait_until(lambda: "error_cb" in called, 20, "error_cb")
    cluster.set_broker_up()
    assert producer.flush(60) == 0


def test_a_subclass_can_add_to_it(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    class Orders(SafeProducer):
        def __init__(self, config: dict[str, Any], topic: str) -> None:
            super().__init__(config)
            self.topic = topic
            self.produced = 0

        def produce(self, *arguments: Any, **named: Any) -> None:
            self.produced += 1
            super().produce(*arguments, **named)

        def hello(self) -> None:
            self.produce(self.topic, value="hello")

    reports = Reports()
    with Orders({"bootstrap.servers": cluster.bootstrap_servers}, TOPIC) as orders:
        assert isinstance(orders, SafeProducer)
        orders.hello()
        orders.produce(TOPIC, "v", on_delivery=reports)
        assert orders.flush(30) == 0
    assert orders.produced == 2
    assert sorted(message.value() or b"" for message in log_of(cluster)) == [b"hello", b"v"]


def test_with_delivers_and_closes(cluster: MockCluster) -> None:
    reports = Reports()
    with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}) as producer:
        producer.produce(TOPIC, "v", on_delivery=reports)
    assert [error for error, _ in reports.all] == [None]
    assert len(producer) == 0
    with pytest.raises(ClosedError):
        producer.produce(TOPIC, "v")
    producer.close()
    assert producer.__exit__(None, None, None) is None  # type: ignore[func-returns-value]


def test_with_delivers_also_when_its_body_raises(cluster: MockCluster) -> None:
    reports = Reports()
    with (
        pytest.raises(ZeroDivisionError),
        SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}) as producer,
    ):
        producer.produce(TOPIC, "v", on_delivery=reports)
        _ = 1 / 0
    assert [error for error, _ in reports.all] == [None]
    with pytest.raises(ClosedError):
        producer.produce(TOPIC, "v")


def test_after_close_nothing_hangs(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    producer.close()
    for call in (producer.flush, producer.poll, lambda: producer.poll(60), lambda: producer.flush(60)):
        began = time.monotonic()
        with contextlib.suppress(ClosedError):
            assert call() == 0
        assert time.monotonic() - began < 20


def test_two_producers_do_not_know_of_each_other(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    first, second = make(), make()
    first.produce(TOPIC, "1", partition=0)
    first.close()
    second.produce(TOPIC, "2", partition=0)
    assert second.flush(30) == 0
    assert [message.value() for message in log_of(cluster)] == [b"1", b"2"]
