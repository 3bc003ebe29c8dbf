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
_TOPICS = 500  # in one question, the oldest first


class RetentionWatch:
    """Tells once for each topic that its oldest record is older than its retention, and again if that has passed and
    come back."""

    def __init__(self, make_admin: Callable[[], AdminClient], clock: Callable[[], float] = monotonic) -> None:
        self._make_admin = make_admin
        self._clock = clock
        self._asked_at: float | None = None
        self._asking: threading.Thread | None = None
        self._older: dict[str, float] = {}  # topics that were told of, with their retention in seconds

    def look(self, age_seconds: float, ages: Callable[[], Mapping[str, float]]) -> None:
        """At the age of the oldest record of all; and at those of each topic's oldest, which are looked up only when
        the brokers are to be asked. Returns at once."""
        if self._asking is not None and self._asking.is_alive():
            return
        if age_seconds <= YOUNG_SECONDS:  # nor is there an older one of any topic
            self._forget(dict.fromkeys(self._older, age_seconds))
            return
        now = self._clock()
        if self._asked_at is not None and now - self._asked_at < ASK_EVERY_SECONDS:
            return
        self._asked_at = now
        found = ages()
        self._forget(found)
        oldest_first = sorted(found, key=found.__getitem__, reverse=True)
        old = {topic: found[topic] for topic in oldest_first[:_TOPICS] if found[topic] > YOUNG_SECONDS}
        if not old:
            return
        with contextlib.suppress(RuntimeError):  # no thread to be had, as at the interpreter's exit
            self._asking = threading.Thread(target=self._ask, args=(old,), name="safekafka-retention", daemon=True)
            self._asking.start()

    def _forget(self, ages: Mapping[str, float]) -> None:
        """Topics whose old records have gone."""
        self._older = {topic: limit for topic, limit in self._older.items() if ages.get(topic, 0.0) > limit}

    def _ask(self, ages: Mapping[str, float]) -> None:
        resources = {topic: ConfigResource(ResourceType.TOPIC, topic) for topic in ages}
        try:
            admin = self._make_admin()  # has a name until it has answered: dropped, it breaks its questions off
            answers = admin.describe_configs(list(resources.values()), request_timeout=_ANSWER_SECONDS)
        except KafkaException:  # not reached: asked again
            return
        for topic, age in ages.items():
            with contextlib.suppress(KafkaException):  # not reached, or not allowed to know: asked again
                self._answered(topic, age, retention_of(answers[resources[topic]].result()))

    def _answered(self, topic: str, age_seconds: float, retention: float | None) -> None:
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
