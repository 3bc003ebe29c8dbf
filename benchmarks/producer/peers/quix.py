"""Quix Streams' Producer, as `Application.get_producer()` makes it."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.common.setup import Setup
from benchmarks.producer.peers.base import Peer
from quixstreams import Application


class QuixProducer(Peer):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        settings = setup.librdkafka()
        # Its own default, murmur2, would put all records without a key into one partition.
        settings["partitioner"] = "consistent_random"
        servers = settings.pop("bootstrap.servers")
        self._producer = Application(broker_address=servers, producer_extra_config=settings).get_producer()
        self._delivered = 0

    def send(self, values: Iterable[bytes]) -> None:
        produce, topic, on_delivery = self._producer.produce, self.setup.topic, self._count
        for value in values:
            produce(topic, value, on_delivery=on_delivery)

    def wait(self) -> int:
        self._producer.flush()
        return self._delivered

    def _count(self, error: object, message: object) -> None:
        if error is None:
            self._delivered += 1
