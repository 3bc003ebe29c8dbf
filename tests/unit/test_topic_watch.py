"""A subscribed topic that is not there: told after a while, once, and again when it is gone once more."""

from __future__ import annotations

import pytest

from safekafka.consumer.topic_watch import AFTER_SECONDS, TopicWatch
from tests.processes import wait_until


def look(watch: TopicWatch, now: float, without: list[str]) -> None:
    """With the answer of the brokers, if they are asked."""
    watch.look(now, without)
    wait_until(lambda: watch._asking is None or not watch._asking.is_alive(), 10, "the answer")


def test_a_topic_that_is_not_there_is_told_once_and_forgotten_when_it_is(caplog: pytest.LogCaptureFixture) -> None:
    missing = {"refunds"}
    asked: list[set[str]] = []

    def ask(topics: object) -> set[str]:
        asked.append(set(topics))  # type: ignore[call-overload]
        return set(missing)

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

    missing.clear()
    look(watch, 4 * AFTER_SECONDS, ["orders"])
    assert watch.unknown == set()
    missing.add("refunds")
    look(watch, 5 * AFTER_SECONDS, ["orders", "refunds"])
    look(watch, 5 * AFTER_SECONDS + 1, ["orders", "refunds"])
    assert caplog.text.count("topic_unknown") == 2


def test_nobody_is_asked_while_each_topic_is_read() -> None:
    watch = TopicWatch(lambda topics: pytest.fail("asked"))
    for now in (0.0, AFTER_SECONDS, 2 * AFTER_SECONDS):
        look(watch, now, [])
