"""Mock brokers with a topic, and producers on them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from safekafka import SafeKafkaError, SafeProducer
from safekafka.testing import MockCluster

TOPIC = "orders"


@pytest.fixture
def cluster(kafka_mock: MockCluster) -> MockCluster:
    kafka_mock.create_topic(TOPIC, partitions=4, replication_factor=3)
    return kafka_mock


@pytest.fixture
def make(cluster: MockCluster) -> Iterator[Callable[..., SafeProducer]]:
    """Producers that are ended after the test, whatever became of them."""
    made: list[SafeProducer] = []

    def make_one(config: dict[str, Any] | None = None, **options: Any) -> SafeProducer:
        producer = SafeProducer({"bootstrap.servers": cluster.bootstrap_servers, **(config or {})}, **options)
        made.append(producer)
        return producer

    yield make_one
    for producer in made:
        with contextlib.suppress(SafeKafkaError):
            producer.close(0.1)
