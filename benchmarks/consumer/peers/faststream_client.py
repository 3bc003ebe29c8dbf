"""FastStream's broker on confluent-kafka in the mode that acknowledges a record after its handler, one at a time."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from benchmarks.consumer.peers.base import AsyncPeer, Handlers
from faststream import AckPolicy
from faststream.confluent import KafkaBroker


class Faststream(AsyncPeer):
    async def aconsume(self, handlers: Handlers) -> None:
        ended = asyncio.Event()
        handlers.on_end = ended.set
        broker = KafkaBroker(
            self.setup.servers, logger=logging.getLogger("faststream"), config={"allow.auto.create.topics": False}
        )

        @broker.subscriber(
            self.setup.topic,
            group_id=self.setup.group,
            fetch_max_wait_ms=self.setup.fetch_wait_ms,
            auto_offset_reset="earliest",
            ack_policy=AckPolicy.NACK_ON_ERROR,
            decoder=_undecoded,
        )
        async def handle(message: Any) -> None:
            await handlers.ahandle(message)

        await broker.start()
        await ended.wait()
        # The acknowledgement of the last one follows its handler, and its commit is not waited for.
        await asyncio.sleep(0.5)
        await broker.stop()


async def _undecoded(message: Any) -> Any:
    return message.body
