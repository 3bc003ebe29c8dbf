"""P5 on real brokers: an outage, a record that is too large, a right that is taken away, a partition without a leader;
and SIGKILL in the middle of them."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)

from safekafka import Receipt, Record, SafeProducer
from safekafka.spool import retention, sender
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from tests.cluster.producer_faults import Pace
from tests.crash.spool_judge import UNACKED, WINDOW, judge
from tests.crash.spool_service import Service, Worker, count_in
from tests.processes import wait_until

pytestmark = [pytest.mark.kills_brokers, pytest.mark.timeout(3_600)]
MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def guarded_cluster() -> Iterator[KafkaCluster]:
    """One that looks at ACLs. With a controller of its own, since brokers that are controllers too would need each
    other's leave before they know any ACL."""
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "allow.everyone.if.no.acl.found": "true",
    }
    with KafkaCluster(controller="dedicated", settings=settings) as cluster:
        yield cluster


@pytest.fixture
def cluster(guarded_cluster: KafkaCluster) -> KafkaCluster:
    guarded_cluster.heal()
    return guarded_cluster


class Memory:
    """The resident memory of a process, looked at every 0.2 s, in MB."""

    def __init__(self, worker: Worker) -> None:
        self._process = psutil.Process(worker.process.pid)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.samples: list[float] = []

    def _look(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            while not self._stop.wait(0.2):
                self.samples.append(self._process.memory_info().rss / MEGABYTE)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def sent_by_raw_client(cluster: KafkaCluster, records: int, size: int) -> float:
    """Records a second, until the last is acknowledged; each has a callback."""
    cluster.create_topic("outage-raw", partitions=3)
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers, "enable.idempotence": True, "linger.ms": 5})
    delivered = 0

    def on_delivery(error: object, _: object) -> None:
        nonlocal delivered
        delivered += error is None

    begun = time.monotonic()
    for number in range(records):
        value = b"%d" % number
        while True:
            try:
                producer.produce("outage-raw", value.ljust(size), b"%d" % (number % 7), on_delivery=on_delivery)
                break
            except BufferError:
                producer.poll(0.01)
        producer.poll(0)
    assert producer.flush(120) == 0
    assert delivered == records
    cluster.delete_topic("outage-raw")
    return records / (time.monotonic() - begun)


def test_P5_an_outage_of_all_brokers_and_a_kill_in_it_cost_no_record_and_no_memory(
    cluster: KafkaCluster, tmp_path: Path, scale: int
) -> None:
    topic, seconds, rate = "outage", min(300.0, 6.0 * scale), 2_000
    cluster.create_topic(topic, partitions=3)
    service = Service(cluster.bootstrap_servers, topic, tmp_path / "service")
    options = "--calls", 20, "--rate", rate, "--size", 200
    with service.worker("first", *options) as worker, Memory(worker) as before:
        worker.wait_sent(2 * rate)
        for broker in (1, 2, 3):
            cluster.kill(broker)
        begun = time.monotonic()
        accepted = worker.sent()
        time.sleep(seconds / 2)
        accepted_meanwhile = worker.sent() - accepted
        service.kill(worker)
    with service.worker("first", *options) as worker, Memory(worker) as after:
        worker.wait_ready()
        accepted = worker.sent()
        time.sleep(max(1.0, begun + seconds - time.monotonic()))
        accepted_meanwhile += worker.sent() - accepted
        backlog = count_in(service.spool / "lane-0")
        outage = time.monotonic() - begun
        cluster.heal()
        healed = time.monotonic()
        looks = [(healed, backlog)]

        def caught_up() -> bool:
            time.sleep(0.2)  # to count them costs the drain some processor time
            looks.append((time.monotonic(), count_in(service.spool / "lane-0")))
            return looks[-1][1] < rate

        worker.wait(caught_up, "it has caught up, while it sends", 300)
        drained = looks[-1][0] - healed
        begun, most = max(looks, key=lambda look: look[1])  # from then on they became fewer
        drain_rate = (most - looks[-1][1]) / (looks[-1][0] - begun) + rate
        raw_rate = sent_by_raw_client(cluster, backlog, 200)
        worker.terminate()
        assert worker.ended() == -15, worker.output
    judgement = judge(service)
    peaks = [max(memory.samples) for memory in (before, after)]
    print(
        f"\nno broker for {outage:.0f} s: {judgement}; {accepted_meanwhile} accepted meanwhile; {service.most_left} on "
        f"the disk at the kill, {backlog} at the end of the outage, caught up {drained:.1f} s after it; RSS at most "
        f"{peaks[0]:.0f} and {peaks[1]:.0f} MB; drained at {drain_rate:,.0f} records/s, the raw client then sends "
        f"{raw_rate:,.0f}/s beside the same load: {drain_rate / raw_rate:.2f} of it"
    )
    judgement.check(duplicates=WINDOW + UNACKED)
    assert accepted_meanwhile > 0.8 * rate * seconds * 0.8, "send() was slower in the outage"
    assert max(peaks) <= 150
    cluster.delete_topic(topic)


