"""`DeadLetter`: a wrong value is refused where it is given, with its name and a remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from safekafka import DeadLetter, SafeConsumer, SafeProducer
from safekafka.deadletter.config import described, refuse_subscribed

BROKERS = {"bootstrap.servers": "127.0.0.1:1"}


@pytest.fixture
def producer() -> Iterator[SafeProducer]:
    with SafeProducer(BROKERS) as made:
        yield made


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"topic": "no topic"}, "'no topic' is not a legal name"),
        ({"topic": None}, "topic must be a str"),
        ({"producer": "localhost:9092"}, "producer='localhost:9092': give a SafeProducer"),
        ({"headers": "karafka"}, "headers='karafka': choose one of 'native', 'spring', 'connect', 'kip1191'"),
        ({"headers": None}, "headers=None: choose one of"),
        ({"max_consecutive": 0}, "max_consecutive=0: give a whole number from 1 on"),
        ({"max_consecutive": True}, "max_consecutive=True"),
        ({"max_rate": 5}, r"max_rate=5: give \(count, seconds\)"),
        ({"max_rate": (0, 1.0)}, r"max_rate=\(0, 1.0\)"),
        ({"max_rate": (5, 0)}, "max_rate, its seconds=0: give a number greater than 0"),
        ({"on_limit": "drop"}, "on_limit='drop': choose 'pause'"),
        ({"on_limit": "stop"}, "on_limit='stop' without a limit: give max_consecutive"),
        ({"write_timeout": 0}, "write_timeout=0: give a number greater than 0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name_and_a_remedy(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DeadLetter(**{"topic": "orders.dlq", **options})


def test_a_producer_that_would_change_the_bytes_is_refused() -> None:
    with (
        SafeProducer(BROKERS, value_serializer=str.upper) as shouting,
        pytest.raises(ValueError, match="without serializers"),
    ):
        DeadLetter("orders.dlq", shouting)


def test_a_topic_name_is_a_dead_letter_with_defaults() -> None:
    assert described("orders.dlq") == DeadLetter("orders.dlq")
    with pytest.raises(ValueError, match="dead_letter=7: give a topic name"):
        described(7)  # type: ignore[arg-type]


@pytest.mark.parametrize("topics", [["orders", "orders.dlq"], ["^orders.*"], ["^.*dlq$", "orders"]])
def test_B_D06_a_dead_letter_topic_that_any_subscription_takes_is_refused(
    topics: list[str], producer: SafeProducer
) -> None:
    for dead_letter in ("orders.dlq", DeadLetter("orders.dlq"), DeadLetter("orders.dlq", producer)):
        with pytest.raises(ValueError, match=r"'orders\.dlq' is also subscribed"):
            SafeConsumer({**BROKERS, "group.id": "billing"}, topics, dead_letter=dead_letter)


@pytest.mark.parametrize("topics", [["orders"], ["^orders$"], ["^orders[[:digit:]]"], ["^orders(["]])
def test_topics_that_leave_it_out_are_accepted_also_patterns_that_only_the_client_understands(
    topics: list[str],
) -> None:
    refuse_subscribed(DeadLetter("orders.dlq"), topics)
