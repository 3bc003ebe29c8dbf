"""aiokafka's AIOKafkaProducer: `await send()` gives a future, `flush()` waits for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from benchmarks.producer.peers.base import AsyncPeer


class Aiokafka(AsyncPeer):
    async def open(self) -> None:
        self._futures: list[asyncio.Future[Any]] = []
        self._producer = AIOKafkaProducer(
            bootstrap_servers=self.setup.servers,
            acks="all",
            enable_idempotence=True,
            linger_ms=self.setup.linger_ms,
            max_batch_size=self.setup.batch_bytes,
        )
        await self._producer.start()

    async def asend(self, values: Iterable[bytes]) -> None:
        send, topic, keep = self._producer.send, self.setup.topic, self._futures.append
        for value in values:
            keep(await send(topic, value))

    async def await_all(self) -> int:
        await self._producer.flush()
        return sum(future.exception() is None for future in self._futures)
