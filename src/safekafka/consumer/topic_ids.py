"""What the brokers know of topics: their ids, by which one created anew can be told from the one before; which are not
there, or not for us; and whether anybody answers.

Thread: an admin client of its own, asked on whichever thread wants to know; it is made at the first question.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Callable, Iterable

from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

ASK_SECONDS = 5.0
_WITHHELD = (KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError.TOPIC_AUTHORIZATION_FAILED)


class TopicIds:
    def __init__(self, make_admin: Callable[[], AdminClient]) -> None:
        self._make_admin = make_admin
        self._admin: AdminClient | None = None

    def ask(self, topics: Iterable[str]) -> dict[str, str]:
        """Those that can be told within `ASK_SECONDS`."""
        found: dict[str, str] = {}
        try:
            answers = self._client().describe_topics(TopicCollection(sorted(set(topics))), request_timeout=ASK_SECONDS)
        except (KafkaException, ValueError):
            return found
        for topic, answer in answers.items():
            try:
                found[topic] = str(answer.result(ASK_SECONDS).topic_id)
            except (KafkaException, concurrent.futures.TimeoutError):  # another one than TimeoutError in Python 3.10
                continue
        return found

    def withheld(self, topics: Iterable[str]) -> dict[str, KafkaError | None]:
        """Those that the brokers tell of: why they are not there or not for us, None where they are. Creates none."""
        found: dict[str, KafkaError | None] = {}
        for topic in topics:
            with contextlib.suppress(KafkaException):
                error = self._client().list_topics(topic, timeout=ASK_SECONDS).topics[topic].error
                found[topic] = error if error is not None and error.code() in _WITHHELD else None
        return found

    def answer_for(self, topic: str) -> bool:
        """Whether a broker answers. Creates nothing."""
        try:
            self._client().list_topics(topic, timeout=ASK_SECONDS)
        except KafkaException:
            return False
        return True

    def _client(self) -> AdminClient:
        if self._admin is None:
            self._admin = self._make_admin()
        return self._admin
