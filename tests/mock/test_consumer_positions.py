"""Where a SafeConsumer starts and goes on, on mock brokers: nothing is skipped in silence, and never to the end."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from safekafka import RecordsExpired, SafeConsumer, SafeKafkaError
from safekafka.testing import MockCluster
from safekafka.testing.mock import ApiKey
from tests.processes import wait_until

TOPIC, GROUP, PARTITIONS = "orders", "billing", 3
ASSIGNORS = pytest.mark.parametrize("assignor", ["range", "cooperative-sticky"])
Taken = list[tuple[int, int]]


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=PARTITIONS, replication_factor=3)
    return kafka_mock


def fill(cluster: MockCluster, count: int, size: int = 10, partition: int | None = None) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "acks": "all"})
    for n in range(count):
        producer.produce(TOPIC, b"x" * size, partition=n % PARTITIONS if partition is None else partition)
        producer.poll(0)
    assert producer.flush(60) == 0


def commit(cluster: MockCluster, *offsets: TopicPartition) -> None:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    client.commit(offsets=list(offsets), asynchronous=False)
    client.close()


def committed(cluster: MockCluster, topic: str = TOPIC, partitions: int = PARTITIONS) -> dict[int, int]:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    try:
        answer = client.committed([TopicPartition(topic, number) for number in range(partitions)], timeout=10)
        return {one.partition: one.offset for one in answer if one.offset >= 0}
    finally:
        client.close()


def consumer_of(cluster: MockCluster, config: dict[str, Any] | None = None, **options: Any) -> SafeConsumer:
    options.setdefault("commit_interval", 0.1)
    return SafeConsumer(
        {
            "bootstrap.servers": cluster.bootstrap_servers,
            "group.id": GROUP,
            "session.timeout.ms": 6000,
            "heartbeat.interval.ms": 200,
            **(config or {}),
        },
        [TOPIC],
        **options,
    )


@contextmanager
def running(consumer: SafeConsumer, handler: Callable[[Message], Any]) -> Iterator[None]:
    thread = threading.Thread(target=consumer.run, args=(handler,))
    thread.start()
    try:
        yield
    finally:
        consumer.close()
        thread.join(30)
    assert not thread.is_alive()


def into(taken: Taken) -> Callable[[Message], None]:
    return lambda message: taken.append((message.partition() or 0, message.offset() or 0))


def everything(*ranges: range) -> Taken:
    return sorted((number, offset) for number, offsets in enumerate(ranges) for offset in offsets)


@ASSIGNORS
def test_C1_a_position_beyond_the_end_goes_on_at_the_start_and_tells_it(
    cluster: MockCluster, assignor: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 30)
    commit(cluster, TopicPartition(TOPIC, 0, 500), TopicPartition(TOPIC, 1, 4))
    taken: Taken = []
    with running(consumer_of(cluster, {"partition.assignment.strategy": assignor}), into(taken)):
        wait_until(lambda: len(taken) >= 26, 30, lambda: f"26 handled: {sorted(taken)}")
        wait_until(lambda: committed(cluster) == {0: 10, 1: 10, 2: 10}, 10, "the commits")
    assert sorted(taken) == everything(range(10), range(4, 10), range(10))
    assert caplog.text.count("position_beyond_end") == 1
    assert "position_beyond_end topic='orders' partition=0 offset=500 start=0" in caplog.text


@ASSIGNORS
def test_B_C21_what_retention_overtook_while_nobody_read_is_told_and_the_rest_is_handled(
    cluster: MockCluster, assignor: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 60, size=100_000, partition=0)  # mock brokers keep the last 5 MB
    commit(cluster, TopicPartition(TOPIC, 0, 2))
    taken: Taken = []
    with running(consumer_of(cluster, {"partition.assignment.strategy": assignor}), into(taken)):
        wait_until(lambda: (0, 59) in taken, 30, lambda: f"the end: {taken[-3:]}")
    low = taken[0][1]
    assert 2 < low < 59
    assert taken == [(0, offset) for offset in range(low, 60)]
    assert caplog.text.count("records_expired") == 1
    assert f"partition=0 from_offset=2 to_offset={low} count={low - 2}" in caplog.text


@ASSIGNORS
def test_C1_what_retention_overtakes_while_a_handler_is_slow_is_told(
    cluster: MockCluster, assignor: str, caplog: pytest.LogCaptureFixture
) -> None:
    fill(cluster, 12, size=300_000)
    may_go_on = threading.Event()
    taken: Taken = []

    def slow(message: Message) -> None:
        taken.append((message.partition() or 0, message.offset() or 0))
        assert may_go_on.wait(60)

    few = {"fetch.message.max.bytes": 600_000, "queued.min.messages": 1, "partition.assignment.strategy": assignor}
    with running(consumer_of(cluster, few, max_in_flight=10), slow):
        wait_until(lambda: bool(taken), 30, "the first message")
        for partition in range(PARTITIONS):
            fill(cluster, 40, size=300_000, partition=partition)
        may_go_on.set()
        wait_until(
            lambda: all((partition, 43) in taken for partition in range(PARTITIONS)), 60, lambda: f"{taken[-3:]}"
        )
    told = [line for line in caplog.text.splitlines() if "records_expired" in line]
    for partition in range(PARTITIONS):
        offsets = [offset for number, offset in taken if number == partition]
        assert offsets == sorted(set(offsets))
        assert len(offsets) < 44
        gaps = [(a + 1, b) for a, b in zip([-1, *offsets], offsets, strict=False) if b != a + 1]
        for start, end in gaps:
            assert any(f"partition={partition} from_offset={start} to_offset={end}" in line for line in told), told
        assert sum(f"partition={partition} " in line for line in told) == len(gaps)


def test_a_program_seeks_in_a_partition_whose_position_is_gone_and_that_the_client_reads_nothing_of(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """The client refuses to seek in it."""
    fill(cluster, 30)
    commit(cluster, *(TopicPartition(TOPIC, number, offset) for number, offset in enumerate([500, 10, 10])))
    with consumer_of(cluster) as consumer:
        positions = consumer._session._positions
        ask = positions.ask
        positions.ask = lambda: None  # type: ignore[method-assign]
        wait_until(lambda: (consumer.poll(0.1), (TOPIC, 0) in positions._lost)[1], 30, "the client to tell of it")
        consumer.seek(TopicPartition(TOPIC, 0, 3))
        positions.ask = ask  # type: ignore[method-assign]
        offsets: list[int | None] = []
        end = time.monotonic() + 20
        while len(offsets) < 7 and time.monotonic() < end:
            offsets += [message.offset() for message in consumer.consume(10, 0.2)]
    assert offsets == list(range(3, 10))
    assert "position_beyond_end" not in caplog.text


def test_on_records_expired_stop_raises_and_commits_nothing_behind_the_gap(cluster: MockCluster) -> None:
    fill(cluster, 60, size=100_000, partition=0)
    commit(cluster, TopicPartition(TOPIC, 0, 2))
    taken: Taken = []
    for _ in range(2):  # until an operator has decided
        with pytest.raises(RecordsExpired, match=r"orders\[0\] 2 to ") as raised:
            consumer_of(cluster, on_records_expired="stop").run(into(taken))
        assert raised.value.gaps[0][:3] == (TOPIC, 0, 2)
    assert taken == []
    assert committed(cluster) == {0: 2}


def test_an_unknown_choice_for_expired_records_is_refused(cluster: MockCluster) -> None:
    with pytest.raises(ValueError, match="on_records_expired='stopp'"):
        consumer_of(cluster, on_records_expired="stopp")


@pytest.mark.parametrize("offset", [None, 500], ids=["none committed", "beyond the end"])
def test_a_consumer_that_is_to_stop_without_a_position_stops_and_commits_nothing(
    cluster: MockCluster, offset: int | None
) -> None:
    fill(cluster, 30)
    before = {0: 1, 1: 1, 2: 1, **({} if offset is None else {0: offset})}
    if offset is None:
        del before[0]
    commit(cluster, *(TopicPartition(TOPIC, number, one) for number, one in before.items()))
    with pytest.raises(SafeKafkaError, match=r"orders\[0\].*auto.offset.reset=error"):
        consumer_of(cluster, {"auto.offset.reset": "error"}).run(lambda _: threading.Event().wait(0.5))
    assert committed(cluster).get(0) == offset


@ASSIGNORS
@pytest.mark.parametrize("known", [True, False], ids=["committed", "new"])
def test_a_partition_without_a_leader_holds_up_no_other(cluster: MockCluster, assignor: str, known: bool) -> None:
    fill(cluster, 30)
    if known:
        commit(cluster, *(TopicPartition(TOPIC, number, 4) for number in range(PARTITIONS)))
    start = 4 if known else 0
    cluster.set_leader(TOPIC, 0, None)
    taken: Taken = []
    with running(consumer_of(cluster, {"partition.assignment.strategy": assignor}), into(taken)):
        wait_until(lambda: len(taken) >= 2 * (10 - start), 30, lambda: f"two partitions: {taken}")
        cluster.set_leader(TOPIC, 0, 1)
        wait_until(lambda: len(taken) >= 3 * (10 - start), 30, lambda: f"all three: {taken}")
    assert sorted(taken) == everything(*[range(start, 10)] * PARTITIONS)


@pytest.mark.parametrize("calls", ["poll", "pause and poll", "consume", "pause and consume"])
def test_the_client_tells_a_partition_without_position_although_it_is_paused_meanwhile(
    cluster: MockCluster, calls: str
) -> None:
    """What `Positions` rests on: a partition that is told nowhere would be read no more, in silence."""
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, "auto.offset.reset": "error"})
    cluster.start_request_tracking()
    client.assign([TopicPartition(TOPIC, 0, 500)])
    wait_until(lambda: bool(cluster.requests(ApiKey.Fetch)), 10, "the first fetch")
    client.get_watermark_offsets(TopicPartition(TOPIC, 0), timeout=10)  # answered behind it by the same leader
    if calls.startswith("pause"):
        client.pause(client.assignment())
        client.resume(client.assignment())
    found = client.consume(5, 2.0) if calls.endswith("consume") else [client.poll(5.0)]
    client.close()
    assert [(one.error().name(), one.offset()) for one in found if one is not None] == [("_AUTO_OFFSET_RESET", 500)]


def test_C3_a_position_that_is_asked_for_while_the_group_rebalances_moves_no_partition_under_a_running_handler(
    cluster: MockCluster,
) -> None:
    """Assigned anew then, one of them would be the answer to the rebalance for the client, and its callback be late.

    Mock brokers wait at a rebalance for no longer than a session. On a busy machine another rebalance may follow while
    the first member still lets its handlers finish, and they cut it off: that try tells nothing.
    """
    tries = (handled_by_both(cluster, f"{GROUP}-{number}") for number in range(6))
    assert next((overlaps for overlaps in tries if overlaps is not None), "cut off each time") == []


def handled_by_both(cluster: MockCluster, group: str) -> list[int] | None:
    """Partitions whose next message began at the second member while the first one's was running. None: the group cut
    the first one off, and gave all of them to the second."""
    fill(cluster, PARTITIONS)
    cluster.start_request_tracking()
    busy: set[int] = set()
    begun: list[int] = []  # by the other member
    overlaps: list[int] = []
    given: set[int] = set()  # to the other member
    joined, asked = threading.Event(), threading.Event()

    def take_long(message: Message) -> None:
        busy.add(message.partition() or 0)
        assert asked.wait(30)
        time.sleep(4)  # in which the other member would begin
        busy.discard(message.partition() or 0)

    def other(message: Message) -> None:
        begun.append(message.partition() or 0)
        overlaps.extend(busy & {message.partition() or 0})

    quick = {"session.timeout.ms": 1500, "heartbeat.interval.ms": 100}
    config = {"partition.assignment.strategy": "cooperative-sticky", "group.id": group, **quick}
    consumer = consumer_of(cluster, config, concurrency=PARTITIONS)
    positions = consumer._session._positions
    ask = positions.ask

    def ask_slowly() -> None:
        if joined.is_set() and not asked.is_set():
            before = len(cluster.requests(ApiKey.SyncGroup))
            wait_until(lambda: len(cluster.requests(ApiKey.SyncGroup)) >= before + 2, 20, "the rebalance")
            time.sleep(0.3)  # until the client has the answer to its own
            positions._lost[TOPIC, 0] = False
            asked.set()
        ask()

    positions.ask = ask_slowly  # type: ignore[method-assign]
    with running(consumer, take_long):
        wait_until(lambda: len(busy) == PARTITIONS, 30, lambda: f"all to be handled: {busy}")
        joined.set()
        second = consumer_of(cluster, config)
        second.subscribe([TOPIC], on_assign=lambda _, partitions: given.update(one.partition for one in partitions))
        with running(second, other):
            assert asked.wait(30)
            fill(cluster, PARTITIONS)
            wait_until(lambda: bool(begun), 40, "the other member's first message")
    return overlaps if len(given) < PARTITIONS else None


# ---- latest


def test_B_C22_a_new_group_with_latest_handles_what_came_after_its_first_start_although_it_went_down(
    cluster: MockCluster,
) -> None:
    fill(cluster, 30)
    latest = {"auto.offset.reset": "latest"}
    taken: Taken = []
    with running(consumer_of(cluster, latest), into(taken)):
        wait_until(lambda: len(committed(cluster)) == PARTITIONS, 20, "the first position to be committed")
    assert taken == []
    fill(cluster, 30)
    with running(consumer_of(cluster, latest), into(taken)):
        wait_until(lambda: len(taken) >= 30, 20, lambda: f"30 handled: {taken}")
    assert sorted(taken) == everything(*[range(10, 20)] * PARTITIONS)


def test_B_C22_with_latest_nothing_is_handed_out_before_its_position_is_committed(cluster: MockCluster) -> None:
    fill(cluster, 30)
    commit_at_first: list[dict[int, int]] = []
    taken: Taken = []

    def handle(message: Message) -> None:
        if not commit_at_first:
            commit_at_first.append(committed(cluster))
        into(taken)(message)

    with running(consumer_of(cluster, {"auto.offset.reset": "latest"}, commit_interval=60), handle):
        wait_until(lambda: (fill(cluster, 3), len(taken) >= 9)[1], 30, "messages behind the start")
    assert set(commit_at_first[0]) == set(range(PARTITIONS))
    for partition, start in commit_at_first[0].items():
        offsets = [offset for number, offset in taken if number == partition]
        assert offsets == list(range(start, start + len(offsets)))


def test_B_C22_with_latest_a_crash_before_the_first_message_is_committed_skips_nothing(cluster: MockCluster) -> None:
    fill(cluster, 30)
    killed = textwrap.dedent(
        f"""
        import os, signal
        from safekafka import SafeConsumer

        SafeConsumer(
            {{
                "bootstrap.servers": "{cluster.bootstrap_servers}",
                "group.id": "{GROUP}",
                "session.timeout.ms": 6000,
                "auto.offset.reset": "latest",
            }},
            ["{TOPIC}"],
        ).run(lambda message: os.kill(os.getpid(), signal.SIGKILL))
        """
    )
    process = subprocess.Popen([sys.executable, "-c", killed])
    try:
        wait_until(lambda: len(committed(cluster)) == PARTITIONS, 20, "the first position to be committed")
        start = committed(cluster)
        fill(cluster, 30)
        assert process.wait(20) == -signal.SIGKILL
    finally:
        process.kill()
        process.wait()
    assert committed(cluster) == start
    taken: Taken = []
    with running(consumer_of(cluster, {"auto.offset.reset": "latest"}), into(taken)):
        wait_until(lambda: len(taken) >= 30, 30, lambda: f"30 handled: {taken}")
    assert sorted(taken) == everything(*[range(10, 20)] * PARTITIONS)


def test_B_C22_members_of_a_new_group_with_latest_that_start_together_skip_nothing(cluster: MockCluster) -> None:
    """The second one must neither take the first one's offsets for those of an old group, nor move them."""
    cluster._call("rd_kafka_mock_group_initial_rebalance_delay_ms", 2_000)  # they get their first partitions together
    fill(cluster, 30)
    latest = {"auto.offset.reset": "latest"}
    taken: Taken = []
    with running(consumer_of(cluster, latest), into(taken)), running(consumer_of(cluster, latest), into(taken)):
        wait_until(lambda: len(committed(cluster)) == PARTITIONS, 20, "the first position to be committed")
        assert committed(cluster) == dict.fromkeys(range(PARTITIONS), 10)
        fill(cluster, 30)
        wait_until(lambda: len(set(taken)) >= 30, 30, lambda: f"30 handled: {taken}")
    assert sorted(set(taken)) == everything(*[range(10, 20)] * PARTITIONS)  # mock brokers refuse commits at rebalances


