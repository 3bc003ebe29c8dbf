"""Which partition a key goes to: our twins of the client's partitioners, compared with the client."""

from __future__ import annotations

import random

import pytest
from confluent_kafka import Producer

from safekafka.producer.partitioner import partition_of
from safekafka.testing import MockCluster

PARTITIONS = 7
KEYS = [b"", b"a", b"\x00", b"\xff\xfe", "schlüssel".encode(), *(b"customer-%d" % n for n in range(40))]


@pytest.mark.parametrize(
    "partitioner", ["consistent", "consistent_random", "murmur2", "murmur2_random", "fnv1a", "fnv1a_random"]
)
def test_a_key_goes_where_the_client_sends_it(kafka_mock: MockCluster, partitioner: str) -> None:
    kafka_mock.create_topic("keys", partitions=PARTITIONS, replication_factor=1)
    producer = Producer({"bootstrap.servers": kafka_mock.bootstrap_servers, "partitioner": partitioner})
    chance = random.Random(1)
    keys = [*KEYS, *(chance.randbytes(chance.randrange(1, 30)) for _ in range(200))]
    went: dict[bytes, int] = {}
    for key in keys:
        producer.produce(
            "keys", b"", key, on_delivery=lambda _, message, key=key: went.update({key: message.partition()})
        )
    assert producer.flush(30) == 0
    ours = {key: partition_of(partitioner, key, PARTITIONS) for key in keys}
    assert {key: at for key, at in ours.items() if at is not None} == {
        key: went[key] for key in ours if ours[key] is not None
    }
    assert set(ours.values()) - {None} == set(range(PARTITIONS))


def test_where_chance_decides_nothing_is_claimed() -> None:
    assert partition_of("consistent_random", None, 7) is None
    assert partition_of("consistent_random", b"", 7) is None
    assert partition_of("murmur2_random", None, 7) is None
    assert partition_of("random", b"a", 7) is None
    assert partition_of("a new one", b"a", 7) is None
