"""P6: a real fatal error. A broker loses the tail of its log, so the producer's next sequence number is a gap to it."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import pytest

from safekafka import Receipt, SafeProducer
from safekafka.testing import KafkaCluster
from tests.cluster.producer_faults import Pace, judge

DELIVERED, CUT = 100, 30
RATE = 300.0


def cut_tail(partition: Path, records: int) -> None:
    """Take away the newest batches, of `records` records in all, and what the broker would know of them otherwise."""
    log = max(partition.glob("*.log"))
    content, at = log.read_bytes(), 0
    batches = []
    while at < len(content):
        (size,) = struct.unpack_from(">i", content, at + 8)
        (count,) = struct.unpack_from(">i", content, at + 57)
        batches.append((at, count))
        at += 12 + size
    while records > 0:
        at, count = batches.pop()
        records -= count
    assert records == 0, "the records to cut are not whole batches"
    os.truncate(log, at)
    for pattern in ("*.snapshot", "*.index", "*.timeindex"):
        for known in partition.glob(pattern):
            known.unlink()
    # Without the mark of a clean end the broker reads its logs again, as after a crash of the machine.
    (partition.parent / ".kafka_cleanshutdown").unlink()


@pytest.mark.kills_brokers
@pytest.mark.timeout(180)
def test_P6_a_producer_goes_on_after_a_broker_lost_what_it_had_acknowledged(
    kafka_cluster: KafkaCluster, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the topic with a single replica exactly what was cut is missing; the replicated one has everything."""
    caplog.set_level("INFO", logger="safekafka")
    cluster, servers, single = kafka_cluster, kafka_cluster.bootstrap_servers, "single-replica"
    cluster.create_topic(single, replication_factor=1, config={"min.insync.replicas": "1"})
    receipts: dict[str, list[Receipt]] = {single: [], topic: []}

    with SafeProducer({"bootstrap.servers": servers}) as producer:

        def send(count: int) -> None:
            pace = Pace(RATE)
            for step in range(count):
                pace.wait(step)
                for name, of_topic in receipts.items():
                    of_topic.append(producer.send(name, str(len(of_topic)), key=str(len(of_topic) % 7)))

        for _ in range(DELIVERED // 10):
            send(10)
            assert producer.flush(30) == 0  # so that each ten are a batch
        broker = cluster.leader_of(single)
        cluster.stop(broker)
        cut_tail(cluster.data_of(broker) / f"{single}-0", CUT)
        send(100)
        cluster.start(broker)
        end = time.monotonic() + 60
        while "client_rebuilt" not in caplog.text:
            assert time.monotonic() < end, f"no fatal error came of it; {caplog.text[-2000:]}"
            send(10)
        send(500)
        assert producer.flush(60) == 0
        stats = producer.stats()
    cluster.heal()

    of_single, of_topic = (judge(servers, name, receipts[name]) for name in (single, topic))
    rebuilt = [record.getMessage() for record in caplog.records if "client_rebuilt" in record.getMessage()]
    print(f"\nfatal: {single}: {of_single}; replicated: {of_topic}; {stats}; {rebuilt}")
    cluster.delete_topic(single)
    assert "OUT_OF_ORDER_SEQUENCE_NUMBER" in rebuilt[0]
    assert stats.rebuilds == len(rebuilt) >= 1
    for found in (of_single, of_topic):
        assert set(found.statuses) == {"delivered"}
        assert (found.report.out_of_order, found.report.unexpected) == (0, 0), found.report
    assert of_topic.report.lost == 0
    assert sorted(int(entry.id) for entry in of_single.report.lost_first) == list(range(DELIVERED - CUT, DELIVERED))
    assert of_single.report.duplicates == 0, "the broker refused all of them: none can be there twice"
    assert of_topic.report.duplicates <= stats.sent_again
