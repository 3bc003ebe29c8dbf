"""confluent-kafka's Producer: without a callback, with one, and with a Future for each record."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any

from benchmarks.common.setup import Setup
from benchmarks.producer.peers.base import Peer
from confluent_kafka import KafkaException, Producer


class WithoutCallback(Peer):
    """Nobody learns of a failure here: that the records arrived is known from the brokers alone."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._producer = Producer(setup.librdkafka())
        self._sent = 0

    def send(self, values: Iterable[bytes]) -> None:
        produce, topic, sent = self._producer.produce, self.setup.topic, 0
        for sent, value in enumerate(values, 1):  # noqa: B007
            try:
                produce(topic, value)
            except BufferError:
                insist(self._producer, topic, value)
        self._sent += sent

    def wait(self) -> int:
        return self._sent - self._producer.flush()


class WithCallback(Peer):
    """The idiom of confluent-kafka's documentation: `produce(on_delivery=...)`, then `poll(0)`."""

    client: Callable[[dict[str, Any]], Any] = Producer

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._producer = self.client(setup.librdkafka())
        self._delivered = 0

    def send(self, values: Iterable[bytes]) -> None:
        produce, poll, topic, on_delivery = self._producer.produce, self._producer.poll, self.setup.topic, self._count
        for value in values:
            try:
                produce(topic, value, on_delivery=on_delivery)
            except BufferError:
                insist(self._producer, topic, value, on_delivery=on_delivery)
            poll(0)

    def wait(self) -> int:
        self._producer.flush()
        return self._delivered

    def _count(self, error: object, message: object) -> None:
        if error is None:
            self._delivered += 1


class WithFuture(Peer):
    """What a service writes to learn the outcome of each record: a Future that the callback resolves."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._producer = Producer(setup.librdkafka())
        self._delivered = 0

    def send(self, values: Iterable[bytes]) -> None:
        produce, poll, topic, resolve = self._producer.produce, self._producer.poll, self.setup.topic, self._resolve
        for value in values:
            on_delivery = partial(resolve, Future())
            try:
                produce(topic, value, on_delivery=on_delivery)
            except BufferError:
                insist(self._producer, topic, value, on_delivery=on_delivery)
            poll(0)

    def wait(self) -> int:
        self._producer.flush()
        return self._delivered

    def _resolve(self, future: Future[Any], error: Any, message: Any) -> None:
        if error is not None:
            future.set_exception(KafkaException(error))
        else:
            future.set_result(message)
            self._delivered += 1


def insist(producer: Any, topic: str, value: bytes, **options: Any) -> None:
    """The buffer is full: serves reports until the record fits in."""
    while True:
        producer.poll(0.1)
        try:
            producer.produce(topic, value, **options)
        except BufferError:
            continue
        return
