"""C1, C2, C3, C6: members of a group are killed, stopped, added, removed and paused, brokers killed and paused, while
records come in; everything is handled, in the order of its key, and what is handled again is accounted for."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from safekafka.testing import KafkaCluster
from tests.cluster.producer_faults import new_seed
from tests.crash.consumer_faults import OF_BROKERS, OF_MEMBERS, Faults
from tests.crash.consumer_soak import PARTITIONS, soak

CLASSIC = {"session.timeout.ms": 3_000, "heartbeat.interval.ms": 300}
# A group of the new protocol leaves the session to the brokers: 6 s in the KafkaCluster.
PROTOCOLS: dict[str, tuple[float, dict[str, Any]]] = {
    "range": (3.0, {**CLASSIC, "partition.assignment.strategy": "range"}),
    "cooperative-sticky": (3.0, {**CLASSIC, "partition.assignment.strategy": "cooperative-sticky"}),
    "kip-848": (6.0, {"group.protocol": "consumer"}),
}
# One of each in `make test`: what takes its time, a broker that comes back and a session that ends, overlaps.
FEW = ("consumer killed", "consumer paused", "members changed", "coordinator killed")


@pytest.mark.kills_brokers
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_C1_C2_C3_C6_nothing_is_skipped_or_overtaken_by_any_fault(
    kafka_cluster: KafkaCluster, protocol: str, tmp_path: Path, scale: int
) -> None:
    seed, servers = new_seed(), kafka_cluster.bootstrap_servers
    session, config = PROTOCOLS[protocol]
    kinds = FEW if scale == 1 else (*OF_MEMBERS, *OF_BROKERS)
    records, count, rate = (3_000, 4, 400.0) if scale == 1 else (20_000 * scale, 6 * scale, 500.0)
    topic = f"soak-{protocol}-{seed}"
    kafka_cluster.create_topic(topic, partitions=PARTITIONS)
    begun = time.monotonic()
    found = soak(
        servers,
        topic,
        tmp_path,
        config,
        records,
        rate,
        lambda group, source: Faults(
            group, seed, kinds, count, records, lambda: source.sent, session, kafka_cluster, topic, PARTITIONS
        ),
        maps=True,
    )
    seconds = time.monotonic() - begun
    print(f"\nconsumer soak {protocol} seed={seed}: {found.judgement}; {seconds:.0f} s; {found.faults}")
    print(found.row(f"{protocol} (seed {seed})"))
    found.check()
    kafka_cluster.delete_topic(topic)
