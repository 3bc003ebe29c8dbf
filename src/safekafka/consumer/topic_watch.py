"""Tells of a subscribed topic that is not there, as a mistyped one. The client does so with one group protocol and is
silent with the other; and it is no error as long as somebody may be about to create the topic.

Threads: `look` on the poll thread; the brokers are asked on a thread of its own, by an admin client.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable

from safekafka.observe import Event, emit

AFTER_SECONDS = 30.0


class TopicWatch:
    """`missing` asks the brokers: which of these topics are not there."""

    def __init__(self, missing: Callable[[Iterable[str]], set[str]]) -> None:
        self._missing = missing
        self._ask_at: float | None = None
        self._asking: threading.Thread | None = None
        self._found: set[str] = set()
        self.unknown: set[str] = set()  # told of

    def look(self, now: float, without: Collection[str]) -> None:
        """`without`: the subscribed topics of which this member has no partition."""
        self.unknown.intersection_update(without)
        if not without:
            self._ask_at = None
            return
        if self._ask_at is None:
            self._ask_at = now + AFTER_SECONDS
        if self._asking is not None and not self._asking.is_alive():
            self._asking = None
            self.unknown &= self._found
            for topic in sorted(self._found.intersection(without) - self.unknown):
                self.unknown.add(topic)
                emit(
                    Event.TOPIC_UNKNOWN,
                    topic=topic,
                    remedy="create it, or mend its name; nothing of it is read before, and all of it afterwards",
                )
        if self._asking is None and now >= self._ask_at:
            self._ask_at = now + AFTER_SECONDS
            self._asking = threading.Thread(target=self._ask, args=(set(without),), name="safekafka-ask", daemon=True)
            self._asking.start()

    def _ask(self, topics: set[str]) -> None:
        self._found = self._missing(topics)
