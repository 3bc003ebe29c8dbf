"""confluent-kafka's AIOConsumer: `await consume(500)`, and an asynchronous commit of each batch."""

from __future__ import annotations

from benchmarks.consumer.peers.base import AsyncPeer, Handlers
from benchmarks.consumer.peers.raw import checked, nothing_left
from confluent_kafka.aio import AIOConsumer


class Aioconsumer(AsyncPeer):
    async def aconsume(self, handlers: Handlers) -> None:
        settings = {**self.setup.librdkafka(), "auto.offset.reset": "earliest", "enable.auto.commit": False}
        consumer = AIOConsumer(settings)
        await consumer.subscribe([self.setup.topic])
        while not handlers.ended:
            messages = await consumer.consume(500, 1.0)
            for message in messages:
                await handlers.ahandle(checked(message))
            if messages:
                await consumer.commit(asynchronous=True)
        with nothing_left():
            await consumer.commit(asynchronous=False)
        await consumer.close()