def test_with_latest_a_partition_without_offset_starts_at_its_beginning_where_the_group_has_been(
    cluster: MockCluster,
) -> None:
    """As one that was added since."""
    fill(cluster, 30)
    commit(cluster, TopicPartition(TOPIC, 0, 10), TopicPartition(TOPIC, 1, 10))
    taken: Taken = []
    with running(consumer_of(cluster, {"auto.offset.reset": "latest"}), into(taken)):
        wait_until(lambda: len(taken) >= 10, 20, lambda: f"10 handled: {taken}")
    assert sorted(taken) == everything(range(0), range(0), range(10))


def test_with_latest_a_topic_that_the_group_subscribes_to_later_starts_at_its_end(cluster: MockCluster) -> None:
    fill(cluster, 30)
    commit(cluster, *(TopicPartition(TOPIC, number, 4) for number in range(PARTITIONS)))
    cluster.create_topic("payments", partitions=1, replication_factor=3)
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for _ in range(5):
        producer.produce("payments", b"before")
    assert producer.flush(30) == 0
    taken: list[tuple[str | None, int | None]] = []
    consumer = SafeConsumer(
        {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, "auto.offset.reset": "latest"},
        [TOPIC, "payments"],
    )
    with running(consumer, lambda message: taken.append((message.topic(), message.offset()))):
        wait_until(lambda: committed(cluster, "payments", 1) == {0: 5}, 20, "its end to be committed")
        producer.produce("payments", b"behind")
        assert producer.flush(30) == 0
        wait_until(lambda: len(taken) >= 19, 20, lambda: f"19 handled: {taken}")
    assert [offset for topic, offset in taken if topic == "payments"] == [5]


def test_the_start_of_many_partitions_takes_few_requests(kafka_mock: MockCluster) -> None:
    topic, partitions = "many", 1_000
    kafka_mock.create_topic(topic, partitions=partitions, replication_factor=3)
    kafka_mock.start_request_tracking()
    consumer = SafeConsumer(
        {"bootstrap.servers": kafka_mock.bootstrap_servers, "group.id": GROUP, "auto.offset.reset": "latest"}, [topic]
    )
    taken: Taken = []
    with running(consumer, into(taken)):
        wait_until(lambda: len(committed(kafka_mock, topic, partitions)) == partitions, 30, "the commit of all")
        producer = Producer({"bootstrap.servers": kafka_mock.bootstrap_servers})
        for partition in range(partitions):
            producer.produce(topic, b"x", partition=partition)
        assert producer.flush(30) == 0
        wait_until(lambda: len(taken) >= partitions, 30, lambda: f"all to be handled: {len(taken)}")
        asked = len(kafka_mock.requests(ApiKey.ListOffsets))
    assert asked <= 12  # the starts of the logs twice and their ends once, of three leaders
