"""Quix Streams: an Application with one step, committing by its interval."""

from __future__ import annotations

from typing import Any

from benchmarks.consumer.peers.base import Handlers, Peer
from quixstreams import Application


class Quix(Peer):
    def consume(self, handlers: Handlers) -> None:
        application = Application(
            broker_address=self.setup.servers,
            consumer_group=self.setup.group,
            auto_offset_reset="earliest",
            auto_create_topics=False,
            loglevel="WARNING",
        )
        handlers.on_end = application.stop
        topic = application.topic(self.setup.topic, value_deserializer="bytes")

        def step(value: Any) -> Any:
            handlers.handle(value)
            return value

        application.dataframe(topic).apply(step)
        application.run()
