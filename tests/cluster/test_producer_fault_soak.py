"""P1, P2, P3: every kind of broker fault, one after another, while records are sent; all are delivered, once and in
order."""

from __future__ import annotations

import time
from typing import Any

import pytest

from safekafka import Receipt, SafeProducer
from safekafka.testing import KafkaCluster
from tests.cluster.producer_faults import Faults, Pace, client_log, judge, new_seed

RATE = 1_000.0  # records a second; the client keeps up on two cores that also run three brokers


@pytest.mark.kills_brokers
@pytest.mark.timeout(1_800)
@pytest.mark.parametrize(
    "setting", [{}, {"max.in.flight.requests.per.connection": 1}], ids=["default", "one-in-flight"]
)
def test_P3_nothing_is_lost_doubled_or_reordered_by_any_fault(
    kafka_cluster: KafkaCluster, topic: str, scale: int, setting: dict[str, Any]
) -> None:
    seed, servers = new_seed(), kafka_cluster.bootstrap_servers
    records, count, pause = (20_000, 4, 4.0) if scale == 1 else (60_000 * scale, 4 * scale, 10.0)
    receipts: list[Receipt] = []
    config = {"bootstrap.servers": servers, "debug": "eos", **setting}
    begun = time.monotonic()
    with client_log() as lines, SafeProducer(config, delivery_timeout=300) as producer:
        with Faults(kafka_cluster, topic, seed, count, records, lambda: len(receipts), pause=pause) as faults:
            pace = Pace(RATE)
            while len(receipts) < records or faults.running():
                pace.wait(len(receipts))
                receipts.append(producer.send(topic, str(len(receipts)) + " " * 90, key=str(len(receipts) % 97)))
        left = producer.flush(120)
    seconds = time.monotonic() - begun
    found = judge(servers, topic, receipts)
    bumps = [line for line in lines if "bumped epoch" in line]
    print(f"\nsoak {setting or 'default'} seed={seed}: {found}; {seconds:.0f} s; epoch bumps {len(bumps)}; {faults}")
    assert all(fault.ended_at > fault.begun_at for fault in faults.done), f"a fault missed the sending: {faults}"
    assert left == 0
    assert found.statuses == {"delivered": len(receipts)}, f"seed {seed}: {found}"
    report = found.report
    assert (report.lost, report.out_of_order, report.unexpected) == (0, 0, 0), f"seed {seed}: {report}"
    assert found.misplaced == []
    traced = [f"{copy.id} in partition {copy.partition} at {copy.offset}" for copy in report.duplicates_first]
    assert not traced, (
        f"seed {seed}, {setting or 'default'}: {report.duplicates} duplicates: {traced[:100]}; {faults}; "
        f"the client's epochs:\n" + "\n".join(lines[-200:])
    )
