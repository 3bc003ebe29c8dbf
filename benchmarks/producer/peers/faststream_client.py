"""FastStream's broker on confluent-kafka: `publish()` is awaited until the record is acknowledged."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from itertools import islice

from benchmarks.producer.peers.base import AsyncPeer
from faststream.confluent import KafkaBroker

CHUNK = 10_000
_LIMITS = ("batch.size", "queue.buffering.max.messages", "queue.buffering.max.kbytes")


class Faststream(AsyncPeer):
    """Awaited one by one the linger time alone would decide, so many are awaited at once."""

    async def open(self) -> None:
        self._delivered = 0
        settings = self.setup.librdkafka()
        self._broker = KafkaBroker(
            self.setup.servers,
            acks="all",
            enable_idempotence=True,
            linger_ms=int(self.setup.linger_ms),
            config={name: settings[name] for name in _LIMITS},
            logger=logging.getLogger("faststream"),
        )
        await self._broker.start()

    async def asend(self, values: Iterable[bytes]) -> None:
        publish, topic, rest = self._broker.publish, self.setup.topic, iter(values)
        while chunk := list(islice(rest, CHUNK)):
            messages = await asyncio.gather(*(publish(value, topic) for value in chunk))
            self._delivered += sum(message is not None and message.offset() is not None for message in messages)

    async def await_all(self) -> int:
        return self._delivered
