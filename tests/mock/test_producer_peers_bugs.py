"""What happened to users of other clients (see docs/known-failures.md), where no other suite has it."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka import KafkaError

from safekafka import (
    BufferFullError,
    DeliveryFailed,
    InvalidRecordError,
    Record,
    SafeProducer,
    UndeliveredError,
)
from safekafka.errors import DeliveryError
from safekafka.producer import recovery
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.mock.conftest import TOPIC
from tests.processes import wait_until


def log_of(cluster: MockCluster, partition: int = 0) -> list[int]:
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    return [int(m.value() or b"") for m in messages if m.partition() == partition]


def test_B_P01_a_record_whose_acknowledgement_was_cut_off_is_unknown_though_the_client_says_purged_from_the_queue(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make({"reconnect.backoff.ms": 10_000, "reconnect.backoff.max.ms": 10_000})
    producer.send(TOPIC, b"0", partition=0).result(30)
    for broker in (1, 2, 3):  # the answer is held back, the record is written all the same
        cluster.push_broker_request_errors(broker, ApiKey.Produce, (0, 30.0))
    receipt = producer.send(TOPIC, b"1", partition=0)
    wait_until(lambda: log_of(cluster) == [0, 1], 30, "the record in the log")
    cluster.set_broker_down()  # the connection is cut: the record goes back to the client's queue
    with pytest.raises(UndeliveredError):
        producer.close(0.5)  # and is purged from there
    assert receipt.status == "unknown"


def test_B_P07_send_many_tells_exactly_which_records_were_accepted(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    cluster.set_broker_down()
    producer = make({"queue.buffering.max.messages": 100}, max_block=0.2)
    with pytest.raises(BufferFullError, match="100 of 300") as caught:
        producer.send_many(Record(TOPIC, str(n), partition=0) for n in range(300))
    assert len(caught.value.receipts) == 100
    cluster.set_broker_up()
    assert [receipt.result(30).offset for receipt in caught.value.receipts] == list(range(100))
    assert log_of(cluster) == list(range(100))


def test_B_P16_send_many_keeps_headers_partition_and_timestamp(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    records = [Record(TOPIC, str(n), b"k", [("n", str(n).encode())], n % 4, 1_700_000_000_000 + n) for n in range(20)]
    for receipt in make().send_many(records):
        receipt.result(30)
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    found = sorted((int(m.value()), m.headers(), m.partition(), m.timestamp()[1]) for m in messages)  # type: ignore[arg-type]
    assert found == [(n, [("n", str(n).encode())], n % 4, 1_700_000_000_000 + n) for n in range(20)]


def test_send_many_names_the_bad_records_by_position_and_sends_none(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    records: list[Any] = [Record(TOPIC, b"0"), Record("a b", b"1"), Record(TOPIC, 2), Record(TOPIC, b"3")]  # type: ignore[arg-type]
    with pytest.raises(InvalidRecordError, match=r"record 1 .*'a b'.*record 2 .*bytes"):
        producer.send_many(records)
    assert len(producer) == 0
    assert producer.send_many([]) == []


def test_B_P11_a_failure_nobody_looked_at_is_raised_by_flush_and_blames_no_other_record(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make()
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.push_request_errors(ApiKey.Produce, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.MSG_SIZE_TOO_LARGE)
    producer.send(TOPIC, b"1", partition=0)
    wait_until(lambda: producer.stats().failed == 1, 30, "A failed")
    later = producer.send(TOPIC, b"2", partition=0)
    with pytest.raises(UndeliveredError) as caught:
        producer.flush(30)
    assert [failure.record.value for failure in caught.value.failures] == [b"1"]
    assert later.result(30).offset == 1
    assert producer.flush(30) == 0  # told once


def test_B_P15_headers_are_whole_when_a_record_is_sent_again_or_handed_back(
    cluster: MockCluster, make: Callable[..., SafeProducer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "FATAL_WAIT_SECONDS", 0.5)
    headers = [("a", b"\x00\xff"), ("a", None), ("b", b"")]
    back: list[tuple[Record, DeliveryError]] = []
    producer = make(on_undelivered=lambda record, error: back.append((record, error)))
    producer.send(TOPIC, b"0", partition=0).result(30)
    cluster.set_broker_down()
    again = producer.send(TOPIC, b"1", b"k", headers, 0)
    cluster.trigger_fatal_error(producer)
    wait_until(lambda: producer.stats().rebuilds == 1, 30, "a new client")
    cluster.set_broker_up()
    again.result(30)
    assert read_log(cluster.bootstrap_servers, TOPIC, timeout=30)[-1].headers() == headers
    cluster.push_request_errors(ApiKey.Produce, KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.MSG_SIZE_TOO_LARGE)
    with pytest.raises(DeliveryFailed):
        producer.send(TOPIC, b"2", b"k", headers, 0).result(30)
    assert [record for record, _ in back] == [Record(TOPIC, b"2", b"k", headers, 0)]


def test_B_P24_a_topic_that_is_not_there_is_not_created(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    # The mock would create it at the first request that allows it.
    producer = make({"topic.metadata.propagation.max.ms": 500}, delivery_timeout=2.0)
    with pytest.raises(DeliveryError):
        producer.send("mistyped", b"0").result(30)
    assert "mistyped" not in producer.list_topics(timeout=10).topics


def test_B_P26_memory_is_flat_when_receipts_are_dropped(cluster: MockCluster, scale: int) -> None:
    program = textwrap.dedent(f"""
        import psutil
        from safekafka import SafeProducer
        process = psutil.Process()
        servers = {cluster.bootstrap_servers!r}
        producer = SafeProducer({{"bootstrap.servers": servers, "queue.buffering.max.messages": 20000}})
        value = b"x" * 100
        def send(records):
            for _ in range(records):
                producer.send({TOPIC!r}, value)
            producer.flush()
            return process.memory_info().rss
        before = send({200_000 * scale})
        print(send({300_000 * scale}) - before)
    """)
    done = subprocess.run([sys.executable, "-c", program], timeout=100 * scale, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown = int(done.stdout)
    print(f"\n{500_000 * scale} sends: grown by {grown / 1e6:.1f} MB after the first {200_000 * scale}")
    assert grown < 30e6  # a buffer of 20,000 records takes less


def test_P4_sends_from_a_signal_handler_on_top_of_a_send_work(cluster: MockCluster) -> None:
    program = textwrap.dedent(f"""
        import signal, sys
        from safekafka import SafeProducer
        producer = SafeProducer({{"bootstrap.servers": {cluster.bootstrap_servers!r}}})
        signals = 0
        def handler(*_):
            global signals
            signals += 1
            producer.send({TOPIC!r}, b"1", partition=1)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        for n in range(20_000):
            producer.send({TOPIC!r}, str(n), partition=0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        producer.close()
        print(signals)
    """)
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=60, capture_output=True, text=True, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    assert log_of(cluster) == list(range(20_000))
    assert len(log_of(cluster, 1)) == int(done.stdout)
