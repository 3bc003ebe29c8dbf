"""C1, C2, C3, C6 in quick cycles on mock brokers: members of a group are killed, stopped, added, removed and paused
while records come in. On real brokers, and with brokers killed: `tests/cluster/test_consumer_soak.py`."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from safekafka.testing import MockCluster
from tests.cluster.producer_faults import new_seed
from tests.crash.consumer_faults import OF_MEMBERS, Faults
from tests.crash.consumer_soak import PARTITIONS, soak

SESSION = 1.0
# Members that stand still beyond their session come back under the ids of others on mock brokers (see MockCluster), by
# which the client of cooperative-sticky was seen to crash: there, this fault is for real brokers alone.
KINDS = {"range": OF_MEMBERS, "cooperative-sticky": tuple(kind for kind in OF_MEMBERS if kind != "consumer paused")}


@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("strategy", KINDS)
def test_C1_C2_C3_C6_members_that_come_go_and_stand_still_skip_and_overtake_nothing(
    kafka_mock: MockCluster, strategy: str, tmp_path: Path, scale: int
) -> None:
    seed, servers, topic = new_seed(), kafka_mock.bootstrap_servers, "orders"
    kafka_mock.create_topic(topic, partitions=PARTITIONS, replication_factor=3)
    config = {
        "partition.assignment.strategy": strategy,
        "session.timeout.ms": round(SESSION * 1_000),
        "heartbeat.interval.ms": 100,
        # Mock brokers may never answer who joins while others do: the client asks again after this and 3 seconds.
        "max.poll.interval.ms": 16_000,
    }
    records, count = 4_000 * scale, 6 * scale
    begun = time.monotonic()
    found = soak(
        servers,
        topic,
        tmp_path,
        config,
        records,
        500,
        lambda group, source: Faults(group, seed, KINDS[strategy], count, records, lambda: source.sent, SESSION),
        maps=False,
    )
    print(f"\n{strategy} seed={seed}: {found.judgement}; {time.monotonic() - begun:.0f} s; {found.faults}")
    print(found.row(f"{strategy}, mock brokers (seed {seed})"))
    found.check()
