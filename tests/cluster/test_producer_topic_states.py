"""P2, P3: a topic that goes away, or may not be written to, holds its records back and no others; then all arrive, in
order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from safekafka import Receipt, SafeProducer
from safekafka.testing import KafkaCluster
from tests.cluster.producer_faults import Background, Pace, judge
from tests.processes import wait_until

RATE = 300.0


class Sender:
    """Sends numbered records to topics in turn, and keeps when each outcome was told."""

    def __init__(self, producer: SafeProducer, *topics: str) -> None:
        self._producer = producer
        self.receipts: dict[str, list[Receipt]] = {topic: [] for topic in topics}
        self.told: dict[str, dict[int, float]] = {topic: {} for topic in topics}
        self._pace = Pace(RATE)
        self._steps = 0

    def step(self) -> None:
        """One record to each topic."""
        self._pace.wait(self._steps)
        self._steps += 1
        for topic, receipts in self.receipts.items():
            number, told = len(receipts), self.told[topic]
            receipts.append(self._producer.send(topic, str(number), partition=0))
            receipts[-1].add_done_callback(lambda _, n=number, told=told: told.setdefault(n, time.monotonic()))

    def send_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step()


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("absent", "config"),
    [
        # The client reports a missing topic only after topic.metadata.propagation.max.ms, 30 s by default.
        pytest.param(0.2, {}, id="at-once"),
        pytest.param(5.0, {"topic.metadata.propagation.max.ms": 1_000}, id="after-5-seconds"),
    ],
)
def test_B_P23_what_is_delivered_after_a_topic_was_created_again_is_in_the_new_one(
    kafka_cluster: KafkaCluster, topic: str, absent: float, config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="safekafka")
    again, servers = f"{topic[:80]}-again", kafka_cluster.bootstrap_servers
    kafka_cluster.create_topic(again)
    gone: list[float] = []
    made: list[float] = []

    def delete_and_create() -> None:
        time.sleep(1)
        kafka_cluster.delete_topic(again)
        gone.append(time.monotonic())
        time.sleep(absent)
        made.append(time.monotonic())
        kafka_cluster.create_topic(again)

    try:
        with SafeProducer({"bootstrap.servers": servers, **config}) as producer:
            sender = Sender(producer, again, topic)
            sender.step()
            for receipts in sender.receipts.values():
                receipts[0].result(30)  # the old topic has records before it goes
            with Background(delete_and_create) as background:
                while background.running():
                    sender.step()
            sender.send_for(2)
            assert producer.flush(60) == 0
            stats = producer.stats()
        receipts, told = sender.receipts[again], sender.told[again]
        found, other = judge(servers, again, receipts), judge(servers, topic, sender.receipts[topic])
    finally:
        kafka_cluster.delete_topic(again)

    blocked, unblocked = (caplog.text.count(f" {event} ") for event in ("topic_blocked", "topic_unblocked"))
    print(
        f"\ncreated again after {absent} s: {found}; blocked {blocked}, unblocked {unblocked}; {stats}; other: {other}"
    )
    # What was on its way as the topic went: whether it was written there still, nobody can tell any more.
    unknown = {number for number, receipt in enumerate(receipts) if receipt.status == "unknown"}
    assert found.statuses.keys() <= {"delivered", "unknown"}
    assert len(unknown) <= RATE / 5
    assert {number for number in unknown if told[number] > gone[0]} == unknown & found.in_log == set()
    afterwards = {number for number, at in told.items() if at > made[0]}
    assert len(afterwards) >= 2 * RATE * 0.9
    assert afterwards - found.in_log == set()
    assert 0 not in found.in_log, "the topic is still the old one"
    # Older ones went with the topic, and only those whose outcome was told before it was gone.
    assert {number for number, at in told.items() if gone[0] < at < made[0]} == set()
    assert (found.report.out_of_order, found.report.unexpected, found.report.duplicates) == (0, 0, 0), found.report
    assert other.report.ok, other.report
    during = [at for at in sender.told[topic].values() if gone[0] < at < made[0]]
    assert len(during) >= RATE * absent * 0.5, "the other topic was held up"
    if absent > 1:
        assert blocked == unblocked == 1, caplog.text
        assert not stats.blocked_topics


@pytest.fixture(scope="module")
def guarded_cluster() -> Iterator[KafkaCluster]:
    """A cluster that looks at ACLs. With a controller of its own, since brokers that are controllers too would need
    each other's leave before they know any ACL."""
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaCluster(controller="dedicated", settings=settings) as cluster:
        yield cluster


