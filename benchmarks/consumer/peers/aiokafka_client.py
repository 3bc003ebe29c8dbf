"""aiokafka's AIOKafkaConsumer: `getmany()`, and a commit of each batch."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer
from benchmarks.consumer.peers.base import AsyncPeer, Handlers


class Aiokafka(AsyncPeer):
    async def aconsume(self, handlers: Handlers) -> None:
        consumer = AIOKafkaConsumer(
            self.setup.topic,
            bootstrap_servers=self.setup.servers,
            group_id=self.setup.group,
            enable_auto_commit=False,
            fetch_max_wait_ms=self.setup.fetch_wait_ms,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        while not handlers.ended:
            for messages in (await consumer.getmany(timeout_ms=1_000, max_records=500)).values():
                for message in messages:
                    await handlers.ahandle(message)
            await consumer.commit()
        await consumer.stop()
