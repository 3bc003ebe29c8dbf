"""What the mock cluster promises: real addresses for any client and process, faults on command, a harmless end."""

from __future__ import annotations

import _ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from safekafka.errors import ClosedError
from safekafka.testing.mock import ApiKey, MockCluster, MockUnavailableError, load_librdkafka

WAIT = 20.0  # s; bound of every wait, far more than any takes
Report = tuple[KafkaError | None, Message]


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with MockCluster() as running:
        yield running


def producer(cluster: MockCluster, **settings: Any) -> Producer:
    quick = {"reconnect.backoff.ms": 10, "reconnect.backoff.max.ms": 50, "retry.backoff.ms": 10, "log_level": 0}
    return Producer({"bootstrap.servers": cluster.bootstrap_servers, **quick, **settings})


def send(client: Producer, value: bytes, topic: str = "orders", partition: int = 0) -> list[Report]:
    """The list that the record's delivery report will be put into."""
    reports: list[Report] = []
    client.produce(
        topic, value, partition=partition, on_delivery=lambda error, message: reports.append((error, message))
    )
    return reports


def report(client: Producer, reports: list[Report]) -> Report:
    until(lambda: (client.poll(0.02), reports)[1])
    return reports[0]


def delivered(client: Producer, reports: list[Report]) -> Message:
    error, message = report(client, reports)
    assert error is None
    return message


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


def values(cluster: MockCluster, count: int, topic: str = "orders", partition: int = 0) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "test", "log_level": 0})
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        found: list[bytes | None] = []
        deadline = time.monotonic() + WAIT
        while len(found) < count and time.monotonic() < deadline:
            message = consumer.poll(0.1)
            if message is not None and message.error() is None:
                found.append(message.value())
        return found
    finally:
        consumer.close()


def test_a_record_comes_back_as_it_was_sent(cluster: MockCluster) -> None:
    cluster.create_topic("orders", partitions=2)
    client = producer(cluster)
    message = delivered(client, send(client, b"first", partition=1))
    assert (message.partition(), message.offset()) == (1, 0)
    assert values(cluster, 1, partition=1) == [b"first"]


def test_a_consumer_group_gets_its_partitions_without_the_three_seconds_of_a_first_join(cluster: MockCluster) -> None:
    cluster.create_topic("orders", partitions=4)
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "billing", "log_level": 0})
    consumer.subscribe(["orders"])
    started = time.monotonic()
    until(lambda: (consumer.poll(0.01), len(consumer.assignment()) == 4)[1])
    assert time.monotonic() - started < 2.5
    consumer.close()


def test_a_created_topic_has_the_partitions_and_replicas_that_were_asked_for(cluster: MockCluster) -> None:
    cluster.create_topic("orders", partitions=3)
    cluster.create_topic("single", replication_factor=1)
    topics = producer(cluster).list_topics(timeout=WAIT).topics
    assert len(topics["orders"].partitions) == 3
    assert len(topics["orders"].partitions[0].replicas) == 3
    assert len(topics["single"].partitions[0].replicas) == 1
    with pytest.raises(KafkaException, match="already exists"):
        cluster.create_topic("orders")