def test_P5_of_many_records_the_one_that_is_too_large_is_rejected_alone(
    cluster: KafkaCluster, tmp_path: Path, scale: int
) -> None:
    topic, records = "small-only", min(100_000, 10_000 * scale)
    cluster.create_topic(topic, partitions=1, config={"max.message.bytes": "50000"})
    culprit = records // 3
    begun = time.monotonic()
    with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}, spool=tmp_path / "spool") as producer:
        bad: Receipt | None = None
        for first in range(0, records, 500):
            values = [str(n) + " " * (100_000 if n == culprit else 50) for n in range(first, first + 500)]
            receipts = producer.send_many([Record(topic, value, key="k") for value in values])
            if first <= culprit < first + 500:
                bad = receipts[culprit - first]
        assert bad is not None
        error = bad.exception(120)
        assert error is not None
        assert "MSG_SIZE_TOO_LARGE" in str(error)
        assert producer.flush(300) == 0
        (rejected,) = producer.rejected()
    log = [int(message.value() or b"") for message in read_log(cluster.bootstrap_servers, topic, timeout=120)]
    print(f"\n{records} records, one too large: {len(log)} in Kafka, 1 rejected; {time.monotonic() - begun:.0f} s")
    assert int((rejected.fields[1] or b"").split()[0]) == culprit
    assert log == [n for n in range(records) if n != culprit]
    cluster.delete_topic(topic)


def delay_since(sent_at: float, told: list[float]) -> Callable[[Receipt], None]:
    return lambda receipt: told.append(time.monotonic() - sent_at)


def test_P5_a_right_lost_during_a_drain_rejects_nothing_and_holds_up_no_other_topic(
    cluster: KafkaCluster, tmp_path: Path, scale: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="safekafka")
    servers, guarded, free, seconds = cluster.bootstrap_servers, "guarded", "free", min(60.0, 5.0 * scale)
    for topic in (guarded, free):
        cluster.create_topic(topic, partitions=3)
    admin = AdminClient({"bootstrap.servers": servers})
    what = (ResourceType.TOPIC, guarded, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    # Once a topic has any ACL, it allows nothing but what is allowed by one.
    everything = AclBinding(*what, AclOperation.ALL, AclPermissionType.ALLOW)
    denied = AclBinding(*what, AclOperation.WRITE, AclPermissionType.DENY)
    lifted = AclBindingFilter(*what, AclOperation.WRITE, AclPermissionType.DENY)
    admin.create_acls([everything])[everything].result(30)

    records = 20_000  # more than the window
    # Small requests, one after another: so the drain takes its time.
    config = {"bootstrap.servers": servers, "batch.num.messages": 30, "max.in.flight.requests.per.connection": 1}
    with SafeProducer(config, spool=tmp_path / "spool") as producer:
        for first in range(0, records, 1_000):
            producer.send_many([Record(guarded, str(n), key=str(n % 97)) for n in range(first, first + 1_000)])
        wait_until(lambda: producer.stats().delivered > 1_000, 30, "the drain has begun")
        admin.create_acls([denied])[denied].result(30)
        wait_until(lambda: " topic_blocked " in caplog.text, 30, "the topic is blocked")
        left = len(producer)
        pace = Pace(300)
        told: list[float] = []
        end = time.monotonic() + seconds
        receipts: list[Receipt] = []
        while time.monotonic() < end:
            pace.wait(len(receipts))
            receipts.append(producer.send(free, str(len(receipts)), key=str(len(receipts) % 97)))
            receipts[-1].add_done_callback(delay_since(time.monotonic(), told))
        wait_until(lambda: receipts[-1].status == "delivered", 5, "the other topic is held up by the blocked one")
        meanwhile = producer.stats()
        admin.delete_acls([lifted])[lifted].result(30)
        allowed_at = time.monotonic()
        assert producer.flush(120) == 0
        drained = time.monotonic() - allowed_at
        stats, rejected = producer.stats(), producer.rejected()
    reports = [
        audit_log(
            (Entry(str(n % 97).encode(), n) for n in range(count)),
            log_entries(read_log(servers, topic, timeout=60), lambda message: int(message.value() or b"")),
        )
        for topic, count in ((guarded, records), (free, len(receipts)))
    ]
    print(
        f"\nno right for {seconds:.0f} s with {left} of {records} left: duplicates {reports[0].duplicates}, sent again "
        f"{stats.sent_again}; other topic: {len(receipts)} records, the slowest delivered after {max(told):.2f} s; "
        f"drained {drained:.1f} s after the leave"
    )
    assert left > 1_000, "nothing was left to drain"
    assert meanwhile.blocked_topics == (guarded,)
    assert meanwhile.pending > 1_000
    assert rejected == []
    for report in reports:
        assert (report.lost, report.out_of_order, report.unexpected) == (0, 0, 0), report
    assert reports[0].duplicates + reports[1].duplicates <= stats.sent_again
    assert max(told) < 5
    for topic in (guarded, free):
        cluster.delete_topic(topic)


def test_records_older_than_the_retention_that_the_brokers_tell_are_told(
    cluster: KafkaCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sender, "_AGE_SECONDS", 0.2)
    monkeypatch.setattr(retention, "YOUNG_SECONDS", 1.0)
    monkeypatch.setattr(retention, "ASK_EVERY_SECONDS", 0.5)
    for topic, milliseconds in ("short", "3000"), ("long", "3600000"):
        config = {"retention.ms": milliseconds, "min.insync.replicas": "1"}
        cluster.create_topic(topic, replication_factor=1, config=config)
    for broker in {cluster.leader_of(topic, 0) for topic in ("short", "long")}:
        cluster.stop(broker)
    with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}, spool=tmp_path / "spool") as producer:
        for topic in ("short", "long"):
            producer.send(topic, b"0", partition=0)
        told = re.compile(r"older_than_retention topic='short' age_seconds=\d+ retention_seconds=3.0 remedy=")
        wait_until(lambda: told.search(caplog.text) is not None, 60, lambda: caplog.text)
        assert producer.stats().pending == 2
        cluster.heal()
        assert producer.flush(60) == 0
    assert caplog.text.count("older_than_retention") == 1


