"""A record now and then, each with the moment of its `produce()`, and the handler that looks at the clock."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.consumer.setup import PARTITIONS
from confluent_kafka import Producer

_PAUSE = 0.02  # seconds between two records on average: every record finds the consumer waiting
_WARM_UP = 20


class Stream(threading.Thread):
    """The producer's thread; the handlers are called by the consumer's. The first records wait until the group has
    joined, and do not count."""

    def __init__(self, servers: str, topic: str, records: int) -> None:
        super().__init__(daemon=True)
        self.taken: list[float] = []
        self.ended = False
        self.on_end: Callable[[], object] = lambda: None
        self._producer = Producer({"bootstrap.servers": servers, "acks": "all", "linger.ms": 0})
        self._topic, self._records = topic, records
        self._first = threading.Event()
        self._handled = 0

    def run(self) -> None:
        chance = random.Random(self._records)
        self._send(0)
        self._first.wait(60)
        for number in range(1, _WARM_UP + self._records):
            time.sleep(chance.uniform(0.5, 1.5) * _PAUSE)
            self._send(number)

    def handle(self, message: Any) -> None:
        now = time.monotonic_ns()
        value = message if isinstance(message, bytes) else message.value  # a method of confluent-kafka's
        sent = int(value() if callable(value) else value)
        self._first.set()
        self._handled += 1
        if self._handled > _WARM_UP:
            self.taken.append((now - sent) / 1e9)
        if self._handled == _WARM_UP + self._records:
            self.ended = True
            self.on_end()

    async def ahandle(self, message: Any) -> None:
        self.handle(message)

    def handle_all(self, messages: Sequence[Any]) -> None:
        for message in messages:
            self.handle(message)

    def _send(self, number: int) -> None:
        # The value is made last: its time is that of the call.
        key, partition = b"k%d" % number, number % PARTITIONS
        self._producer.produce(self._topic, b"%d" % time.monotonic_ns(), key, partition=partition)
        self._producer.poll(0)
