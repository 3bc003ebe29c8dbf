"""A subscribed topic that is not there, or not for us: told after a while, once, and again when it is gone again."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError

from safekafka.consumer.topic_watch import AFTER_SECONDS, TopicWatch
from tests.processes import wait_until


def look(watch: TopicWatch, now: float, without: list[str]) -> None:
    """With the answer of the brokers, if they are asked."""
    watch.look(now, without)
    wait_until(lambda: watch._asking is None or not watch._asking.is_alive(), 10, "the answer")


def test_a_topic_that_is_not_there_is_told_once_and_forgotten_when_it_is(caplog: pytest.LogCaptureFixture) -> None:
    missing: dict[str, KafkaError | None] = {"refunds": KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART), "orders": None}
    asked: list[set[str]] = []

    def ask(topics: object) -> dict[str, KafkaError | None]:
        asked.append(set(topics))  # type: ignore[call-overload]
        return dict(missing)

    watch = TopicWatch(ask)
    look(watch, 0, ["orders", "refunds"])
    look(watch, AFTER_SECONDS - 1, ["orders", "refunds"])
    assert asked == []
    for turn in range(1, 4):  # `orders` is there: other members have its partitions
        look(watch, turn * AFTER_SECONDS, ["orders", "refunds"])
        look(watch, turn * AFTER_SECONDS + 1, ["orders", "refunds"])
    assert asked == [{"orders", "refunds"}] * 3
    assert watch.unknown == {"refunds"}
    assert caplog.text.count("topic_unknown") == 1

    missing["refunds"] = None
    look(watch, 4 * AFTER_SECONDS, ["orders"])
    assert watch.unknown == set()
    missing["refunds"] = KafkaError(KafkaError._UNKNOWN_TOPIC)
    look(watch, 5 * AFTER_SECONDS, ["orders", "refunds"])
    look(watch, 5 * AFTER_SECONDS + 1, ["orders", "refunds"])
    assert caplog.text.count("topic_unknown") == 2


def test_a_topic_that_may_not_be_seen_is_denied_and_not_unknown_until_it_may_or_has_partitions_here() -> None:
    error = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
    answer: dict[str, KafkaError | None] = {"orders": error, "refunds": error}
    watch = TopicWatch(lambda _: dict(answer))
    for now in (0, AFTER_SECONDS, AFTER_SECONDS + 1):
        look(watch, now, ["orders", "refunds"])
    assert watch.denied == answer
    assert watch.unknown == set()
    answer["refunds"] = None
    for now in (2 * AFTER_SECONDS, 2 * AFTER_SECONDS + 1):
        look(watch, now, ["orders", "refunds"])
    assert watch.denied == {"orders": error}
    assert watch.there == {"refunds"}
    look(watch, 2 * AFTER_SECONDS + 2, ["refunds"])
    assert watch.denied == {}


def test_what_the_brokers_do_not_tell_of_is_as_it_was() -> None:
    """In an outage a topic that was denied is not there again."""
    answer: dict[str, KafkaError | None] = {
        "orders": KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED),
        "refunds": KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART),
        "audit": None,
    }
    watch = TopicWatch(lambda _: dict(answer))
    for now in (0, AFTER_SECONDS, AFTER_SECONDS + 1):
        look(watch, now, ["audit", "orders", "refunds"])
    for _ in range(2):
        assert list(watch.denied) == ["orders"]
        assert watch.unknown == {"refunds"}
        answer.clear()
        for now in (2 * AFTER_SECONDS, 2 * AFTER_SECONDS + 1):
            look(watch, now, ["audit", "orders", "refunds"])
    assert watch.there == set()


def test_nobody_is_asked_while_each_topic_is_read() -> None:
    watch = TopicWatch(lambda topics: pytest.fail("asked"))
    for now in (0.0, AFTER_SECONDS, 2 * AFTER_SECONDS):
        look(watch, now, [])