def test_what_was_sent_while_all_brokers_were_down_is_delivered_once_they_are_up(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    client = producer(cluster)
    delivered(client, send(client, b"before"))
    cluster.set_broker_down()
    reports = send(client, b"during")
    assert client.flush(0.3) == 1
    assert not reports
    cluster.set_broker_up()
    delivered(client, reports)
    assert values(cluster, 2) == [b"before", b"during"]


def test_one_broker_down_stops_its_partitions_only(cluster: MockCluster) -> None:
    cluster.create_topic("orders", partitions=2)
    cluster.set_leader("orders", 0, 1)
    cluster.set_leader("orders", 1, 2)
    client = producer(cluster)
    delivered(client, send(client, b"before"))
    cluster.set_broker_down(1)
    held = send(client, b"held", partition=0)
    delivered(client, send(client, b"flows", partition=1))
    assert not held
    cluster.set_broker_up(1)
    delivered(client, held)


def test_a_round_trip_takes_the_time_that_was_set(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    client = producer(cluster)
    delivered(client, send(client, b"connects"))
    cluster.set_rtt(None, 0.4)
    started = time.monotonic()
    delivered(client, send(client, b"slow"))
    assert 0.4 <= time.monotonic() - started < 1.5
    cluster.set_rtt(None, 0)
    started = time.monotonic()
    delivered(client, send(client, b"quick"))
    assert time.monotonic() - started < 0.4


def test_retriable_errors_are_retried_until_the_record_is_in_the_log(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.start_request_tracking()
    errors = KafkaError.NOT_ENOUGH_REPLICAS, KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_LEADER_FOR_PARTITION
    cluster.push_request_errors(ApiKey.Produce, *errors)
    client = producer(cluster, **{"enable.idempotence": True})
    delivered(client, send(client, b"once"))
    assert len(cluster.requests(ApiKey.Produce)) == 4
    assert values(cluster, 1) == [b"once"]


def test_an_error_that_can_not_be_retried_is_reported_with_its_code(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.push_request_errors(ApiKey.Produce, KafkaError.TOPIC_AUTHORIZATION_FAILED)
    client = producer(cluster)
    reports = send(client, b"refused")
    error, _ = report(client, reports)
    assert error is not None
    assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED


def test_a_cut_connection_instead_of_an_answer_is_survived(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    client = producer(cluster, **{"enable.idempotence": True})
    delivered(client, send(client, b"connects"))
    cluster.push_request_errors(ApiKey.Produce, KafkaError._TRANSPORT)
    delivered(client, send(client, b"after"))
    assert values(cluster, 2) == [b"connects", b"after"]


def test_cleared_errors_do_not_happen(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 3)
    cluster.clear_request_errors(ApiKey.Produce)
    client = producer(cluster)
    delivered(client, send(client, b"fine"))


def test_an_error_of_one_broker_is_answered_by_that_broker_after_its_delay(cluster: MockCluster) -> None:
    cluster.create_topic("orders", partitions=2)
    cluster.set_leader("orders", 0, 1)
    cluster.set_leader("orders", 1, 2)
    client = producer(cluster)
    delivered(client, send(client, b"connects", partition=0))
    delivered(client, send(client, b"connects", partition=1))
    cluster.push_broker_request_errors(2, ApiKey.Produce, (KafkaError.NOT_ENOUGH_REPLICAS, 0.2), (0, 0.2))
    started = time.monotonic()
    slow = send(client, b"slow", partition=1)
    delivered(client, send(client, b"quick", partition=0))
    assert not slow
    delivered(client, slow)
    assert time.monotonic() - started >= 0.4
    assert values(cluster, 2, partition=1) == [b"connects", b"slow"]


def test_a_moved_leader_gets_the_next_record_behind_those_of_the_old_one(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.set_leader("orders", 0, 1)
    client = producer(cluster)
    delivered(client, send(client, b"old"))
    cluster.start_request_tracking()
    cluster.set_leader("orders", 0, 3)
    delivered(client, send(client, b"new"))
    assert cluster.requests(ApiKey.Produce)[-1].broker_id == 3
    assert values(cluster, 2) == [b"old", b"new"]


def test_a_partition_without_leader_takes_records_again_once_it_has_one(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.set_leader("orders", 0, None)
    client = producer(cluster, **{"topic.metadata.refresh.fast.interval.ms": 20})
    reports = send(client, b"waits")
    assert client.flush(0.3) == 1
    cluster.set_leader("orders", 0, 2)
    delivered(client, reports)


def test_the_coordinator_of_a_group_can_be_chosen(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.start_request_tracking()
    for broker in (1, 2, 3):
        cluster.set_coordinator("group", f"billing-{broker}", broker)
        consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"billing-{broker}"})
        consumer.commit(offsets=[TopicPartition("orders", 0, 1)], asynchronous=False)
        consumer.close()
    assert [request.broker_id for request in cluster.requests(ApiKey.OffsetCommit)] == [1, 2, 3]


def test_a_topic_error_is_seen_in_metadata_until_it_is_taken_back(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    client = producer(cluster)
    cluster.set_topic_error("orders", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    error = client.list_topics("orders", timeout=WAIT).topics["orders"].error
    assert error is not None
    assert error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED
    cluster.set_topic_error("orders", None)
    assert client.list_topics("orders", timeout=WAIT).topics["orders"].error is None


def test_tracked_requests_have_broker_type_and_a_time_comparable_with_monotonic(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    cluster.set_leader("orders", 0, 2)
    started = time.monotonic()
    cluster.start_request_tracking()
    client = producer(cluster)
    delivered(client, send(client, b"x"))
    (request,) = cluster.requests(ApiKey.Produce)
    assert (request.broker_id, request.api_key) == (2, ApiKey.Produce)
    assert started <= request.received_at <= time.monotonic()
    assert {ApiKey.Metadata, ApiKey.Produce} <= {each.api_key for each in cluster.requests()}


def test_a_producer_in_the_fatal_state_refuses_everything_with_code_and_reason(cluster: MockCluster) -> None:
    client = producer(cluster, **{"enable.idempotence": True})
    cluster.trigger_fatal_error(client, KafkaError.INVALID_PRODUCER_EPOCH, "as after a fence")
    with pytest.raises(KafkaException, match="as after a fence") as caught:
        client.flush(WAIT)
    assert caught.value.args[0].fatal()
    assert caught.value.args[0].code() == KafkaError.INVALID_PRODUCER_EPOCH
    with pytest.raises(KafkaException) as caught:
        client.produce("orders", b"x")
    assert caught.value.args[0].code() == KafkaError._FATAL
    with pytest.raises(KafkaException, match="trigger_fatal_error"):
        cluster.trigger_fatal_error(client)


def test_a_consumer_can_be_given_a_fatal_error_too(cluster: MockCluster) -> None:
    consumer = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": "g", "log_level": 0})
    cluster.trigger_fatal_error(consumer, KafkaError.FENCED_INSTANCE_ID)
    message = consumer.poll(WAIT)
    assert message is not None
    error = message.error()
    assert error is not None
    assert error.code() == KafkaError._FATAL
    assert "triggered by a test" in error.str()
    del consumer  # close() of a consumer in the fatal state never returns (librdkafka 2.16.0)


def test_a_fatal_error_reaches_the_raw_client_of_a_wrapper_and_of_a_subclass(cluster: MockCluster) -> None:
    class Wrapper:
        def __init__(self, client: Producer) -> None:
            self.raw_client = client

    class OwnProducer(Producer):  # type: ignore[misc]
        pass

    settings = {"bootstrap.servers": cluster.bootstrap_servers, "log_level": 0}
    for client in (producer(cluster), OwnProducer(settings)):
        cluster.trigger_fatal_error(Wrapper(client))
        with pytest.raises(KafkaException, match="triggered by a test"):
            client.flush(WAIT)


def test_what_is_not_a_client_of_the_known_layout_gives_an_error_instead_of_a_crash(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LooksLikeProducer:  # its first field is a Python object, not a client
        __slots__ = ("field",)

    other = LooksLikeProducer()
    for field in (None, "text", 12345, object()):
        other.field = field  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr("safekafka.testing.mock.Producer", LooksLikeProducer)
            with pytest.raises(MockUnavailableError, match=r"constraints\.txt"):
                cluster.trigger_fatal_error(other)  # type: ignore[arg-type]


def test_a_library_without_mock_brokers_gives_an_error_with_the_remedy() -> None:
    for extension in (_ctypes.__file__, "/does/not/exist.so"):
        with pytest.raises(MockUnavailableError, match="pip install"):
            load_librdkafka(extension)


def test_two_clusters_at_once_know_nothing_of_each_other(cluster: MockCluster) -> None:
    with MockCluster(brokers=1) as other:
        for each in (cluster, other):
            each.create_topic("orders")
        other.set_broker_down()
        client = producer(cluster)
        delivered(client, send(client, b"here"))
        other.set_broker_up()
        assert set(other.bootstrap_servers.split(",")).isdisjoint(cluster.bootstrap_servers.split(","))
        second = producer(other)
        delivered(second, send(second, b"there"))
        assert values(other, 1) == [b"there"]
    delivered(client, send(client, b"still here"))


def test_many_threads_may_use_one_cluster_while_it_is_closed() -> None:
    cluster = MockCluster().start()
    ended = threading.Event()
    refused: list[ClosedError] = []

    def use() -> None:
        while not ended.is_set():
            try:
                cluster.set_rtt(1, 0)
                cluster.requests()
            except ClosedError as error:
                refused.append(error)
                return

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    cluster.close()
    for thread in threads:
        thread.join(WAIT)
    ended.set()
    assert len(refused) == 4


def test_close_is_idempotent_quick_and_leaves_nothing_to_use(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    client = producer(cluster)
    delivered(client, send(client, b"x"))
    cluster.set_rtt(None, 30)
    send(client, b"waits for its answer")
    started = time.monotonic()
    cluster.close()
    cluster.close()
    assert time.monotonic() - started < 2
    for use in (lambda: cluster.bootstrap_servers, lambda: cluster.create_topic("t"), cluster.set_broker_down):
        with pytest.raises(ClosedError, match="not running"):
            use()
    client.purge()


def test_a_cluster_can_be_started_again_and_begins_empty(cluster: MockCluster) -> None:
    assert cluster.start() is cluster
    cluster.create_topic("orders")
    cluster.close()
    cluster.start()
    assert "orders" not in producer(cluster).list_topics(timeout=WAIT).topics


def test_a_cluster_that_nobody_holds_any_more_is_ended() -> None:
    cluster = MockCluster().start()
    client = producer(cluster)
    client.list_topics(timeout=WAIT)
    del cluster
    with pytest.raises(KafkaException):
        client.list_topics("other", timeout=0.5)


@pytest.mark.parametrize("broker_id", [0, 4, -1])
def test_a_broker_that_does_not_exist_is_refused(cluster: MockCluster, broker_id: int) -> None:
    for use in (cluster.set_broker_down, cluster.set_broker_up):
        with pytest.raises(ValueError, match="the brokers are 1 to 3"):
            use(broker_id)
    with pytest.raises(ValueError, match="the brokers are 1 to 3"):
        cluster.set_leader("orders", 0, broker_id)
    with pytest.raises(ValueError, match="at least 1"):
        MockCluster(brokers=0)
    with pytest.raises(ValueError, match="negative"):
        cluster.set_rtt(None, -1)


CHILD = """
import sys
from confluent_kafka import Producer
client = Producer({"bootstrap.servers": sys.argv[1]})
client.produce("orders", b"from a child")
sys.exit(client.flush(20))
"""


def test_another_program_can_produce_to_it(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    child = subprocess.run([sys.executable, "-c", CHILD, cluster.bootstrap_servers], timeout=60, check=False)
    assert child.returncode == 0
    assert values(cluster, 1) == [b"from a child"]


def produce_in_child(bootstrap_servers: str) -> None:
    client = Producer({"bootstrap.servers": bootstrap_servers})
    client.produce("orders", b"from a spawned process")
    if client.flush(WAIT):
        sys.exit(1)


def test_a_spawned_process_can_produce_to_it(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    child = multiprocessing.get_context("spawn").Process(target=produce_in_child, args=(cluster.bootstrap_servers,))
    child.start()
    child.join(60)
    assert child.exitcode == 0
    assert values(cluster, 1) == [b"from a spawned process"]


def use_after_fork(cluster: MockCluster, wait: Any) -> None:
    produce_in_child(cluster.bootstrap_servers)
    try:
        cluster.set_broker_down()
        sys.exit(2)
    except ClosedError:
        pass
    wait.wait(WAIT)
    cluster.close()
    del cluster


def test_a_forked_child_can_use_and_leave_it_without_harm_to_the_parents(cluster: MockCluster) -> None:
    cluster.create_topic("orders")
    client = producer(cluster)
    delivered(client, send(client, b"before the fork"))
    fork = multiprocessing.get_context("fork")
    proceed = fork.Event()
    child = fork.Process(target=use_after_fork, args=(cluster, proceed))
    child.start()
    assert values(cluster, 2) == [b"before the fork", b"from a spawned process"]
    # The child has copies of the brokers' sockets. The ports must be free all the same, and the connections cut.
    cluster.set_broker_down()
    with pytest.raises(KafkaException):
        client.list_topics("unseen", timeout=0.3)
    cluster.set_broker_up()
    proceed.set()
    child.join(60)
    assert child.exitcode == 0
    delivered(client, send(client, b"after the child"))


def test_the_process_ends_at_once_and_quietly_with_a_cluster_that_nobody_closed() -> None:
    program = "from safekafka.testing.mock import MockCluster; kept = MockCluster().start()"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", program], timeout=30, capture_output=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