def end_offset(servers: str, topic: str, partitions: list[int]) -> int:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "ends", "log_level": 0})
    try:
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, one), timeout=10) for one in partitions]
        return sum(high for _, high in ends)
    finally:
        consumer.close()


def test_P5_a_partition_without_a_leader_holds_up_no_other_and_survives_a_kill(
    cluster: KafkaCluster, tmp_path: Path, scale: int
) -> None:
    topic, seconds, rate, partitions = "leaderless", min(60.0, 8.0 * scale), 2_500, 6
    cluster.create_topic(topic, partitions=partitions, replication_factor=1, config={"min.insync.replicas": "1"})
    servers = cluster.bootstrap_servers
    leaders = [cluster.leader_of(topic, partition) for partition in range(partitions)]
    others = [partition for partition in range(partitions) if leaders[partition] != leaders[0]]
    assert others
    service = Service(servers, topic, tmp_path / "service")
    options = "--calls", 50, "--rate", rate, "--keys", 97
    with service.worker("first", *options) as worker:
        worker.wait_sent(rate)
        cluster.stop(leaders[0])
        begun, at_begin, sent = time.monotonic(), end_offset(servers, topic, others), worker.sent()
        time.sleep(seconds)
        flowed, accepted = end_offset(servers, topic, others) - at_begin, worker.sent() - sent
        absent = time.monotonic() - begun
        stuck = "partition_stuck" in worker.output
        service.kill(worker)
    with service.worker("first", *options) as worker:
        worker.wait_sent(rate)  # still without the leader
        cluster.heal()
        worker.wait(lambda: count_in(service.spool / "lane-0") < rate, "it has caught up, while it sends", 300)
        worker.terminate()
        assert worker.ended() == -15, worker.output
    judgement = judge(service, keys=97)
    print(
        f"\n{partitions - len(others)} of {partitions} partitions without a leader for {absent:.0f} s, then killed: "
        f"{judgement}; meanwhile {accepted} accepted, {flowed} delivered to the others; {service.most_left} on the "
        f"disk at the kill"
    )
    assert stuck, "the partition was not told to be stuck"
    assert flowed > 0.6 * accepted * len(others) / partitions
    judgement.check(duplicates=WINDOW + UNACKED)
    cluster.delete_topic(topic)
