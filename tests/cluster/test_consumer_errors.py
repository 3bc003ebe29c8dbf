"""What real brokers tell a consumer besides messages: with each group protocol a typed error or an event, never
silence, and nothing is skipped."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka import Message, Producer
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from safekafka import (
    ConsumerAuthorizationError,
    ConsumerFencedError,
    SafeConsumer,
    SafeKafkaError,
    UnreadableRecordError,
)
from safekafka.consumer import topic_watch
from safekafka.testing import KafkaCluster
from tests.processes import wait_until

pytestmark = [pytest.mark.kills_brokers, pytest.mark.timeout(180)]
KIP_848 = {"group.protocol": "consumer"}
PROTOCOLS = pytest.mark.parametrize(
    "protocol", [{"partition.assignment.strategy": "range"}, KIP_848], ids=["range", "kip-848"]
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaCluster]:
    """One that looks at ACLs, with its data where we find them."""
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    folder = tmp_path_factory.mktemp("kafka")
    with KafkaCluster(controller="dedicated", settings=settings, work_dir=folder) as cluster:
        yield cluster


@pytest.fixture
def topic(cluster: KafkaCluster, request: pytest.FixtureRequest) -> str:
    name = f"t{abs(hash(request.node.name))}"
    cluster.create_topic(name, partitions=1)
    return name


def fill(cluster: KafkaCluster, topic: str, numbers: range) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "batch.num.messages": 1})
    for number in numbers:
        producer.produce(topic, b"record-%08d-of-the-test" % number, partition=0)
    assert producer.flush(30) == 0


class Member:
    """A consumer on a thread of its own, what it handled, and how it ended."""

    def __init__(self, cluster: KafkaCluster, topic: str, protocol: dict[str, Any], **settings: Any) -> None:
        session = {} if protocol is KIP_848 else {"session.timeout.ms": 6000}
        config = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"{topic}-group", **session}
        self.consumer = SafeConsumer({**config, **protocol, **settings}, [topic], commit_interval=0.2)
        self.numbers: list[int] = []
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.consumer.run(self._handle)
        except SafeKafkaError as error:
            self.failure = error

    def _handle(self, message: Message) -> None:
        self.numbers.append(int((message.value() or b"")[7:15]))

    @contextmanager
    def running(self) -> Iterator[Member]:
        self._thread.start()
        try:
            yield self
        finally:
            self.consumer.stop()
            self._thread.join(60)
        assert not self._thread.is_alive()

    def wait(self, numbers: range) -> None:
        wait_until(lambda: set(self.numbers) >= set(numbers), 60, lambda: f"{self.numbers} {self.failure!r}")

    def wait_failed(self) -> BaseException:
        wait_until(lambda: not self._thread.is_alive(), 60, "the end of run()")
        assert self.failure is not None
        return self.failure


@contextmanager
def without_right(
    cluster: KafkaCluster, kind: ResourceType, name: str, operation: AclOperation = AclOperation.READ
) -> Iterator[None]:
    """While inside."""
    admin = AdminClient({"bootstrap.servers": cluster.bootstrap_servers})
    what = (kind, name, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    # Once a resource has any ACL, it allows nothing but what is allowed by one.
    everything = AclBinding(*what, AclOperation.ALL, AclPermissionType.ALLOW)
    denied = AclBinding(*what, operation, AclPermissionType.DENY)
    for binding in (everything, denied):
        admin.create_acls([binding])[binding].result(30)
    yield
    lifted = AclBindingFilter(*what, operation, AclPermissionType.DENY)
    admin.delete_acls([lifted])[lifted].result(30)


@PROTOCOLS
def test_B_C32_a_second_member_with_the_same_instance_id_ends_one_of_the_two(
    cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    fill(cluster, topic, range(10))
    static = {"group.instance.id": "one"}
    with Member(cluster, topic, protocol, **static).running() as first:
        first.wait(range(10))
        with Member(cluster, topic, protocol, **static).running() as second:
            fenced, stays = (second, first) if protocol is KIP_848 else (first, second)
            failure = fenced.wait_failed()
            fill(cluster, topic, range(10, 20))
            stays.wait(range(10, 20))
    assert isinstance(failure, ConsumerFencedError)
    assert "group.instance.id of its own" in str(failure)
    assert stays.failure is None


@PROTOCOLS
def test_B_C32_a_topics_right_that_is_lost_and_given_back_is_told_and_nothing_is_missed(
    cluster: KafkaCluster, topic: str, protocol: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="safekafka")
    fill(cluster, topic, range(10))
    with Member(cluster, topic, protocol).running() as member:
        member.wait(range(10))
        with without_right(cluster, ResourceType.TOPIC, topic, AclOperation.READ):
            wait_until(lambda: "authorization_lost" in caplog.text, 30, lambda: caplog.text)
            assert f"no right to read topic {topic!r} any more" in member.consumer.health().problems
        fill(cluster, topic, range(10, 20))
        member.wait(range(20))
        wait_until(lambda: "authorization_regained" in caplog.text, 10, lambda: caplog.text)
        assert member.consumer.health().ok
    assert member.failure is None
    assert member.numbers == list(range(20))
    assert caplog.text.count("authorization_lost") == 1


@PROTOCOLS
def test_B_C32_a_consumer_that_never_had_the_right_stops(
    cluster: KafkaCluster, topic: str, protocol: dict[str, Any]
) -> None:
    fill(cluster, topic, range(10))
    with without_right(cluster, ResourceType.TOPIC, topic), Member(cluster, topic, protocol).running() as member:
        failure = member.wait_failed()
    assert isinstance(failure, ConsumerAuthorizationError)
    assert f"no right to read topic {topic!r}" in str(failure)
    with Member(cluster, topic, protocol).running() as member:
        member.wait(range(10))


@PROTOCOLS
def test_B_C32_the_groups_right_that_is_lost_is_told_and_nothing_is_missed(
    cluster: KafkaCluster, topic: str, protocol: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """With the one protocol the client waits for it, with the other it is at its end."""
    caplog.set_level("INFO", logger="safekafka")
    fill(cluster, topic, range(10))
    with Member(cluster, topic, protocol).running() as member:
        member.wait(range(10))
        with without_right(cluster, ResourceType.GROUP, f"{topic}-group"):
            if protocol is KIP_848:
                failure = member.wait_failed()
                assert isinstance(failure, ConsumerAuthorizationError)
            else:
                wait_until(lambda: "authorization_lost" in caplog.text, 60, lambda: caplog.text)
                assert "no right to read the group any more" in member.consumer.health().problems
        fill(cluster, topic, range(10, 20))
        if protocol is not KIP_848:
            member.wait(range(20))
            assert "authorization_regained" in caplog.text
    if protocol is KIP_848:
        with Member(cluster, topic, protocol).running() as member:
            member.wait(range(10, 20))


@PROTOCOLS
def test_B_C32_a_topic_that_is_not_there_is_told_with_each_group_protocol(
    cluster: KafkaCluster,
    protocol: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(topic_watch, "AFTER_SECONDS", 0.5)
    missing = f"not-there-yet-{protocol.get('group.protocol', 'classic')}"
    with Member(cluster, missing, protocol, **{"topic.metadata.refresh.interval.ms": 1000}).running() as member:
        wait_until(lambda: f"topic_unknown topic='{missing}'" in caplog.text, 60, lambda: caplog.text)
        cluster.create_topic(missing, partitions=1)
        fill(cluster, missing, range(10))
        member.wait(range(10))
    assert member.failure is None


def test_B_C32_a_damaged_record_stops_the_consumer_before_it_and_nothing_behind_it_is_committed(
    cluster: KafkaCluster, topic: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The raw client tells of it, passes it over, and hands out what stands behind it."""
    fill(cluster, topic, range(30))
    damaged = 0
    for log in tmp_path_factory.getbasetemp().rglob(f"{topic}-0/*.log"):
        at = log.read_bytes().find(b"record-00000015")
        with log.open("r+b") as file:
            file.seek(at)
            file.write(b"R")
        damaged += 1
    assert damaged == 3, "of each replica"
    handled: list[int] = []
    for _ in range(2):
        with Member(cluster, topic, {}).running() as member:
            failure = member.wait_failed()
        assert isinstance(failure, UnreadableRecordError)
        assert (failure.topic, failure.partition, failure.offset) == (topic, 0, 15)
        handled += member.numbers
    assert set(handled) <= set(range(15))
