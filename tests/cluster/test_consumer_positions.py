"""C1: records that nobody can read any more are told, with their number, and never silently passed over."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from safekafka import RecordsExpired, SafeConsumer
from safekafka.testing import KafkaCluster
from tests.cluster.protocols import PROTOCOLS
from tests.processes import wait_until

PARTITIONS = 3


class Group:
    """A consumer on a thread of its own, and what it handled."""

    def __init__(self, servers: str, topic: str, protocol: dict[str, Any], **options: Any) -> None:
        self.config = {"bootstrap.servers": servers, "group.id": f"{topic}-group", **protocol}
        self.topic = topic
        self.options = options
        self.handled: list[tuple[int, int]] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def handle(self, message: Message) -> None:
        self.handled.append((message.partition() or 0, message.offset() or 0))
        self.may_go_on.wait(60)

    @contextmanager
    def running(self) -> Iterator[None]:
        consumer = SafeConsumer(self.config, [self.topic], commit_interval=0.2, **self.options)
        thread = threading.Thread(target=consumer.run, args=(self.handle,))
        thread.start()
        try:
            yield
        finally:
            self.may_go_on.set()
            consumer.close()
            thread.join(60)
        assert not thread.is_alive()

    def wait(self, count: int) -> None:
        wait_until(lambda: len(self.handled) >= count, 60, lambda: f"{count} handled: {len(self.handled)}")

    def committed(self, partitions: int = PARTITIONS) -> list[int]:
        client = Consumer({"bootstrap.servers": self.config["bootstrap.servers"], "group.id": self.config["group.id"]})
        try:
            found = client.committed([TopicPartition(self.topic, number) for number in range(partitions)], timeout=10)
            return [partition.offset for partition in found]
        except KafkaException as error:  # the coordinator of a new cluster's first group is being looked for
            return [error.args[0].code()]
        finally:
            client.close()


def fill(
    servers: str, topic: str, count: int, size: int = 10, partitions: int = PARTITIONS, batch: int = 10_000
) -> None:
    producer = Producer({"bootstrap.servers": servers, "acks": "all", "batch.num.messages": batch})
    for number in range(count):
        producer.produce(topic, b"x" * size, partition=number % partitions)
    assert producer.flush(60) == 0


def expire(servers: str, topic: str, partition: int, before: int) -> None:
    """As retention does, and at once."""
    admin = AdminClient({"bootstrap.servers": servers})
    for future in admin.delete_records([TopicPartition(topic, partition, before)]).values():
        future.result(30)


def told(text: str) -> list[tuple[int, int, int, int]]:
    found = re.findall(r"records_expired .* partition=(\d+) from_offset=(\d+) to_offset=(\d+) count=(\d+)", text)
    return sorted(tuple(map(int, numbers)) for numbers in found)  # type: ignore[misc]


@PROTOCOLS
@pytest.mark.timeout(120)
def test_C1_records_that_expired_while_nobody_read_are_told_and_the_rest_is_handled(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    servers = kafka_cluster.bootstrap_servers
    group = Group(servers, topic, protocol)
    fill(servers, topic, 30)
    with group.running():
        group.wait(30)
    fill(servers, topic, 60)
    expire(servers, topic, 0, 25)
    expire(servers, topic, 2, 30)  # all of it
    with group.running():
        group.wait(30 + 25)
        fill(servers, topic, 3)
        group.wait(30 + 25 + 3)
    assert told(caplog.text) == [(0, 10, 25, 15), (2, 10, 30, 20)]
    expected = {(0, n) for n in (*range(10), *range(25, 31))} | {(1, n) for n in range(31)}
    expected |= {(2, n) for n in (*range(10), 30)}
    assert set(group.handled) == expected
    assert len(group.handled) == len(expected)
    assert group.committed() == [31, 31, 31]


@PROTOCOLS
@pytest.mark.timeout(120)
def test_C1_records_that_expire_before_a_slow_consumer_comes_to_them_are_told(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    servers = kafka_cluster.bootstrap_servers
    group = Group(
        servers,
        topic,
        {**protocol, "fetch.message.max.bytes": 20_000, "queued.min.messages": 1},
        max_in_flight=5,
    )
    fill(servers, topic, 90, size=10_000, batch=1)  # a batch is fetched as a whole
    group.may_go_on.clear()
    with group.running():
        group.wait(1)
        first = group.handled[0][0]
        expire(servers, topic, first, 25)
        group.may_go_on.set()
        wait_until(lambda: (first, 29) in group.handled, 60, "the end of the partition")
    ((partition, start, end, count),) = told(caplog.text)
    assert (partition, end, count) == (first, 25, 25 - start)
    of_first = [offset for number, offset in group.handled if number == first]
    assert of_first == [*range(start), *range(25, 30)]
    assert group.committed()[first] == 30


@PROTOCOLS
@pytest.mark.timeout(120)
def test_on_records_expired_stop_ends_the_consumer_before_anything_behind_the_gap(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    servers = kafka_cluster.bootstrap_servers
    group = Group(servers, topic, protocol)
    fill(servers, topic, 30)
    with group.running():
        group.wait(30)
    fill(servers, topic, 30)
    expire(servers, topic, 0, 15)
    consumer = SafeConsumer(group.config, [topic], on_records_expired="stop")
    with pytest.raises(RecordsExpired) as raised:
        consumer.run(group.handle)
    assert raised.value.gaps == ((topic, 0, 10, 15),)
    assert not [offset for number, offset in group.handled if number == 0 and offset >= 10]
    assert group.committed()[0] == 10


@PROTOCOLS
@pytest.mark.timeout(180)
def test_B_C20_after_repeated_rebalances_each_partition_is_where_the_group_committed(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    servers = kafka_cluster.bootstrap_servers
    group, other = Group(servers, topic, protocol), Group(servers, topic, protocol)
    fill(servers, topic, 30)
    with group.running():
        group.wait(30)
        wait_until(lambda: group.committed() == [10, 10, 10], 20, lambda: f"the commits: {group.committed()}")
        for turn in range(1, 4):
            with other.running():
                fill(servers, topic, 30)
                wait_until(
                    lambda turn=turn: len({*group.handled, *other.handled}) >= 30 + 30 * turn, 60, "all to be handled"
                )
                end = [10 + 10 * turn] * PARTITIONS
                wait_until(lambda end=end: group.committed() == end, 20, "the commits")
    handled = group.handled + other.handled
    assert set(handled) == {(number, offset) for number in range(PARTITIONS) for offset in range(40)}
    # Those that were taken, and given up or not yet committed, when the other one came. Never a partition anew.
    assert len(handled) - len(set(handled)) <= 30
    assert all(handled.count((number, offset)) == 1 for number in range(PARTITIONS) for offset in range(10))


@PROTOCOLS
@pytest.mark.timeout(180)
def test_B_C22_with_latest_no_record_is_skipped_after_the_very_first_start(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    servers = kafka_cluster.bootstrap_servers
    group = Group(
        servers, topic, {**protocol, "auto.offset.reset": "latest", "topic.metadata.refresh.interval.ms": 2000}
    )
    fill(servers, topic, 30)
    with group.running():
        wait_until(lambda: group.committed() == [10, 10, 10], 30, lambda: f"its end: {group.committed()}")
    assert group.handled == []

    fill(servers, topic, 60)  # while it is away
    expire(servers, topic, 1, 15)
    with group.running():
        group.wait(55)
        assert told(caplog.text) == [(1, 10, 15, 5)]

        admin = AdminClient({"bootstrap.servers": servers})
        admin.create_partitions([NewPartitions(topic, PARTITIONS + 1)])[topic].result(30)
        wait_until(lambda: len(admin.list_topics(topic).topics[topic].partitions) > PARTITIONS, 30, "the partition")
        fill(servers, topic, 40, partitions=PARTITIONS + 1)  # before the group knows of it
        group.wait(95)
    expected = {(number, offset) for number in range(PARTITIONS) for offset in range(10, 40)}
    expected |= {(PARTITIONS, offset) for offset in range(10)}
    assert set(group.handled) == expected - {(1, offset) for offset in range(10, 15)}
    assert group.committed(PARTITIONS + 1) == [40, 40, 40, 10]


@PROTOCOLS
@pytest.mark.timeout(180)
def test_B_C22_members_of_a_new_group_with_latest_that_start_together_skip_nothing(
    kafka_cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    servers = kafka_cluster.bootstrap_servers
    members = [Group(servers, topic, {**protocol, "auto.offset.reset": "latest"}) for _ in range(3)]
    fill(servers, topic, 30)
    with members[0].running(), members[1].running(), members[2].running():
        wait_until(lambda: members[0].committed() == [10, 10, 10], 60, lambda: f"its end: {members[0].committed()}")
        fill(servers, topic, 30)
        wait_until(lambda: len({one for member in members for one in member.handled}) >= 30, 60, "30 handled")
    handled = {one for member in members for one in member.handled}
    assert handled == {(number, offset) for number in range(PARTITIONS) for offset in range(10, 20)}


@pytest.mark.timeout(120)
def test_B_C06_transactions_and_a_deleted_start_leave_nothing_out_and_nothing_to_handle_again(
    kafka_cluster: KafkaCluster, topic: str
) -> None:
    """Their markers, and what was aborted, are offsets that no consumer gets; the last one of the log is such an
    offset."""
    servers = kafka_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers, "transactional.id": topic})
    producer.init_transactions(30)
    expected = []

    def transactions() -> None:
        for number in range(10):
            producer.begin_transaction()
            for _ in range(3):
                producer.produce(topic, b"%d" % (number % 3), partition=0, on_delivery=delivered)
            if number % 3:
                producer.commit_transaction(30)
            else:
                producer.flush(30)
                producer.abort_transaction(30)

    def delivered(_: object, message: Message) -> None:
        if message.value() != b"0":
            expected.append((0, message.offset() or 0))

    transactions()
    expire(servers, topic, 0, 5)
    expected = [one for one in expected if one[1] >= 5]
    group = Group(servers, topic, {}, order="key", concurrency=3)
    for _ in range(2):
        with group.running():
            group.wait(len(expected))
            wait_until(lambda: group.committed()[0] == expected[-1][1] + 1, 20, lambda: f"{group.committed()}")
        assert sorted(group.handled) == expected
        transactions()
    with group.running():
        group.wait(len(expected))
    assert sorted(group.handled) == expected


@pytest.mark.timeout(120)
def test_C1_a_topic_created_anew_is_handled_from_its_start(
    kafka_cluster: KafkaCluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = kafka_cluster.bootstrap_servers
    group = Group(servers, topic, {})
    fill(servers, topic, 60)
    with group.running():
        group.wait(60)
    kafka_cluster.delete_topic(topic)
    kafka_cluster.create_topic(topic, partitions=PARTITIONS)
    fill(servers, topic, 30)
    with group.running():
        group.wait(90)
    assert sorted(group.handled[60:]) == [(p, n) for p in range(PARTITIONS) for n in range(10)]
    beyond = sorted(re.findall(r"position_beyond_end .* partition=(\d+) offset=(\d+) start=(\d+)", caplog.text))
    assert beyond in ([], [("0", "20", "0"), ("1", "20", "0"), ("2", "20", "0")])  # the group's offsets may go with it
    assert group.committed() == [10, 10, 10]
