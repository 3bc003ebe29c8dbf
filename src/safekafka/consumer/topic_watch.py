"""Tells of a subscribed topic that is not there, as a mistyped one, or that we may not see. The client does so with one
group protocol and is silent with the other; and it is no error as long as somebody may be about to create the topic.

Threads: `look` on the poll thread; the brokers are asked on a thread of its own, by an admin client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from confluent_kafka import KafkaError

from safekafka.observe import Event, emit

AFTER_SECONDS = 30.0
_DENIED = KafkaError.TOPIC_AUTHORIZATION_FAILED


class TopicWatch:
    """`withheld` asks the brokers which of these topics are not there, or not for us. One that they do not tell of is
    as it was."""

    def __init__(self, withheld: Callable[[Iterable[str]], dict[str, KafkaError | None]]) -> None:
        self._withheld = withheld
        self._ask_at: float | None = None
        self._asking: threading.Thread | None = None
        self._found: dict[str, KafkaError | None] = {}
        self.unknown: set[str] = set()  # told of
        self.denied: dict[str, KafkaError] = {}
        self.there: set[str] = set()  # when the brokers told of them last

    def look(self, now: float, without: Collection[str]) -> None:
        """`without`: the subscribed topics of which this member has no partition."""
        self.unknown.intersection_update(without)
        self.denied = {topic: error for topic, error in self.denied.items() if topic in without}
        self.there &= set(without)
        if not without:
            self._ask_at = None
            return
        if self._ask_at is None:
            self._ask_at = now + AFTER_SECONDS
        if self._asking is not None and not self._asking.is_alive():
            self._asking = None
            told = {topic: error for topic, error in self._found.items() if topic in without}
            self.there = {topic for topic, error in told.items() if error is None}
            denied = {topic: error for topic, error in told.items() if error is not None and error.code() == _DENIED}
            self.denied = {topic: error for topic, error in self.denied.items() if topic not in told} | denied
            unknown = told.keys() - self.there - denied.keys()
            new = unknown - self.unknown
            self.unknown = (self.unknown - told.keys()) | unknown
            for topic in sorted(new):
                emit(
                    Event.TOPIC_UNKNOWN,
                    topic=topic,
                    remedy="create it, or mend its name; nothing of it is read before, and all of it afterwards",
                )
        if self._asking is None and now >= self._ask_at:
            self._ask_at = now + AFTER_SECONDS
            self._found = {}
            self._asking = threading.Thread(target=self._ask, args=(set(without),), name="safekafka-ask", daemon=True)
            self._asking.start()

    def _ask(self, topics: set[str]) -> None:
        self._found = self._withheld(topics)
