"""kafka-python's KafkaProducer: `send()` gives a future, `flush()` waits for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from benchmarks.common.setup import Setup
from benchmarks.producer.peers.base import Peer
from kafka import KafkaProducer


class KafkaPython(Peer):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._futures: list[Any] = []
        # Librdkafka's mock brokers answer its question for their version in a way that it can't read.
        version = {"api_version": (2, 2)} if setup.cluster == "mock" else {}
        self._producer = KafkaProducer(
            bootstrap_servers=setup.servers.split(","),
            acks="all",
            enable_idempotence=True,
            linger_ms=setup.linger_ms,
            batch_size=setup.batch_bytes,
            **version,
        )

    def send(self, values: Iterable[bytes]) -> None:
        send, topic, keep = self._producer.send, self.setup.topic, self._futures.append
        for value in values:
            keep(send(topic, value=value))

    def wait(self) -> int:
        self._producer.flush()
        return sum(future.succeeded() for future in self._futures)
