"""SafeProducer without a spool, against mock brokers that can be taken down, slowed and made to refuse."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from confluent_kafka.serialization import SerializationError, StringSerializer

from safekafka import (
    BufferFullError,
    ClosedError,
    DeliveryFailed,
    DeliveryUnknown,
    InvalidRecordError,
    ProducerFatalError,
    Receipt,
    Record,
    SafeKafkaError,
    SafeProducer,
    UndeliveredError,
)
from safekafka.producer import receipt as receipt_module
from safekafka.testing import MockCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from tests.mock.conftest import TOPIC
from tests.processes import wait_until


def numbers_in_log(cluster: MockCluster, partition: int | None = None) -> list[int]:
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    return [int(m.value() or b"") for m in messages if partition is None or m.partition() == partition]


def test_without_a_spool_nothing_of_it_runs(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    """So it costs nothing: neither the callers' threads nor the producer's own come by a line of it."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: object) -> None:
        files.add(frame.f_code.co_filename)

    threading.setprofile(note)  # of the threads that are started from now on
    sys.setprofile(note)
    try:
        producer = make()
        producer.send(TOPIC, b"0")
        producer.send_many([Record(TOPIC, b"1"), Record(TOPIC, b"2")])
        asyncio.run(producer.asend(TOPIC, b"3"))
        producer.produce(TOPIC, b"4", on_delivery=lambda *_: None)
        assert producer.flush(30) == 0
        assert producer.stats().delivered == 5
        producer.close()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    ours = [name for name in files if "safekafka" in name]
    assert [name for name in ours if name.endswith("producer/direct.py")]
    assert not [name for name in ours if "/safekafka/spool/" in name]


