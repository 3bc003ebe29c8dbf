"""Records that Kafka would delete soon after it got them: told once, without holding up who asks."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its own names, which it does not re-export
    AdminClient,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from hypothesis import given
from hypothesis import strategies as st

from safekafka.spool.retention import ASK_EVERY_SECONDS, YOUNG_SECONDS, RetentionWatch, retention_of

HOUR = 3600.0
TIMED_OUT = KafkaException(KafkaError(KafkaError._TIMED_OUT))


def config(**settings: str | None) -> dict[str, ConfigEntry]:
    """`retention_ms="1"` stands for retention.ms."""
    return {(name := key.replace("_", ".")): ConfigEntry(name, value) for key, value in settings.items()}


def deletes_after(seconds: float) -> dict[str, ConfigEntry]:
    return config(cleanup_policy="delete", retention_ms=str(round(seconds * 1000)))


class Brokers:
    """They answer with `answer`: a topic's settings or an error; None: they do not answer before `answers`."""

    def __init__(self, answer: dict[str, ConfigEntry] | KafkaException | None) -> None:
        self.answer = answer
        self.unreachable: KafkaException | None = None  # what already the making of a client raises
        self.of: dict[str, dict[str, ConfigEntry] | KafkaException] = {}  # for these topics another answer
        self.asked: list[tuple[str, float]] = []  # topic, request_timeout
        self.clients = 0
        self.arrived = threading.Event()
        self.open: Future[dict[str, ConfigEntry]] = Future()

    def make_admin(self) -> AdminClient:
        self.clients += 1
        if self.unreachable is not None:
            raise self.unreachable
        return cast(AdminClient, Admin(self))

    def wait_for_question(self) -> None:
        assert self.arrived.wait(30)

    def answers(self, settings: dict[str, ConfigEntry]) -> None:
        self.open.set_result(settings)


class Admin:
    """What the watch needs of an `AdminClient`; like the real one, it breaks its question off when it is dropped."""

    def __init__(self, brokers: Brokers) -> None:
        self._brokers = brokers

    def describe_configs(self, resources: list[ConfigResource], **options: Any) -> dict[ConfigResource, Future[Any]]:
        assert {resource.restype for resource in resources} == {ResourceType.TOPIC}
        assert set(options) == {"request_timeout"}
        brokers, answers = self._brokers, {}
        for resource in resources:
            answer = Future[Any]()
            brokers.asked.append((resource.name, options["request_timeout"]))
            brokers.open = answer
            weakref.finalize(self, break_off, answer)
            found = brokers.of.get(resource.name, brokers.answer)
            if isinstance(found, KafkaException):
                answer.set_exception(found)
            elif found is not None:
                answer.set_result(found)
            answers[ConfigResource(ResourceType.TOPIC, resource.name)] = answer  # an equal one, not the same
        brokers.arrived.set()
        return answers


def break_off(answer: Future[Any]) -> None:
    if not answer.done():
        answer.set_exception(KafkaException(KafkaError(KafkaError._DESTROY)))


class Watched:
    """A watch whose time is set by hand."""

    def __init__(self, brokers: Brokers) -> None:
        self.now = 1000.0
        self.watch = RetentionWatch(brokers.make_admin, lambda: self.now)

    def look(self, topic: str, age_seconds: float, **others: float) -> None:
        """At a spool with these topics. Until the question that it may have started has ended."""
        self.begin(topic, age_seconds, **others)
        wait_for_end()

    def begin(self, topic: str, age_seconds: float, **others: float) -> None:
        ages = {topic: age_seconds, **others}
        self.watch.look(max(ages.values()), lambda: ages)

    def look_later(self, topic: str, age_seconds: float, **others: float) -> None:
        self.now += ASK_EVERY_SECONDS
        self.look(topic, age_seconds, **others)


def questions() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "safekafka-retention"]


def wait_for_end() -> None:
    for thread in questions():
        thread.join(30)
        assert not thread.is_alive()


