"""SafeConsumer: one record or a batch a call, handlers that are functions or coroutines."""

from __future__ import annotations

from typing import Any

from benchmarks.consumer.peers.base import Handlers, Peer
from benchmarks.consumer.setup import Setup

from safekafka import SafeConsumer


class One(Peer):
    """`run(handler)` with a function."""

    def __init__(self, setup: Setup, **options: Any) -> None:
        super().__init__(setup)
        self._consumer = SafeConsumer(setup.librdkafka(), [setup.topic], **options)

    def consume(self, handlers: Handlers) -> None:
        handlers.on_end = self._consumer.stop
        self._run(handlers)

    def _run(self, handlers: Handlers) -> None:
        self._consumer.run(handlers.handle)


class Async(One):
    """`run(handler)` with a coroutine function."""

    def _run(self, handlers: Handlers) -> None:
        self._consumer.run(handlers.ahandle)


class ByKey(One):
    """`order="key"`, 8 at once."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, order="key", concurrency=8)


class Batches(One):
    """`run_batches(handler, max_records=500)`."""

    def _run(self, handlers: Handlers) -> None:
        self._consumer.run_batches(handlers.handle_all, max_records=500, max_wait=0.1)
