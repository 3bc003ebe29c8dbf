"""Writes dead letters, and answers only when Kafka has them.

Thread: called by the worker, one message at a time. Its producer has threads of its own (`producer/direct.py`).
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from safekafka.deadletter.headers import dead_letter_headers
from safekafka.errors import DeadLetterFailed, SafeKafkaError
from safekafka.observe import Event, emit
from safekafka.producer.producer import SafeProducer
from safekafka.producer.receipt import Delivery
from safekafka.settings import connection_settings

if TYPE_CHECKING:
    from confluent_kafka import Message

_SIZE = {"message.max.bytes": 1_000_000_000, "compression.type": "zstd"}  # the broker's limit decides, not ours
_ROUND_SECONDS = 30.0


class DeadLetterPublisher:
    """Owns its producer. `write_timeout` (seconds) bounds how long a message is held back by a dead letter that can't
    be written."""

    def __init__(self, topic: str, group: str, consumer_config: Mapping[str, Any], write_timeout: float) -> None:
        self.topic = topic
        self._group = group
        self._host = socket.gethostname()
        self._write_timeout = write_timeout
        self._producer = SafeProducer(
            {**connection_settings(consumer_config), **_SIZE}, delivery_timeout=write_timeout, max_block=write_timeout
        )

    def write(self, message: Message, error: BaseException, attempts: int) -> None:
        """Return once the dead letter is acknowledged. Raises `DeadLetterFailed` if it is not within
        `write_timeout`."""
        where = f"{message.topic()}[{message.partition()}]@{message.offset()}"
        headers = dead_letter_headers(
            message, error, attempts=attempts, group=self._group, host=self._host, now_ms=int(time.time() * 1000)
        )
        try:
            receipt = self._producer.send(self.topic, message.value(), message.key(), headers)
            delivery: Delivery = receipt.result(self._write_timeout + _ROUND_SECONDS)
        except (SafeKafkaError, TimeoutError) as cause:
            raise DeadLetterFailed(
                f"{where} could not be handled ({error!r}) and its dead letter could not be written to "
                f"{self.topic!r}: {cause} "
                "The message was not committed: it comes again at the next start. "
                f"Remedy: check that the topic {self.topic!r} exists and may be written to."
            ) from cause
        emit(
            Event.DEAD_LETTERED,
            message=where,
            to=f"{delivery.topic}[{delivery.partition}]@{delivery.offset}",
            attempts=attempts,
            error=type(error).__qualname__,
            pid=os.getpid(),
        )

    def close(self, timeout: float) -> None:
        self._producer.close(timeout)