def acl(topic: str, operation: AclOperation, permission: AclPermissionType) -> tuple[Any, ...]:
    return (
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        "User:ANONYMOUS",
        "*",
        operation,
        permission,
    )


@pytest.mark.kills_brokers  # not to be tried on a cluster that is not ours
@pytest.mark.timeout(180)
@pytest.mark.parametrize("operation", [AclOperation.WRITE, AclOperation.DESCRIBE], ids=["write", "describe"])
def test_P3_records_of_a_topic_we_may_not_write_to_wait_and_arrive_in_order(
    guarded_cluster: KafkaCluster, operation: AclOperation, caplog: pytest.LogCaptureFixture
) -> None:
    """`write` is refused where it is written; `describe` where the client looks up the leader."""
    caplog.set_level("INFO", logger="safekafka")
    servers, guarded, free = (
        guarded_cluster.bootstrap_servers,
        f"guarded-{operation.name}",
        f"free-{operation.name}",
    )
    for topic in (guarded, free):
        guarded_cluster.create_topic(topic)
    admin = AdminClient({"bootstrap.servers": servers})
    # Once a topic has any ACL, it allows nothing but what is allowed by one.
    everything = AclBinding(*acl(guarded, AclOperation.ALL, AclPermissionType.ALLOW))
    denied = acl(guarded, operation, AclPermissionType.DENY)
    admin.create_acls([everything])[everything].result(30)

    config = {"bootstrap.servers": servers, "topic.metadata.refresh.interval.ms": 1_000}
    with SafeProducer(config) as producer:
        sender = Sender(producer, guarded, free)
        receipts = sender.receipts
        sender.step()
        receipts[guarded][0].result(30)
        sender.send_for(1)
        binding = AclBinding(*denied)
        admin.create_acls([binding])[binding].result(30)
        end = time.monotonic() + 30
        while " topic_blocked " not in caplog.text:
            assert time.monotonic() < end, "the topic was not blocked"
            sender.step()
        held_from = len(receipts[guarded])
        sender.send_for(3)
        assert {receipt.status for receipt in receipts[guarded][held_from:]} == {"pending"}
        blocked = producer.stats().blocked_topics
        wait_until(lambda: receipts[free][-1].status == "delivered", 5, "the other topic is held up by the blocked one")
        lifted = AclBindingFilter(*denied)
        admin.delete_acls([lifted])[lifted].result(30)
        allowed_at = time.monotonic()
        sender.send_for(2)
        assert producer.flush(60) == 0
        stats = producer.stats()
    found, other = judge(servers, guarded, receipts[guarded]), judge(servers, free, receipts[free])
    delay = max(sender.told[guarded][number] for number in range(held_from)) - allowed_at
    print(f"\nmay not {operation.name}: {found}; free topic: {other}; {stats}; unblocked {delay:.2f} s after the leave")
    assert blocked
    assert not stats.blocked_topics
    assert " topic_unblocked " in caplog.text
    for judged in (found, other):
        assert set(judged.statuses) == {"delivered"}
        assert (judged.report.lost, judged.report.out_of_order, judged.report.unexpected) == (0, 0, 0), judged.report
    assert found.report.duplicates + other.report.duplicates <= stats.sent_again