class _Ours(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return record.name == "safekafka"


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    caplog.set_level(logging.DEBUG, logger="safekafka")
    with caplog.filtering(_Ours()):  # not the lines of clients that other tests have left behind
        yield caplog


def test_records_older_than_the_retention_of_their_topic_are_told_of_with_the_remedy(
    told: pytest.LogCaptureFixture,
) -> None:
    brokers = Brokers(deletes_after(HOUR))
    Watched(brokers).look("orders", HOUR + 1)
    assert brokers.asked == [("orders", 5.0)]
    (line,) = told.records
    assert line.levelno == logging.ERROR
    assert line.getMessage() == (
        "older_than_retention topic='orders' age_seconds=3601 retention_seconds=3600.0 "
        'remedy="raise the topic\'s retention.ms until they are delivered and read"'
    )


def test_records_as_old_as_the_retention_are_not_told_of(told: pytest.LogCaptureFixture) -> None:
    Watched(Brokers(deletes_after(HOUR))).look("orders", HOUR)
    assert told.messages == []


def test_the_brokers_are_not_asked_about_young_records() -> None:
    brokers = Brokers(deletes_after(1))
    watched = Watched(brokers)
    watched.look("orders", YOUNG_SECONDS)
    assert brokers.clients == 0
    watched.look("orders", YOUNG_SECONDS + 1)
    assert brokers.clients == 1


def test_the_brokers_are_asked_at_most_once_a_minute() -> None:
    brokers = Brokers(deletes_after(HOUR))
    watched = Watched(brokers)
    for topic in ("orders", "payments"):
        watched.look(topic, 100.0)
    watched.now += ASK_EVERY_SECONDS - 1
    watched.look("orders", 160.0)
    assert [topic for topic, _ in brokers.asked] == ["orders"]
    watched.now += 1
    watched.look("payments", 161.0)
    assert [topic for topic, _ in brokers.asked] == ["orders", "payments"]


def test_brokers_that_do_not_answer_hold_nobody_up_and_are_asked_nothing_more(told: pytest.LogCaptureFixture) -> None:
    brokers = Brokers(None)
    watched = Watched(brokers)
    watched.begin("orders", 2 * HOUR)  # returns, though nobody answers
    brokers.wait_for_question()
    watched.now += 10 * ASK_EVERY_SECONDS
    watched.begin("orders", 2 * HOUR)
    assert len(questions()) == brokers.clients == 1
    assert told.messages == []
    brokers.answers(deletes_after(HOUR))
    wait_for_end()
    assert len(told.messages) == 1


def test_a_question_does_not_keep_the_program_from_its_end() -> None:
    brokers = Brokers(None)
    watched = Watched(brokers)
    watched.begin("orders", 2 * HOUR)
    (question,) = questions()
    assert question.daemon
    brokers.wait_for_question()
    brokers.answers(deletes_after(HOUR))
    wait_for_end()


@pytest.mark.parametrize("at_once", [True, False], ids=["no client", "no answer"])
def test_what_the_brokers_do_not_tell_is_silent_and_asked_again(told: pytest.LogCaptureFixture, at_once: bool) -> None:
    brokers = Brokers(TIMED_OUT)
    brokers.unreachable = TIMED_OUT if at_once else None
    watched = Watched(brokers)
    watched.look("orders", 2 * HOUR)
    assert brokers.clients == 1
    assert told.messages == []
    brokers.answer, brokers.unreachable = deletes_after(HOUR), None
    watched.look_later("orders", 2 * HOUR)
    assert len(told.messages) == 1


def test_a_topic_is_told_of_once(told: pytest.LogCaptureFixture) -> None:
    brokers = Brokers(deletes_after(HOUR))
    watched = Watched(brokers)
    for hours in range(2, 6):
        watched.look_later("orders", hours * HOUR)
    assert len(brokers.asked) == 4
    assert len(told.messages) == 1
    brokers.answer = TIMED_OUT  # no reason to think otherwise
    watched.look_later("orders", 6 * HOUR)
    brokers.answer = deletes_after(HOUR)
    watched.look_later("orders", 7 * HOUR)
    assert len(told.messages) == 1


def test_each_topic_is_told_of(told: pytest.LogCaptureFixture) -> None:
    watched = Watched(Brokers(deletes_after(HOUR)))
    for _ in range(2):
        watched.look_later("orders", 3 * HOUR, payments=2 * HOUR)
    assert [message.split()[1] for message in told.messages] == ["topic='orders'", "topic='payments'"]


def test_after_the_old_records_have_gone_it_is_told_again(told: pytest.LogCaptureFixture) -> None:
    watched = Watched(Brokers(deletes_after(HOUR)))
    watched.look_later("orders", 2 * HOUR)
    watched.look("orders", 1.0)  # too young to ask, and young enough to know
    watched.look_later("orders", 2 * HOUR)
    assert len(told.messages) == 2
    watched.look("payments", 1.0)  # the oldest of the spool: what there is of other topics is younger
    watched.look_later("orders", 2 * HOUR)
    assert len(told.messages) == 3
    watched.look_later("payments", HOUR / 2)  # old, but of another topic
    watched.look_later("orders", 2 * HOUR, payments=HOUR / 2)
    assert len(told.messages) == 4


def test_a_younger_topic_with_a_shorter_retention_is_told_of(told: pytest.LogCaptureFixture) -> None:
    brokers = Brokers(deletes_after(100 * HOUR))
    brokers.of["payments"] = deletes_after(HOUR)
    Watched(brokers).look("orders", 3 * HOUR, payments=2 * HOUR, audit=1.0)
    assert [topic for topic, _ in brokers.asked] == ["orders", "payments"]  # nothing about the young
    assert [message.split()[:3] for message in told.messages] == [
        ["older_than_retention", "topic='payments'", "age_seconds=7200"]
    ]


def test_a_topic_that_the_brokers_tell_nothing_of_hides_no_other(told: pytest.LogCaptureFixture) -> None:
    brokers = Brokers(deletes_after(HOUR))
    brokers.of["orders"] = KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
    Watched(brokers).look("orders", 3 * HOUR, payments=2 * HOUR)
    assert [message.split()[1] for message in told.messages] == ["topic='payments'"]


def test_of_many_topics_the_oldest_are_asked_about() -> None:
    brokers = Brokers(deletes_after(HOUR))
    Watched(brokers).look("orders", 2 * HOUR, **{f"topic-{n}": HOUR - n for n in range(1_000)})
    assert [topic for topic, _ in brokers.asked] == ["orders", *(f"topic-{n}" for n in range(499))]


def test_after_the_retention_was_raised_and_passed_again_it_is_told_again(told: pytest.LogCaptureFixture) -> None:
    brokers = Brokers(deletes_after(HOUR))
    watched = Watched(brokers)
    watched.look_later("orders", 2 * HOUR)
    brokers.answer = deletes_after(3 * HOUR)
    watched.look_later("orders", 2.1 * HOUR)
    assert len(told.messages) == 1
    watched.look_later("orders", 3.1 * HOUR)
    assert len(told.messages) == 2


def test_no_thread_to_be_had_is_silent_and_tried_again(
    told: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    brokers = Brokers(deletes_after(HOUR))
    watched = Watched(brokers)
    with monkeypatch.context() as exiting:
        exiting.setattr(threading.Thread, "start", refuse)
        watched.look("orders", 2 * HOUR)
    assert brokers.clients == 0
    watched.look_later("orders", 2 * HOUR)
    assert len(told.messages) == 1


@given(st.integers(min_value=0, max_value=2**63 - 1))
def test_retention_is_told_in_seconds(milliseconds: int) -> None:
    assert retention_of(config(cleanup_policy="delete", retention_ms=str(milliseconds))) == milliseconds / 1000


@pytest.mark.parametrize("policy", ["compact,delete", "delete, compact", None])
def test_a_topic_that_also_compacts_deletes(policy: str | None) -> None:
    assert retention_of(config(cleanup_policy=policy, retention_ms="5000")) == 5.0


@pytest.mark.parametrize(
    "settings",
    [
        {"cleanup_policy": "delete", "retention_ms": "-1"},
        {"cleanup_policy": "compact", "retention_ms": "5000"},
        {"cleanup_policy": "", "retention_ms": "5000"},
        {"cleanup_policy": "delete", "retention_ms": "5000", "message_timestamp_type": "LogAppendTime"},
        {"cleanup_policy": "delete", "retention_ms": None},
        {},
    ],
    ids=["unlimited", "compacted", "no policy", "counted from delivery", "not told", "not known"],
)
def test_a_topic_that_does_not_delete_by_the_age_of_records_has_no_retention(
    settings: dict[str, str | None], told: pytest.LogCaptureFixture
) -> None:
    assert retention_of(config(**settings)) is None
    Watched(Brokers(config(**settings))).look("orders", 10_000 * HOUR)
    assert told.messages == []


def test_a_topic_that_takes_the_time_from_the_record_has_a_retention() -> None:
    settings = config(cleanup_policy="delete", retention_ms="5000", message_timestamp_type="CreateTime")
    assert retention_of(settings) == 5.0
