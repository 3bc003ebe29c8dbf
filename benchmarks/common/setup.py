"""What every contestant is given alike: brokers, topic, and the limits that decide how it batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LINGER_MS = 5  # librdkafka's own default
BUFFER_RECORDS = 100_000  # librdkafka's own default
BUFFER_BYTES = 1 << 30  # librdkafka's own default
BATCH_BYTES = 1_000_000  # librdkafka's own default
PARTITIONS = 4


@dataclass(frozen=True)
class Setup:
    servers: str
    topic: str
    cluster: str = "mock"
    linger_ms: float = LINGER_MS
    buffer_records: int = BUFFER_RECORDS
    batch_bytes: int = BATCH_BYTES

    def librdkafka(self) -> dict[str, Any]:
        """Settings for everything that is built on librdkafka."""
        return {
            "bootstrap.servers": self.servers,
            "acks": "all",
            "enable.idempotence": True,
            "linger.ms": self.linger_ms,
            "batch.size": self.batch_bytes,
            "queue.buffering.max.messages": self.buffer_records,
            "queue.buffering.max.kbytes": BUFFER_BYTES // 1024,
        }
