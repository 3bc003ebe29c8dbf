"""Records that are older than their topic keeps them: Kafka counts from the record's own time, so it deletes them soon
after they were delivered, perhaps before anybody has read them.

Only the brokers know the retention, and they may not answer, so each question has a thread of its own.

Threads: `look` is called by the sender thread alone. It starts the thread of a question, one at a time, and touches
nothing while that lives; `_older` is the question's until then, the sender thread's otherwise. No lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping
from time import monotonic

from confluent_kafka import KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its own names, which it does not re-export
    AdminClient,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from safekafka.observe import Event, emit

ASK_EVERY_SECONDS = 60.0
YOUNG_SECONDS = 60.0  # records wait so long in any restart of the brokers: nothing to ask about
_ANSWER_SECONDS = 5.0


class RetentionWatch:
    """Tells once for each topic that its oldest record is older than its retention, and again if that has passed and
    come back."""

    def __init__(self, make_admin: Callable[[], AdminClient], clock: Callable[[], float] = monotonic) -> None:
        self._make_admin = make_admin
        self._clock = clock
        self._asked_at: float | None = None
        self._asking: threading.Thread | None = None
        self._older: dict[str, float] = {}  # topics that were told of, with their retention in seconds

    def look(self, topic: str, age_seconds: float) -> None:
        """At the oldest record of the spool. Returns at once."""
        if self._asking is not None and self._asking.is_alive():
            return
        # The oldest of all: the records of every other topic are younger still.
        self._older = {name: retention for name, retention in self._older.items() if age_seconds > retention}
        now = self._clock()
        if age_seconds <= YOUNG_SECONDS or (self._asked_at is not None and now - self._asked_at < ASK_EVERY_SECONDS):
            return
        self._asked_at = now
        with contextlib.suppress(RuntimeError):  # no thread to be had, as at the interpreter's exit
            self._asking = threading.Thread(
                target=self._ask, args=(topic, age_seconds), name="safekafka-retention", daemon=True
            )
            self._asking.start()

    def _ask(self, topic: str, age_seconds: float) -> None:
        resource = ConfigResource(ResourceType.TOPIC, topic)
        try:
            admin = self._make_admin()  # has a name until it has answered: dropped, it breaks its questions off
            answers = admin.describe_configs([resource], request_timeout=_ANSWER_SECONDS)
            retention = retention_of(answers[resource].result())
        except KafkaException:  # not reached, or not allowed to know: asked again
            return
        if retention is None or age_seconds <= retention:
            self._older.pop(topic, None)
            return
        if topic not in self._older:
            emit(
                Event.OLDER_THAN_RETENTION,
                topic=topic,
                age_seconds=round(age_seconds),
                retention_seconds=retention,
                remedy="raise the topic's retention.ms until they are delivered and read",
            )
        self._older[topic] = retention


def retention_of(config: Mapping[str, ConfigEntry]) -> float | None:
    """Seconds after which the topic deletes a record, counted from the record's own time; None if it does not."""
    if "delete" not in _value(config, "cleanup.policy", "delete"):
        return None
    if _value(config, "message.timestamp.type", "CreateTime") == "LogAppendTime":
        return None  # counted from the delivery
    retention_ms = int(_value(config, "retention.ms", "-1"))
    return None if retention_ms < 0 else retention_ms / 1000


def _value(config: Mapping[str, ConfigEntry], name: str, default: str) -> str:
    """Brokers that are not Kafka's own may not know the setting, or not tell it."""
    entry = config.get(name)
    return default if entry is None or entry.value is None else entry.value
