"""How dead letters are described: `DeadLetter`, and the topics that it may not be."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from safekafka.deadletter.circuit import Circuit
from safekafka.deadletter.dialects import DIALECTS
from safekafka.producer.producer import SafeProducer
from safekafka.record import topic_problem
from safekafka.settings import positive


@dataclass(frozen=True)
class DeadLetter:
    """Where messages go that could not be handled. A plain topic name means `DeadLetter(topic)`.

    `topic` must exist; it is never created, and may not be among the subscribed ones.
    `producer`: a `SafeProducer` of the application's own, without serializers; the consumer does not close it. Default:
    one with the consumer's connection and security settings, which takes records of any size that the topic takes.
    `headers`: the dialect of what is told about the failure: "native", or that of "spring" (Spring Kafka), "connect"
    (Kafka Connect), "kip1191" (share groups), "streams" (Kafka Streams, KIP-1034).
    `write_timeout`: seconds for which a message is held, and its dead letter tried again, before `DeadLetterFailed`.
    `max_consecutive`, `max_rate` = (count, seconds): more dead letters than that mean that the handler's surroundings
    are broken, not the messages. What fails then is not dead-lettered: with `on_limit="pause"` consuming pauses, and
    the failing message is tried again after growing pauses until a handler succeeds; with "stop" the consumer stops
    with `DeadLetterFailed`. Default: no limit.

    Raises `ValueError`.
    """

    topic: str
    producer: SafeProducer | None = None
    headers: Literal["native", "spring", "connect", "kip1191", "streams"] = "native"
    max_consecutive: int | None = None
    max_rate: tuple[int, float] | None = None
    on_limit: Literal["pause", "stop"] = "pause"
    write_timeout: float = 60.0

    def __post_init__(self) -> None:
        problem = topic_problem(self.topic)
        if problem:
            raise ValueError(f"dead letter {problem}")
        if self.producer is not None:
            if not isinstance(self.producer, SafeProducer):
                raise ValueError(
                    f"producer={self.producer!r}: give a SafeProducer, or leave it out to have one made from the "
                    "consumer's connection settings"
                )
            if not self.producer._plain:
                raise ValueError(
                    "producer= has a key_serializer or value_serializer, and a dead letter is bytes that must stay as "
                    "they are: give a SafeProducer without serializers"
                )
        if not isinstance(self.headers, str) or self.headers not in DIALECTS:
            raise ValueError(f"headers={self.headers!r}: choose one of {', '.join(map(repr, DIALECTS))}")
        if self.max_consecutive is not None and not _is_count(self.max_consecutive):
            raise ValueError(
                f"max_consecutive={self.max_consecutive!r}: give a whole number from 1 on, or leave it out"
            )
        if self.max_rate is not None:
            rate = self.max_rate
            if not isinstance(rate, tuple) or len(rate) != 2 or not _is_count(rate[0]):
                raise ValueError(f"max_rate={rate!r}: give (count, seconds), as in (100, 60.0), or leave it out")
            positive(**{"max_rate, its seconds": rate[1]})
        if self.on_limit not in ("pause", "stop"):
            raise ValueError(f"on_limit={self.on_limit!r}: choose 'pause' (and probe) or 'stop'")
        if self.on_limit == "stop" and self.max_consecutive is None and self.max_rate is None:
            raise ValueError("on_limit='stop' without a limit: give max_consecutive or max_rate as well")
        positive(write_timeout=self.write_timeout)

    def circuit(self) -> Circuit:
        return Circuit(self.max_consecutive, self.max_rate)


def _is_count(number: object) -> bool:
    return type(number) is int and number >= 1


def described(dead_letter: DeadLetter | str) -> DeadLetter:
    """What `dead_letter=` of a consumer says. Raises `ValueError`."""
    if isinstance(dead_letter, DeadLetter):
        return dead_letter
    if isinstance(dead_letter, str):
        return DeadLetter(dead_letter)
    raise ValueError(f"dead_letter={dead_letter!r}: give a topic name, or DeadLetter(topic, ...)")


def refuse_subscribed(dead_letter: DeadLetter, topics: Sequence[str]) -> None:
    """Raise `ValueError` where a subscription takes the dead letter topic. The publisher refuses what comes from it all
    the same: what a pattern matches is the client's or the broker's word, not Python's."""
    for subscribed in topics:
        if _matches(subscribed, dead_letter.topic):
            raise ValueError(
                f"dead_letter={dead_letter.topic!r} is also subscribed, by {subscribed!r}: every dead letter would "
                "come back and fail again, for ever. Give it a topic of its own, and one that no pattern matches."
            )


def _matches(subscribed: str, topic: str) -> bool:
    """Whether the subscription takes the topic; one that starts with ^ is a pattern."""
    if not subscribed.startswith("^"):
        return subscribed == topic
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # [[:alpha:]], which only the client understands
            return re.search(subscribed, topic) is not None
    except re.error:
        return False  # a pattern of the client's kind
