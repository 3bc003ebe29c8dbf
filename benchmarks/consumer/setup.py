"""What every contestant is given alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# Many: librdkafka's mock brokers keep about 5 MB of a partition, so only many hold enough small records.
PARTITIONS = 32
KEYS = 10_000
VALUE_BYTES = 50


@dataclass(frozen=True)
class Setup:
    servers: str
    topic: str
    group: str
    cluster: str = "mock"

    @property
    def fetch_wait_ms(self) -> int:
        """A fetch that finds nothing waits so long. Real brokers end the wait when a record comes; mock ones don't, so
        with librdkafka's own 500 ms a run on them would measure this wait."""
        return 10 if self.cluster == "mock" else 500

    def librdkafka(self) -> dict[str, Any]:
        """Settings for everything that is built on librdkafka; where a group begins is for each to say in its way. Not
        `fetch.queue.backoff.ms`: given here, it would override SafeConsumer's own, and the clients' default that the
        tuned ones are there to be compared to."""
        return {
            "bootstrap.servers": self.servers,
            "group.id": self.group,
            "fetch.wait.max.ms": self.fetch_wait_ms,
        }
