"""The log reader promises the whole topic up to the ends found at the start, or an error that names what is missing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, Producer, TopicPartition

from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from safekafka.testing.mock import ApiKey, MockCluster

WAIT = 20.0  # s


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with MockCluster() as running:
        running.create_topic("orders", partitions=4)
        yield running


def send(cluster: MockCluster, count: int, **settings: Any) -> list[Entry]:
    """Sends `count` records with five keys; returns them as accepted."""
    client = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True, **settings})
    accepted = [Entry(b"key-%d" % (number % 5), number) for number in range(count)]
    for entry in accepted:
        client.produce("orders", str(entry.id), key=entry.key)
        client.poll(0)
    assert client.flush(WAIT) == 0
    return accepted


def log(cluster: MockCluster, timeout: float = WAIT) -> list[Entry]:
    messages = read_log(cluster.bootstrap_servers, "orders", timeout)
    return list(log_entries(messages, lambda message: int(message.value() or b"")))


def test_every_record_of_every_partition_is_read(cluster: MockCluster) -> None:
    accepted = send(cluster, 30_000)
    report = audit_log(accepted, log(cluster))
    assert report.ok, report
    assert report.in_kafka == 30_000


def test_the_messages_come_by_partition_and_offset(cluster: MockCluster) -> None:
    send(cluster, 2_000)
    places = [(entry.partition, entry.offset) for entry in log(cluster)]
    assert places == sorted(places)
    assert len({partition for partition, _ in places}) > 1


def test_an_empty_topic_is_read_at_once(cluster: MockCluster) -> None:
    started = time.monotonic()
    assert log(cluster) == []
    assert time.monotonic() - started < 2


def test_a_full_log_is_read_without_waiting_for_more(cluster: MockCluster) -> None:
    send(cluster, 10)
    started = time.monotonic()
    assert len(log(cluster)) == 10
    assert time.monotonic() - started < 2


class LogWithGaps:
    """Stands in for the client: offsets 1, 3, 4 and 6 of partition 0 are no messages, 6 being the last."""

    def __init__(self, settings: dict[str, Any]) -> None:
        assert settings["check.crcs"] is True
        assert settings["isolation.level"] == "read_committed"
        found = [Message(topic="t", partition=0, offset=offset, value=b"x") for offset in (0, 2, 5)]
        end = Message(topic="t", partition=0, offset=7, error=KafkaError(KafkaError._PARTITION_EOF))
        self.first, self.batches = [found[0], None, end], [found[1:], []]

    def list_topics(self, topic: str, timeout: float) -> Any:
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions={0: None})})

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float, cached: bool) -> tuple[int, int]:
        return 0, 7

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert [(each.partition, each.offset) for each in partitions] == [(0, OFFSET_BEGINNING)]

    def poll(self, timeout: float) -> Message | None:
        return self.first.pop(0)

    def consume(self, count: int, timeout: float) -> list[Message]:
        return self.batches.pop(0)

    def close(self) -> None: ...


def test_offsets_without_message_are_no_reason_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("safekafka.testing.ledger.Consumer", LogWithGaps)
    assert [message.offset() for message in read_log("anywhere", "t", WAIT)] == [0, 2, 5]


def test_a_wrong_checksum_is_an_error_and_not_a_gap(cluster: MockCluster) -> None:
    # The markers that the mock brokers write at the end of a transaction have none, which makes them an example.
    client = Producer({"bootstrap.servers": cluster.bootstrap_servers, "transactional.id": "t"})
    client.init_transactions(WAIT)
    client.begin_transaction()
    client.produce("orders", b"1", key=b"k")
    client.commit_transaction(WAIT)
    with pytest.raises(KafkaException, match="failed CRC32C check"):
        log(cluster)


def test_a_log_whose_beginning_was_trimmed_is_read_from_what_is_left(cluster: MockCluster) -> None:
    cluster.create_topic("big")
    client = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for _ in range(120):
        client.produce("big", bytes(100_000))
        client.flush(WAIT)
    messages = read_log(cluster.bootstrap_servers, "big", WAIT)
    first, last = messages[0].offset(), messages[-1].offset()
    assert first is not None
    assert first > 0
    assert last == 119
    assert len(messages) == 120 - first


def test_brokers_that_come_back_in_time_are_waited_for(cluster: MockCluster) -> None:
    send(cluster, 100)
    cluster.set_broker_down()
    back = threading.Timer(0.7, cluster.set_broker_up)
    back.start()
    assert len(log(cluster)) == 100
    back.join()


def test_requests_that_fail_for_a_while_are_repeated(cluster: MockCluster) -> None:
    accepted = send(cluster, 1_000)
    cluster.push_request_errors(ApiKey.ListOffsets, *[KafkaError.NOT_LEADER_FOR_PARTITION] * 2)
    cluster.push_request_errors(ApiKey.Fetch, *[KafkaError.NOT_LEADER_FOR_PARTITION] * 2, KafkaError._TRANSPORT)
    assert audit_log(accepted, log(cluster)).ok


def test_a_partition_that_can_not_be_read_is_named_when_the_time_is_over(cluster: MockCluster) -> None:
    send(cluster, 100)
    cluster.set_leader("orders", 2, None)
    started = time.monotonic()
    with pytest.raises(TimeoutError, match=r"'orders': partitions \[2\] could not be read"):
        log(cluster, timeout=1.0)
    assert 1.0 <= time.monotonic() - started < 3


def test_partitions_that_stop_answering_meanwhile_are_named_too(cluster: MockCluster) -> None:
    send(cluster, 100)
    cluster.push_request_errors(ApiKey.Fetch, *[KafkaError.UNKNOWN_TOPIC_OR_PART] * 10_000)
    with pytest.raises(TimeoutError, match=r"partitions \[.*\] could not be read to the end"):
        log(cluster, timeout=1.0)


@pytest.mark.parametrize("timeout", [0, 0.5])
def test_unreachable_brokers_are_a_timeout_with_the_reason(cluster: MockCluster, timeout: float) -> None:
    cluster.set_broker_down()
    with pytest.raises(TimeoutError, match="whose number is not known" if not timeout else "refused|down|transport"):
        log(cluster, timeout)


def test_a_missing_topic_is_told_and_not_created(cluster: MockCluster) -> None:
    for _ in range(2):
        with pytest.raises(TimeoutError, match="Unknown topic"):
            read_log(cluster.bootstrap_servers, "no-such-topic", 0.5)


def test_a_topic_without_permission_is_an_error_at_once(cluster: MockCluster) -> None:
    cluster.set_topic_error("orders", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    started = time.monotonic()
    with pytest.raises(KafkaException, match="TOPIC_AUTHORIZATION_FAILED"):
        log(cluster)
    assert time.monotonic() - started < 5


def test_a_log_that_grows_while_it_is_read_ends_where_it_ended_at_the_start(cluster: MockCluster) -> None:
    accepted = send(cluster, 5_000)
    stop = threading.Event()

    def grow() -> None:
        client = Producer({"bootstrap.servers": cluster.bootstrap_servers, "linger.ms": 0})
        while not stop.is_set():
            client.produce("orders", b"-1", key=b"key-0")
            client.flush(WAIT)

    growing = threading.Thread(target=grow)
    growing.start()
    try:
        report = audit_log(accepted, log(cluster))
    finally:
        stop.set()
        growing.join()
    assert (report.lost, report.duplicates, report.out_of_order) == (0, 0, 0)


def test_reading_commits_nothing_and_can_be_repeated(cluster: MockCluster) -> None:
    send(cluster, 50)
    cluster.start_request_tracking()
    assert log(cluster) == log(cluster)
    used = {request.api_key for request in cluster.requests()}
    assert not used & {ApiKey.OffsetCommit, ApiKey.JoinGroup}
