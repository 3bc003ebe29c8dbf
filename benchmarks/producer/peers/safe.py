"""SafeProducer: with receipts, as the drop-in for the raw client, and with many records a call."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

from benchmarks.common.setup import Setup
from benchmarks.producer.peers.base import Peer
from benchmarks.producer.peers.raw import WithCallback

from safekafka import Record, SafeProducer


class WithReceipts(Peer):
    """`send()`; the receipts are dropped, so that a failure would be raised by `flush()`."""

    def __init__(self, setup: Setup, **options: Any) -> None:
        super().__init__(setup)
        self._producer = SafeProducer(setup.librdkafka(), **options)

    def send(self, values: Iterable[bytes]) -> None:
        send, topic = self._producer.send, self.setup.topic
        for value in values:
            send(topic, value)

    def wait(self) -> int:
        self._producer.flush()
        return self._producer.stats().delivered


class ManyACall(WithReceipts):
    """`send_many()` with chunks of records."""

    chunk = 1_000

    def send(self, values: Iterable[bytes]) -> None:
        topic, rest = self.setup.topic, iter(values)
        while chunk := [Record(topic, value) for value in islice(rest, self.chunk)]:
            self._producer.send_many(chunk)


class DropIn(WithCallback):
    """The code written for the raw client with a callback, with nothing but the class exchanged."""

    client = SafeProducer
