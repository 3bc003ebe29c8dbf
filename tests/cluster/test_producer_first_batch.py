"""The first batch of a new client meets a leader that has not heard of its election yet, and the second one does not.

The leader-to-be stands still (SIGSTOP) while it is elected and while new clients send to it. It refuses what it finds
first, and takes what comes a moment later: from a raw client also the second batch, whose first was refused.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import ElectionType, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from safekafka import SafeProducer
from safekafka.testing import KafkaCluster, KafkaClusterError
from safekafka.testing.ledger import Entry, audit_log, log_entries, read_log
from tests.processes import wait_until

ELECTED, STILL_SECONDS = 2, 0.8
CLIENTS, RECORDS = 6, 60
SMALL_BATCHES = {"batch.num.messages": 2, "linger.ms": 0, "log_level": 0}


@pytest.mark.kills_brokers
@pytest.mark.timeout(600)
def test_P1_P3_new_clients_lose_and_reorder_nothing_while_a_leader_is_elected(tmp_path: Path, scale: int) -> None:
    with KafkaCluster(controller="dedicated") as cluster:  # it elects although a broker stands still
        elections(cluster, tmp_path, scale)


def elections(cluster: KafkaCluster, folder: Path, count: int) -> None:
    servers = cluster.bootstrap_servers
    admin = AdminClient({"bootstrap.servers": servers.split(",")[0], "log_level": 0})
    replicas = [ELECTED, *(broker for broker in (1, 2, 3) if broker != ELECTED)]
    topics = {kind: f"first-batch-{kind}" for kind in ("raw", "direct", "spool")}
    new = [NewTopic(topic, CLIENTS, replica_assignment=[replicas] * CLIENTS) for topic in topics.values()]
    one = NewTopic("warm", 1, replica_assignment=[[ELECTED]], config={"min.insync.replicas": "1"})
    for future in admin.create_topics([*new, one]).values():
        future.result(30)
    told: list[Entry] = []  # what the raw client says is in Kafka
    sent: dict[str, list[Entry]] = {"direct": [], "spool": []}

    for cycle in range(count):
        cluster.pause(ELECTED)  # so long that another leads
        wait_until(lambda: cluster.leader_of(topics["raw"]) != ELECTED, 60, "another leader")
        cluster.resume(ELECTED)
        for topic in topics.values():
            for partition in range(CLIENTS):
                cluster.wait_isr(topic, partition, 3, timeout=60)
        raw = [_raw(servers) for _ in range(CLIENTS)]
        safe = {
            kind: [_safe(servers, folder / f"{cycle}-{n}" if kind == "spool" else None) for n in range(CLIENTS)]
            for kind in sent
        }
        cluster.pause(ELECTED)
        admin.elect_leaders(
            ElectionType.PREFERRED, [TopicPartition(topic, n) for topic in topics.values() for n in range(CLIENTS)]
        )
        for number in range(CLIENTS):
            key = b"%d-%d" % (cycle, number)
            for record in range(RECORDS):
                raw[number].produce(
                    topics["raw"], str(record), key, number, on_delivery=_note(told, Entry(key, record))
                )
                for kind, producers in safe.items():
                    producers[number].send(topics[kind], str(record), key, partition=number)
                    sent[kind].append(Entry(key, record))
        still_until = time.monotonic() + STILL_SECONDS
        while time.monotonic() < still_until:
            for client in raw:
                client.poll(0.01)
        cluster.resume(ELECTED)
        end = time.monotonic() + 60
        for client in raw:  # for comparison: what it tells is looked at, not how long it takes
            client.flush(max(0.0, end - time.monotonic()))
            client.purge()
        end = time.monotonic() + 240
        for producers in safe.values():
            for producer in producers:
                left = producer.flush(max(0.0, end - time.monotonic()))
                assert left == 0, f"{left} records left; {_state(cluster, [*topics.values()])}"
                producer.close()

    cluster.wait_ready(60)

    def report(kind: str, entries: list[Entry]) -> str:
        log = read_log(servers, topics[kind], timeout=60)
        found = audit_log(entries, log_entries(log, lambda message: int(message.value() or b"")))
        print(f"\n{kind}: {count} elections\n{found}")
        return "" if found.ok else f"{kind}:\n{found}"

    report("raw", told)  # for comparison
    assert [report(kind, entries) for kind, entries in sent.items()] == ["", ""]


def _state(cluster: KafkaCluster, topics: list[str]) -> str:
    """Who leads, who is in sync, and what the brokers complain of, for who reads of a failure later."""
    partitions = [(topic, number) for topic in topics for number in range(CLIENTS)]
    leading: object
    try:
        leading = dict(Counter((cluster.leader_of(*one), *cluster.isr_of(*one)) for one in partitions))
    except KafkaClusterError as error:  # must not hide how many records are left
        leading = error
    logs = {path.stem: path.read_text(errors="replace").splitlines() for path in sorted(cluster.logs.glob("*.log"))}
    heard = {
        name: [line[:300] for line in log if " WARN " in line or " ERROR " in line][-3:] for name, log in logs.items()
    }
    return f"leader and ISR: {leading}; load: {os.getloadavg()}; logs: {heard}"


def _note(told: list[Entry], entry: Entry) -> Callable[..., None]:
    def on_delivery(error: object, message: object) -> None:
        if error is None:
            told.append(entry)

    return on_delivery


def _raw(servers: str) -> Producer:
    client = Producer(
        {"bootstrap.servers": servers, "enable.idempotence": True, "message.timeout.ms": 0, **SMALL_BATCHES}
    )
    client.produce("warm", b"")  # so that it is connected to the leader-to-be
    assert client.flush(30) == 0
    return client


def _safe(servers: str, spool: Path | None) -> SafeProducer:
    producer = SafeProducer({"bootstrap.servers": servers, **SMALL_BATCHES}, spool=spool)
    producer.send("warm", b"").result(30)
    return producer
