"""confluent-kafka's AIOProducer: `await produce()` gives a future, `flush()` waits for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from itertools import islice
from typing import Any

from benchmarks.producer.peers.base import AsyncPeer
from confluent_kafka.aio import AIOProducer


class Aioproducer(AsyncPeer):
    """Its buffer knows no limit, so it is emptied before the limit that all others have."""

    async def open(self) -> None:
        self._futures: list[asyncio.Future[Any]] = []
        self._producer = AIOProducer(self.setup.librdkafka())

    async def asend(self, values: Iterable[bytes]) -> None:
        produce, topic, keep, rest = self._producer.produce, self.setup.topic, self._futures.append, iter(values)
        while first := list(islice(rest, 1)):
            if len(self._futures) > 1:
                await self._producer.flush()
            for value in (*first, *islice(rest, self.setup.buffer_records - 1)):
                keep(await produce(topic, value))

    async def await_all(self) -> int:
        await self._producer.flush()
        await asyncio.gather(*self._futures)
        return len(self._futures)