def test_P1_every_receipt_says_where_its_record_is(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make()
    receipts = [producer.send(TOPIC, str(n), key=str(n % 7)) for n in range(2_000)]
    assert producer.flush(30) == 0
    assert len(producer) == 0
    log = {(m.partition(), m.offset()): m.value() for m in read_log(cluster.bootstrap_servers, TOPIC, timeout=30)}
    assert len(log) == 2_000
    for n, receipt in enumerate(receipts):
        delivery = receipt.result(0)
        assert log[delivery.partition, delivery.offset] == str(n).encode()


def test_without_a_spool_none_of_its_code_runs(make: Callable[..., SafeProducer], cluster: MockCluster) -> None:
    """On no thread, from the first step to the last."""
    ran: set[str] = set()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and "/safekafka/spool/" in frame.f_code.co_filename:
            ran.add(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")

    threading.setprofile(look)
    sys.setprofile(look)
    try:
        producer = make()
        receipts = [producer.send(TOPIC, b"1"), *producer.send_many([Record(TOPIC, b"2"), Record(TOPIC, b"3")])]
        producer.produce(TOPIC, b"4", on_delivery=lambda *_: None)
        receipts.append(asyncio.run(producer.asend(TOPIC, b"5")))
        assert producer.flush(30) == 0
        assert (producer.stats().delivered, producer.health().ok, producer.rejected()) == (5, True, [])
        assert all(receipt.done() for receipt in receipts)
        producer.close()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    assert ran == set()


def test_key_headers_partition_and_timestamp_arrive_as_given(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    headers: list[tuple[str, bytes | None]] = [("a", b"\x00\xff"), ("a", None), ("b", b"")]
    make().send(TOPIC, None, b"k", headers, 3, 1_700_000_000_123).result(10)
    (message,) = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    assert (message.value(), message.key(), message.headers()) == (None, b"k", headers)
    assert (message.partition(), message.timestamp()[1]) == (3, 1_700_000_000_123)


def test_await_gives_the_delivery_on_any_loop(make: Callable[..., SafeProducer]) -> None:
    producer = make()

    async def send() -> list[int]:
        deliveries = await asyncio.gather(*(_delivery(producer.send(TOPIC, str(n), partition=0)) for n in range(50)))
        return [delivery.offset for delivery in deliveries]

    assert asyncio.run(send()) == list(range(50))
    assert asyncio.run(send()) == list(range(50, 100))


async def _delivery(receipt: Receipt) -> Any:
    return await receipt


def test_B_P17_a_lone_record_is_delivered_without_flush_or_poll(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    for _ in range(5):
        producer.send(TOPIC, b"0").result(5)


def test_P3_each_threads_records_are_in_its_order(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make({"queue.buffering.max.messages": 500})

    def send(thread: int) -> None:
        for n in range(500):
            producer.send(TOPIC, str(thread * 1_000 + n), key=str(thread))

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    producer.close()
    accepted = [Entry(str(thread).encode(), thread * 1_000 + n) for thread in range(8) for n in range(500)]
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    report = audit_log(accepted, log_entries(messages, lambda message: int(message.value() or b"")))
    assert report.ok, report


def test_P4_a_full_buffer_blocks_for_max_block_and_then_raises_without_dropping(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 10}, max_block=0.3)
    receipts = [producer.send(TOPIC, str(n), partition=0) for n in range(10)]
    began = time.monotonic()
    with pytest.raises(BufferFullError, match=r"max_block=0\.3.*nothing was dropped.*Remedy"):
        producer.send(TOPIC, "10", partition=0)
    assert 0.25 < time.monotonic() - began < 10
    cluster.set_broker_up()
    assert [receipt.result(30).offset for receipt in receipts] == list(range(10))
    assert numbers_in_log(cluster) == list(range(10))


def test_B_P06_a_blocked_send_goes_on_when_the_brokers_return(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 10}, max_block=60)
    sent = threading.Event()

    def send_many() -> None:
        for n in range(30):
            producer.send(TOPIC, str(n), partition=0)
        sent.set()

    threading.Thread(target=send_many, daemon=True).start()
    assert not sent.wait(0.3)
    cluster.set_broker_up()
    assert sent.wait(60)
    assert producer.flush(30) == 0
    assert numbers_in_log(cluster) == list(range(30))


def test_P4_a_blocked_send_is_woken_by_close(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 1}, max_block=120)
    producer.send(TOPIC, b"0").add_done_callback(lambda _: None)
    blocked: list[BaseException] = []

    def send() -> None:
        try:
            producer.send(TOPIC, b"1")
        except SafeKafkaError as error:
            blocked.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    while not producer._way._waiting:  # type: ignore[union-attr]
        time.sleep(0.01)
    producer.close(0.2)
    thread.join(30)
    assert isinstance(blocked[0], ClosedError)


def test_B_P10_flush_returns_exactly_how_many_are_open(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make()
    producer.send(TOPIC, b"0").result(10)
    cluster.set_broker_down()
    for n in range(5):
        producer.send(TOPIC, str(n))
    assert producer.flush(0.2) == 5
    assert len(producer) == 5
    cluster.set_broker_up()
    assert producer.flush(60) == 0


def test_unreachable_brokers_give_a_typed_error_with_address_and_remedy() -> None:
    producer = SafeProducer({"bootstrap.servers": "127.0.0.1:1"}, delivery_timeout=1.0)
    receipt = producer.send(TOPIC, b"v")
    with pytest.raises(DeliveryUnknown, match=r"127\.0\.0\.1:1.*check that the brokers run") as caught:
        receipt.result(30)
    assert caught.value.record.value == b"v"
    producer.close(0.1)


def test_P4_delivery_timeout_ends_the_receipt_as_unknown_and_a_late_report_does_no_harm(
    cluster: MockCluster, make: Callable[..., SafeProducer], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.set_broker_down()
    producer = make(delivery_timeout=0.5)
    receipt = producer.send(TOPIC, b"0", partition=0)
    began = time.monotonic()
    with pytest.raises(DeliveryUnknown, match=r"delivery_timeout=0\.5"):
        receipt.result(30)
    assert time.monotonic() - began < 5
    cluster.set_broker_up()
    producer.send(TOPIC, b"1", partition=0).add_done_callback(lambda _: None)
    while "late_report" not in caplog.text:
        time.sleep(0.05)
    assert receipt.status == "unknown"
    assert numbers_in_log(cluster, 0)[0] == 0  # "may be in Kafka" was the truth


def test_P7_close_tells_of_every_record_it_could_not_deliver(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make()
    receipts = [producer.send(TOPIC, str(n)) for n in range(20)]
    began = time.monotonic()
    with pytest.raises(UndeliveredError) as caught:
        producer.close(0.5)
    assert time.monotonic() - began < 10
    assert caught.value.count == 20
    assert {failure.record.value for failure in caught.value.failures} == {str(n).encode() for n in range(20)}
    assert [receipt.status for receipt in receipts] == ["unknown"] + ["failed"] * 19  # the first may have been sent
    producer.close()  # told once
    with pytest.raises(ClosedError, match="closed"):
        producer.send(TOPIC, b"0")


def test_P7_a_record_sent_while_another_thread_closes_is_refused_or_has_an_outcome(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    for _ in range(10):
        producer = make()
        receipts: list[Receipt] = []
        go = threading.Event()

        def send(producer: SafeProducer = producer, receipts: list[Receipt] = receipts, go: Any = go) -> None:
            try:
                for n in range(100_000):
                    receipts.append(producer.send(TOPIC, str(n)))
                    go.set()
            except ClosedError:
                return

        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert go.wait(10)
        with contextlib.suppress(UndeliveredError):
            producer.close(10)
        for thread in threads:
            thread.join(30)
        assert all(receipt.done() for receipt in receipts)


def test_with_block_delivers_what_was_sent_also_when_its_body_raises(cluster: MockCluster) -> None:
    with (
        pytest.raises(RuntimeError, match="mine"),
        SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}) as producer,
    ):
        producer.send(TOPIC, b"7")
        raise RuntimeError("mine")
    assert numbers_in_log(cluster) == [7]


def test_P1_an_error_inside_the_delivery_thread_is_raised_by_every_later_call(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make()
    cluster.set_broker_down()
    receipt = producer.send(TOPIC, b"0")

    def broken() -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(producer._way, "_look", broken)
    assert receipt.exception(30) is not None
    for call in (lambda: producer.send(TOPIC, b"1"), producer.flush, producer.close):
        with pytest.raises(ProducerFatalError, match="injected"):
            call()


def test_B_P14_calls_that_would_wait_for_their_own_thread_are_refused(
    make: Callable[..., SafeProducer],
) -> None:
    producer = make()
    raised: list[str] = []
    done = threading.Event()

    def inside(receipt: Receipt) -> None:
        waiting = producer.send(TOPIC, b"1")  # there is room, so it works
        for call in (producer.flush, producer.close, waiting.result):
            try:
                call()
            except SafeKafkaError as error:
                raised.append(str(error))
        done.set()

    producer.send(TOPIC, b"0").add_done_callback(inside)
    assert done.wait(30)
    assert len(raised) == 3
    assert all("Remedy" in text for text in raised)


def test_a_record_too_large_for_the_client_is_refused_before_it_is_queued(make: Callable[..., SafeProducer]) -> None:
    producer = make({"message.max.bytes": 2_000})
    with pytest.raises(InvalidRecordError, match="smaller"):
        producer.send(TOPIC, b"x" * 5_000)
    assert len(producer) == 0


def test_serializers_are_used_and_their_errors_surface_from_send(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    def even(value: int) -> bytes:
        if value % 2:
            raise SerializationError("odd")
        return str(value).encode()

    producer = make(key_serializer=StringSerializer(), value_serializer=even)
    producer.send(TOPIC, 2, key="k").result(10)
    with pytest.raises(InvalidRecordError, match="odd"):
        producer.send(TOPIC, 3)
    (message,) = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    assert (message.key(), message.value()) == (b"k", b"2")


@pytest.mark.parametrize("name", ["delivery_timeout", "max_block", "shutdown_timeout"])
def test_a_time_that_is_no_positive_number_is_refused_by_name(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0"):
        SafeProducer({"bootstrap.servers": "127.0.0.1:1"}, **{name: 0})  # type: ignore[arg-type]


@pytest.mark.parametrize("end", ["", "del producer", "import sys; sys.exit(3)", "1 / 0"])
def test_B_P08_records_are_delivered_although_the_program_forgets_to_close(cluster: MockCluster, end: str) -> None:
    program = textwrap.dedent(f"""
        from safekafka import SafeProducer
        producer = SafeProducer({{"bootstrap.servers": {cluster.bootstrap_servers!r}}})
        for n in range(1000):
            producer.send({TOPIC!r}, str(n), partition=0)
        {end}
    """)
    subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, check=False)
    assert numbers_in_log(cluster) == list(range(1_000))


def test_P8_the_parents_receipts_stay_the_parents_and_the_child_sends_with_a_client_of_its_own(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make({"linger.ms": 3_000})  # so that they are pending at the fork
    for n in range(100):
        producer.send(TOPIC, str(n), partition=0)
    pending = producer.send(TOPIC, b"100", partition=0)

    def child(answer: Any) -> None:
        answer.put((len(producer), producer.flush(), producer.poll(0), producer.stats().pending))
        for look in (lambda: pending.result(9), lambda: asyncio.run(_delivery(pending))):
            try:
                look()
            except ClosedError as error:
                answer.put(str(error))
        answer.put(producer.send(TOPIC, b"7", partition=1).result(30).partition)
        producer.close()

    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=child, args=(answer,))
    process.start()
    assert answer.get(timeout=30) == (0, 0, 0, 0)
    for _ in range(2):
        assert "parent process" in answer.get(timeout=30)
    assert answer.get(timeout=30) == 1
    process.join(30)
    assert process.exitcode == 0
    assert producer.flush(30) == 0
    assert numbers_in_log(cluster, 0) == list(range(101))
    assert numbers_in_log(cluster, 1) == [7]


def test_P8_a_producer_closed_in_the_child_before_its_first_use_stays_closed_there(
    make: Callable[..., SafeProducer],
) -> None:
    producer = make()

    def child(answer: Any) -> None:
        producer.close()
        try:
            producer.send(TOPIC, b"0")
        except ClosedError as error:
            answer.put(str(error))

    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=child, args=(answer,))
    process.start()
    assert "closed" in answer.get(timeout=30)
    process.join(30)
    assert process.exitcode == 0
    producer.send(TOPIC, b"0").result(30)


def test_P7_a_multiprocessing_child_delivers_what_it_sent_although_it_never_closes(cluster: MockCluster) -> None:
    # Such a child ends by os._exit and never runs atexit.
    program = textwrap.dedent(f"""
        import multiprocessing
        from safekafka import SafeProducer
        def child():
            global producer
            producer = SafeProducer({{"bootstrap.servers": {cluster.bootstrap_servers!r}}})
            for n in range(200):
                producer.send({TOPIC!r}, str(n), partition=0)
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
        process.join()
    """)
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
    assert numbers_in_log(cluster) == list(range(200))


def test_P7_a_producer_forgotten_inside_its_own_callback_still_delivers(cluster: MockCluster) -> None:
    program = textwrap.dedent(f"""
        import threading
        from safekafka import SafeProducer
        held = [SafeProducer({{"bootstrap.servers": {cluster.bootstrap_servers!r}, "linger.ms": 200}})]
        sent = threading.Event()
        def forget(receipt):
            producer = held.pop()
            for n in range(1, 100):
                producer.send({TOPIC!r}, str(n), partition=0)
            sent.set()
        receipt = held[0].send({TOPIC!r}, b"0", partition=0)
        receipt.add_done_callback(forget)
        assert sent.wait(30)
    """)
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)
    assert numbers_in_log(cluster) == list(range(100))


def test_P7_the_exit_of_a_program_that_never_closed_tells_how_many_were_not_delivered(cluster: MockCluster) -> None:
    cluster.set_broker_down()
    program = textwrap.dedent(f"""
        from safekafka import SafeProducer
        producer = SafeProducer({{"bootstrap.servers": {cluster.bootstrap_servers!r}}}, shutdown_timeout=0.5)
        for n in range(3000):
            producer.send({TOPIC!r}, str(n))
    """)
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=True, capture_output=True, text=True)
    assert "undelivered_at_exit records=3000" in done.stderr


@pytest.mark.parametrize("spool", [False, True], ids=["direct", "spooled"])
def test_P7_close_from_a_signal_handler_ends_the_program_wherever_it_interrupts(
    cluster: MockCluster, tmp_path: Path, spool: bool
) -> None:
    program = textwrap.dedent(f"""
        import signal, sys, threading, os, time
        from safekafka import SafeProducer
        producer = SafeProducer(
            {{"bootstrap.servers": {cluster.bootstrap_servers!r}}}, spool={str(tmp_path / "spool") if spool else None!r}
        )
        def end(*_):
            producer.close()
            sys.exit(7)
        signal.signal(signal.SIGTERM, end)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        n = 0
        while True:
            producer.send({TOPIC!r}, str(n), partition=0)
            if not {spool} and n % 100 == 0:
                producer.flush()
            n += 1
    """)
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], timeout=40, check=False, capture_output=True, text=True)
        assert done.returncode == 7, done.stderr


def test_P1_tasks_that_wait_for_room_learn_at_once_that_the_delivery_thread_ended(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make({"queue.buffering.max.messages": 10}, max_block=300.0)
    cluster.set_broker_down()

    async def waiting() -> list[Any]:
        for _ in range(10):
            producer.send(TOPIC, b"")
        tasks = [asyncio.create_task(producer.asend(TOPIC, b"")) for _ in range(3)]
        await asyncio.sleep(0.2)
        monkeypatch.setattr(producer._way, "_look", lambda: 1 / 0)
        return await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)

    assert {type(answer) for answer in asyncio.run(waiting())} == {ProducerFatalError}


def test_flush_does_not_raise_what_an_on_delivery_is_just_being_told(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make(delivery_timeout=0.5)
    cluster.set_broker_down()
    entered, may_return = threading.Event(), threading.Event()

    def on_delivery(error: Any, message: Any) -> None:
        entered.set()
        may_return.wait(30)

    producer.produce(TOPIC, b"", on_delivery=on_delivery)
    assert entered.wait(30)
    assert producer.flush(0.1) == 1
    may_return.set()
    assert producer.flush(30) == 0
    producer.close(0)


def test_a_signal_handler_may_look_at_receipts_on_top_of_anything_that_does(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    delivered = make().send(TOPIC, b"")
    delivered.result(30)
    cluster.set_broker_down()
    producer = make(delivery_timeout=0.5)
    undelivered = producer.send(TOPIC, b"")
    wait_until(undelivered.done, 30, "an outcome")
    called: list[Receipt] = []

    def look() -> None:  # as a handler does that came in the middle
        with receipt_module._adding, producer._way.failures._lock:
            delivered.add_done_callback(called.append)
            undelivered.exception()
            producer.flush(5)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    assert called == [delivered]


def test_P8_the_parents_failures_can_be_looked_at_in_a_child_whatever_the_parent_was_doing(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make(delivery_timeout=0.5)
    cluster.set_broker_down()
    receipt = producer.send(TOPIC, b"")
    wait_until(receipt.done, 30, "an outcome")
    taken, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with producer._way.failures._lock:
            taken.set()
            may_go.wait(60)

    threading.Thread(target=hold, daemon=True).start()
    assert taken.wait(10)
    context = multiprocessing.get_context("fork")
    answer = context.Queue()
    process = context.Process(target=lambda: answer.put(type(receipt.exception())))
    process.start()
    try:
        assert answer.get(timeout=30) in (DeliveryUnknown, DeliveryFailed)
    finally:
        may_go.set()
        process.join(30)
    with pytest.raises(UndeliveredError):
        producer.close(0)


def test_close_may_wait_for_ever(make: Callable[..., SafeProducer]) -> None:
    producer = make()
    receipt = producer.send(TOPIC, b"")
    producer.close(float("inf"))
    assert receipt.status == "delivered"


def test_P7_a_signal_handler_in_the_middle_of_a_send_never_waits_for_that_very_send(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = make(delivery_timeout=20.0)
    cluster.set_broker_down()
    first = producer.send(TOPIC, b"first")
    wait_until(lambda: not producer.send(TOPIC, b"more").done() and producer.stats().held > 0, 30, "held records")
    told: list[object] = []
    way: Any = producer._way
    add = way._held.add

    def interrupted(receipt: Receipt) -> None:
        add(receipt)
        monkeypatch.undo()
        for call in (producer.flush, first.result, producer.poll, producer.close):
            try:
                told.append(call())
            except SafeKafkaError as error:
                told.append(str(error))

    monkeypatch.setattr(way._held, "add", interrupted)
    last = producer.send(TOPIC, b"last")
    assert [str(answer).split(" would wait")[0] for answer in told] == [
        "flush() in a signal handler that interrupted a send() of the same thread",
        "receipt.result() in a signal handler that interrupted a send() of the same thread",
        "0",
        "None",
    ]
    cluster.set_broker_up()  # what was begun in the handler goes on behind it
    assert last.result(30)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # raised inside a garbage collection
@pytest.mark.parametrize("down", [False, True])
def test_P1_a_signal_handler_that_raises_anywhere_in_send_leaves_no_record_behind(
    cluster: MockCluster, make: Callable[..., SafeProducer], scale: int, down: bool
) -> None:
    class Interruption(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interruption

    producer = make()
    producer.send(TOPIC, b"").result(10)
    if down:
        cluster.set_broker_down()
        wait_until(lambda: not producer.health().ok, 30, "the outage to be seen")
    moments = random.Random(7)
    accepted, interruptions = 1, 0
    handler_before = signal.signal(signal.SIGALRM, interrupt)
    try:
        while interruptions < (100 if down else 400) * scale:
            with contextlib.suppress(Interruption):
                # Again after a while, for the case that Python ignored it.
                signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.0001, 0.003), 0.5)
                while True:
                    producer.send(TOPIC, b"x")
                    accepted += 1
            interruptions += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler_before)
    if down:
        cluster.set_broker_up()
    assert producer.flush(60) == 0
    stats = producer.stats()
    # A send() that was interrupted has sent, or has not; one that returned has, and nobody else's report was lost.
    assert accepted <= stats.delivered <= accepted + interruptions
    assert (stats.late, stats.pending, stats.failed, stats.unknown) == (0, 0, 0, 0)


@pytest.mark.parametrize("where", ["on_undelivered", "done callback"])
def test_P1_a_callback_that_exits_the_program_does_not_end_the_delivery_thread(
    cluster: MockCluster, make: Callable[..., SafeProducer], where: str
) -> None:
    cluster.set_broker_down()

    def leave(*_: Any) -> None:
        sys.exit(1)

    producer = make(delivery_timeout=0.3, on_undelivered=leave if where == "on_undelivered" else None)
    receipts = [producer.send(TOPIC, b"0") for _ in range(10)]
    if where == "done callback":
        receipts[0].add_done_callback(leave)
    with pytest.raises(UndeliveredError):
        producer.flush(30)
    assert all(receipt.status in ("failed", "unknown") for receipt in receipts)
    producer.send(TOPIC, b"1").add_done_callback(lambda _: None)


def test_P4_close_is_bounded_although_a_callback_never_returns(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safekafka.producer.way.PURGE_SECONDS", 0.2)
    monkeypatch.setattr("safekafka.producer.way._CLOSE_MARGIN_SECONDS", 0.2)
    producer = make()
    go_on = threading.Event()
    receipt = producer.send(TOPIC, b"0")
    receipt.add_done_callback(lambda _: go_on.wait(60))
    receipt.result(30)
    with pytest.raises(SafeKafkaError, match="callback"):
        producer.close(0.2)
    go_on.set()


def test_a_logger_that_raises_changes_nothing(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    class Broken:
        def log(self, *_: Any, **__: Any) -> None:
            raise OSError("disk full")

    producer = make({"logger": Broken(), "debug": "all"})
    assert producer.send(TOPIC, b"0").result(30).topic == TOPIC


def test_P4_a_closed_producer_lets_its_client_and_its_threads_go(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    receipt = producer.send(TOPIC, b"0")
    client = weakref.ref(producer.raw_client)
    producer.close()
    gc.collect()
    assert client() is None
    assert receipt.status == "delivered"
