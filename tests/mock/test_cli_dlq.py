"""`safekafka dlq` on mock brokers: replays what was asked for, once, in order, and forgets nothing that it leaves."""

from __future__ import annotations

import functools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tenacity
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from typer.testing import CliRunner

from safekafka import DeadLetter, Retry, SafeConsumer, SafeProducer
from safekafka.cli.app import app
from safekafka.consumer.topic_ids import TopicIds
from safekafka.deadletter import replay as replaying
from safekafka.deadletter.config import described
from safekafka.deadletter.dialects import DIALECTS, read
from safekafka.deadletter.log import LetterLog
from safekafka.deadletter.marks import MARK, is_for, marks_of
from safekafka.deadletter.publisher import DeadLetterPublisher
from safekafka.deadletter.replay import Letter, Selection, letter_of
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.processes import wait_until

SAFEKAFKA = [sys.executable, "-c", "from safekafka.cli import main; main()"]
TOPIC, DEAD, GROUP = "orders", "orders.dlq", "billing"
Write = Callable[..., None]


class Ran:
    def __init__(self, cluster: MockCluster, *arguments: object, answer: str | None = None) -> None:
        command, *rest = map(str, arguments)
        where = ["--bootstrap", cluster.bootstrap_servers]
        result = CliRunner().invoke(app, ["dlq", command, DEAD, *rest, *where], input=answer)
        self.status, self.out, self.err = result.exit_code, result.stdout, result.stderr
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def cluster(kafka_mock: MockCluster) -> MockCluster:
    kafka_mock.create_topic(TOPIC, partitions=3)
    kafka_mock.create_topic(DEAD, partitions=3)
    return kafka_mock


@pytest.fixture
def write(cluster: MockCluster) -> Write:
    """Dead letters of these values, as a consumer writes them."""

    def write_letters(
        *values: str, error: Exception | None = None, group: str = GROUP, headers: Any = "native"
    ) -> None:
        settings = {"bootstrap.servers": cluster.bootstrap_servers}
        publisher = DeadLetterPublisher(described(DeadLetter(DEAD, headers=headers)), group, settings)
        for offset, value in enumerate(values):
            about = {"topic": TOPIC, "partition": 1, "offset": 100 + offset, "timestamp": (1, 1_000)}
            failed = Message(key=b"key", value=value.encode(), headers=[("trace", b"\xff"), ("trace", None)], **about)  # type: ignore[arg-type]
            publisher.write(failed, error or ValueError("no such customer"), 3)
        publisher.close(10)

    return write_letters


def messages(cluster: MockCluster, topic: str = TOPIC) -> list[Message]:
    return read_log(cluster.bootstrap_servers, topic, timeout=30)


def values(cluster: MockCluster, topic: str = TOPIC) -> list[str]:
    return [(message.value() or b"").decode() for message in messages(cluster, topic)]


def raw(cluster: MockCluster, value: bytes | None, headers: Any, partition: int = 0) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce(DEAD, value, None, partition=partition, headers=headers)
    assert producer.flush(30) == 0


# ---- replay


@pytest.mark.parametrize("dialect", DIALECTS)
def test_replay_sends_each_letter_back_as_it_was_with_marks_and_once(
    cluster: MockCluster, write: Write, dialect: str
) -> None:
    write("a", "b", "c", headers=dialect)
    ran = Ran(cluster, "replay")
    assert (ran.status, ran.out) == (0, "3 letters replayed.\n"), ran.err
    found = messages(cluster)
    assert [message.value() for message in found] == [b"a", b"b", b"c"]
    for offset, message in enumerate(found):
        headers = message.headers() or []
        assert (message.key(), message.partition()) == (b"key", 1)
        assert headers[:2] == [("trace", b"\xff"), ("trace", None)]
        assert all(name.startswith(MARK) for name, _ in headers[2:])
        marked = marks_of(message)
        assert marked is not None
        assert marked.replays == 1
        assert marked.group == GROUP
        assert marked.first is not None
        assert marked.first[:4] == (TOPIC, 1, 100 + offset, 1_000)
        assert dict(headers)[MARK + "from"] == f"{DEAD}[1]@{offset}".encode()
        assert message.timestamp()[1] > time.time() * 1000 - 60_000  # or retention would remove it at once
    again = Ran(cluster, "replay")
    assert (again.status, again.out) == (0, "0 letters replayed.\n")
    write("d")
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    assert values(cluster) == ["a", "b", "c", "d"]


def test_a_replay_is_for_the_group_that_failed(cluster: MockCluster, write: Write) -> None:
    write("a")
    Ran(cluster, "replay")
    (message,) = messages(cluster)
    assert is_for(message, GROUP)
    assert not is_for(message, "shipping")


@pytest.mark.parametrize("way", ["run", "run_batches", "poll", "iterator"])
def test_consumers_of_other_groups_skip_what_is_replayed_and_count_and_commit_it(
    cluster: MockCluster, write: Write, way: str
) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce(TOPIC, b"theirs too", b"key", partition=1)
    assert producer.flush(30) == 0
    write("a", "b")
    assert Ran(cluster, "replay").status == 0
    config = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": "shipping"}
    seen: list[bytes | None] = []
    consumer = SafeConsumer(config, [TOPIC], commit_interval=0.05)
    watcher = Consumer(config)
    committed: set[int] = set()

    def is_through() -> bool:
        committed.add(watcher.committed([TopicPartition(TOPIC, 1)], timeout=10)[0].offset)
        return 3 in committed

    def work() -> None:
        if way == "run":
            consumer.run(lambda message: seen.append(message.value()))
        elif way == "run_batches":
            consumer.run_batches(lambda batch: seen.extend(message.value() for message in batch))
        elif way == "iterator":
            for message in consumer:
                seen.append(message.value())
        else:
            while not ended.is_set():
                if (found := consumer.poll(0.1)) is not None:
                    seen.append(found.value())
                    consumer.done(found)

    ended = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    try:
        wait_until(is_through, 40, lambda: f"committed behind what is not for it: {committed}")
        wait_until(lambda: consumer.stats().skipped == 2, 10, "counted")  # told once a while
    finally:
        ended.set()
        if way == "poll":
            thread.join(30)
        consumer.close()
        thread.join(30)
        watcher.close()
    assert seen == [b"theirs too"]


def test_a_replay_to_another_topic_is_for_everybody_there(cluster: MockCluster, write: Write) -> None:
    cluster.create_topic("repair", partitions=1)
    write("a")
    assert Ran(cluster, "replay", "--to", "repair").status == 0
    (message,) = messages(cluster, "repair")
    assert is_for(message, "anybody")
    marked = marks_of(message)
    assert marked is not None
    assert marked.replays == 1
    assert values(cluster) == []
    assert Ran(cluster, "replay", "--to", DEAD).status == 2
    write("b")
    assert Ran(cluster, "replay", "--to", TOPIC).status == 0
    (message,) = messages(cluster)
    assert is_for(message, "the new name of the group")


@pytest.mark.parametrize("code", [KafkaError._NOT_IMPLEMENTED, KafkaError._BAD_MSG])
def test_a_letter_that_cannot_be_read_is_not_counted_as_replayed_with_those_around_it(
    cluster: MockCluster, write: Write, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As librdkafka tells of a damaged record set, and passes over it."""
    write(*"abcdefg")
    take = LetterLog._take

    def take_damaged(log: LetterLog, most: int) -> list[Message]:
        where = {"topic": DEAD, "partition": 1, "offset": 3}
        taken = take(log, most)
        return [Message(**where, error=KafkaError(code)) if m.offset() == 3 else m for m in taken]  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(LetterLog, "_take", take_damaged)
        for _ in range(2):
            ran = Ran(cluster, "replay")
            assert ran.status == 1
            assert re.search(rf"{re.escape(DEAD)}\[1\]@3 can't be read.*Remedy", ran.err, re.DOTALL), ran.err
            assert values(cluster) == ["a", "b", "c"]
    assert Ran(cluster, "replay").out == "4 letters replayed.\n"
    assert values(cluster) == list("abcdefg")


def test_filters_leave_the_others_for_later_and_nothing_is_replayed_twice(cluster: MockCluster, write: Write) -> None:
    for number in range(10):
        write(f"value {number}", error=ValueError("no"))
        write(f"key {number}", error=KeyError("no"))
    write("other", group="shipping")
    ran = Ran(cluster, "replay", "--error", "KeyError", "--json")
    assert (ran.status, ran.lines[0]["done"], ran.lines[0]["passed_over"]) == (0, 10, 11)
    assert values(cluster) == [f"key {number}" for number in range(10)]
    assert Ran(cluster, "replay", "--error", "KeyError", "--json").lines[0]["done"] == 0
    assert Ran(cluster, "replay", "--partition", 1, "--offsets", "4-8").out.startswith("3 letters replayed, ")
    assert Ran(cluster, "replay", "--group", "shipping").out.startswith("1 letter replayed, ")
    assert Ran(cluster, "replay", "--until", "1h").out.startswith("0 letters")
    assert Ran(cluster, "replay", "--since", "2999-01-01").out.startswith("0 letters")
    assert Ran(cluster, "replay", "--partition", 0).out == "0 letters replayed.\n"
    assert Ran(cluster, "replay", "--since", "1h").out == "7 letters replayed.\n"
    expected = [f"{kind} {number}" for number in range(10) for kind in ("value", "key")]
    assert sorted(values(cluster)) == sorted([*expected, "other"])


def test_until_and_since_divide_the_letters_by_when_they_failed(cluster: MockCluster) -> None:
    at = 1_767_225_600_000  # 2026-01-01T00:00:00Z
    for value, failed_at in (("later", at + 1), ("earlier", at - 1), ("then", at), ("long before", 0)):
        origin = [("topic", TOPIC), ("partition", "0"), ("offset", "7"), ("failed_at", str(failed_at))]
        raw(cluster, value.encode(), [(f"safekafka.dlq.{name}", told) for name, told in origin])
    when = "2026-01-01T00:00:00Z"
    for option, told in (("--until", ["1", "3"]), ("--since", ["0", "2"])):
        assert [row.split()[1] for row in Ran(cluster, "list", option, when).out.splitlines()[1:]] == told
    assert Ran(cluster, "replay", "--until", when).out == "2 letters replayed, 2 others stay open.\n"
    assert values(cluster) == ["earlier", "long before"]
    assert Ran(cluster, "replay", "--since", when).out == "2 letters replayed.\n"
    assert values(cluster) == ["earlier", "long before", "later", "then"]


def test_a_dry_run_counts_and_changes_nothing(cluster: MockCluster, write: Write) -> None:
    write("a", "b")
    ran = Ran(cluster, "replay", "--dry-run", "--json")
    assert ran.lines == [{**ran.lines[0], "done": 2, "dry_run": True, "failed": None}]
    assert values(cluster) == []
    assert Ran(cluster, "replay").out == "2 letters replayed.\n"


def test_a_replayed_record_that_fails_again_comes_back_with_its_history_and_not_in_the_same_replay(
    cluster: MockCluster, write: Write
) -> None:
    write("poison")
    stopped = threading.Event()

    def fail(message: Message) -> None:
        raise KeyError("still no such customer")

    consumer = SafeConsumer(
        {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP},
        [TOPIC],
        retry=Retry(attempts=1, wait=tenacity.wait_none()),
        dead_letter=DEAD,
    )
    thread = threading.Thread(target=lambda: (consumer.run(fail), stopped.set()))
    thread.start()
    first = None
    for passes in (2, 3):
        ran = Ran(cluster, "replay", "--rate", 50)
        assert ran.out == "1 letter replayed.\n", ran.err
        wait_until(lambda: len(messages(cluster, DEAD)) == passes, 40, "dead-lettered again")
        letter = messages(cluster, DEAD)[-1]
        told = read(letter.headers() or ())  # type: ignore[arg-type]
        assert told is not None
        about = told.about
        assert (about.passes, about.topic, about.partition) == (passes, TOPIC, 1)
        assert about.first is not None
        assert about.first[:4] == (TOPIC, 1, 100, 1_000)
        assert first in (None, about.first)
        first = about.first
        assert "KeyError" in (about.error_class or "")
        assert not [name for name, _ in letter.headers() or [] if name.startswith(MARK)]
    assert thread.is_alive()
    consumer.close()
    assert stopped.wait(30)
    (row,) = Ran(cluster, "list", "--json").lines
    assert row["about"]["passes"] == 3


def test_letters_that_cannot_be_sent_back_stay_open_and_are_told(cluster: MockCluster, write: Write) -> None:
    raw(cluster, b"no origin", [("a", b"1")])
    # A broker's own letter of a share group that keeps no copy of the record.
    origin = [("__dlq.errors.topic", TOPIC), ("__dlq.errors.partition", "1"), ("__dlq.errors.offset", "7")]
    raw(cluster, None, origin)
    raw(cluster, b"with copy", origin)
    raw(cluster, b"from itself", [(name, DEAD if value == TOPIC else value) for name, value in origin])
    write("a")
    ran = Ran(cluster, "replay")
    assert ran.status == 1
    assert ran.out == "2 letters replayed.\n"
    assert "does not say where it comes from" in ran.err
    assert "has no copy of its record" in ran.err
    assert "comes from the dead letter topic itself" in ran.err
    assert sorted(values(cluster)) == ["a", "with copy"]
    assert len(Ran(cluster, "list", "--json").lines) == 3
    cluster.create_topic("repair", partitions=1)
    again = Ran(cluster, "replay", "--to", "repair")
    assert (again.status, again.out) == (1, "2 letters replayed.\n")
    assert values(cluster, "repair") == ["no origin", "from itself"]


def test_a_partition_that_the_source_topic_has_no_more_is_left_to_the_partitioner(cluster: MockCluster) -> None:
    origin = [("safekafka.dlq.topic", TOPIC), ("safekafka.dlq.partition", "77"), ("safekafka.dlq.offset", "7")]
    raw(cluster, b"a", origin)
    assert Ran(cluster, "replay").status == 0
    assert values(cluster) == ["a"]


def test_a_record_that_is_refused_ends_the_replay_and_at_a_low_rate_nothing_overtakes_it(
    cluster: MockCluster, write: Write
) -> None:
    write("a", "b", "c")
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2)
    ran = Ran(cluster, "replay", "--rate", 1)
    assert (ran.status, ran.out) == (1, "0 letters replayed.\n")
    assert "the record of orders.dlq[1]@0 could not be replayed" in ran.err
    assert "MSG_SIZE_TOO_LARGE" in ran.err
    assert values(cluster) == []
    assert Ran(cluster, "replay").out == "3 letters replayed.\n"
    assert values(cluster) == ["a", "b", "c"]


def test_letters_of_a_topic_that_is_gone_stay_open_and_keep_no_others_back(cluster: MockCluster, write: Write) -> None:
    origin = [("safekafka.dlq.topic", "gone"), ("safekafka.dlq.partition", "0"), ("safekafka.dlq.offset", "7")]
    raw(cluster, b"a", origin, partition=1)
    write("b")
    for ran in (Ran(cluster, "replay", "--dry-run"), Ran(cluster, "replay")):
        assert ran.status == 1
        assert ran.out.startswith("1 letter ")
        assert "1 letter stays open: it comes from 'gone', and there is no such topic" in ran.err
    assert values(cluster) == ["b"]
    assert "no records can be sent to 'never'" in Ran(cluster, "replay", "--to", "never").err
    assert len(Ran(cluster, "list", "--json").lines) == 1
    cluster.create_topic("gone", partitions=1)
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    assert values(cluster, "gone") == ["a"]


def test_letters_of_a_topic_without_rights_stay_open_and_keep_no_others_back(
    cluster: MockCluster, write: Write
) -> None:
    cluster.create_topic("denied", partitions=1)
    origin = [("safekafka.dlq.topic", "denied"), ("safekafka.dlq.partition", "0"), ("safekafka.dlq.offset", "7")]
    raw(cluster, b"a", origin, partition=1)
    write("b")
    cluster.set_topic_error("denied", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    ran = Ran(cluster, "replay")
    assert (ran.status, ran.out) == (1, "1 letter replayed.\n")
    assert "1 letter stays open: it comes from 'denied', and there is no right to write to it" in ran.err
    assert values(cluster) == ["b"]
    assert "no records can be sent to 'denied': there is no right" in Ran(cluster, "replay", "--to", "denied").err
    cluster.set_topic_error("denied", None)
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    assert values(cluster, "denied") == ["a"]


def test_rights_that_are_taken_away_during_a_replay_keep_back_the_letters_of_that_topic_only(
    cluster: MockCluster, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replaying, "SafeProducer", functools.partial(SafeProducer, delivery_timeout=3.0))
    cluster.create_topic("denied", partitions=1)
    origin = [("safekafka.dlq.topic", "denied"), ("safekafka.dlq.partition", "0"), ("safekafka.dlq.offset", "7")]
    for number in range(4):
        raw(cluster, b"a%d" % number, origin, partition=1)
        write(f"b{number}")

    ask = LetterLog.partitions_of

    def asked_before(log: LetterLog, topic: str) -> int | str:
        told = ask(log, topic)
        cluster.set_topic_error("denied", KafkaError.TOPIC_AUTHORIZATION_FAILED)
        return told

    monkeypatch.setattr(LetterLog, "partitions_of", asked_before)
    settings = {"bootstrap.servers": cluster.bootstrap_servers}
    outcome = replaying.replay(settings, DEAD, Selection())
    assert outcome.failed is None
    why = "comes from 'denied', and it refuses records (TOPIC_AUTHORIZATION_FAILED); --to sends it somewhere else"
    assert outcome.held_back == {why: 4}
    assert values(cluster) == ["b0", "b1", "b2", "b3"]
    cluster.set_topic_error("denied", None)
    monkeypatch.setattr(LetterLog, "partitions_of", ask)
    assert replaying.replay(settings, DEAD, Selection()).done == 4
    assert values(cluster, "denied") == ["a0", "a1", "a2", "a3"]


def test_letters_of_spring_are_chosen_by_the_cause_that_its_own_error_wraps(cluster: MockCluster) -> None:
    """As its DeadLetterPublishingRecoverer writes them: one class and one text for all."""
    for number, cause in enumerate(("java.lang.IllegalStateException", "java.io.IOException")):
        raw(
            cluster,
            cause.encode(),
            [
                ("kafka_dlt-exception-fqcn", "org.springframework.kafka.listener.ListenerExecutionFailedException"),
                ("kafka_dlt-exception-cause-fqcn", cause),
                ("kafka_dlt-exception-message", "Listener failed"),
                ("kafka_dlt-original-topic", TOPIC),
                ("kafka_dlt-original-partition", b"\0\0\0\2"),
                ("kafka_dlt-original-offset", number.to_bytes(8, "big")),
                ("kafka_dlt-original-timestamp", b"\0" * 8),
                ("kafka_dlt-original-timestamp-type", "CreateTime"),
                ("kafka_dlt-original-consumer-group", GROUP),
            ],
        )
    assert "ListenerExecutionFailedException (java.io.IOException): Lis" in Ran(cluster, "list").out
    assert Ran(cluster, "replay", "--error", "IOException").out == "1 letter replayed, 1 other stays open.\n"
    (back,) = messages(cluster)
    assert (back.value(), back.partition()) == (b"java.io.IOException", 2)
    assert all(name.startswith(MARK) for name, _ in back.headers() or [])
    assert is_for(back, GROUP)
    assert not is_for(back, "shipping")


def test_rate_bounds_the_records_of_a_second(cluster: MockCluster, write: Write) -> None:
    write(*(str(number) for number in range(30)))
    began = time.monotonic()
    assert Ran(cluster, "replay", "--rate", 10).out == "30 letters replayed.\n"
    assert time.monotonic() - began > 2.5
    times = [message.timestamp()[1] for message in messages(cluster)]
    assert times[-1] - times[0] > 2_000


def test_progress_groups_are_independent_and_kept_as_committed_offsets(cluster: MockCluster, write: Write) -> None:
    write("a", "b")
    assert Ran(cluster, "replay").out == "2 letters replayed.\n"
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"safekafka-replay-{DEAD}"})
    (answer,) = client.committed([TopicPartition(DEAD, 1)], timeout=10)
    client.close()
    assert (answer.offset, answer.metadata) == (2, "safekafka-replay-2::")  # mock brokers tell no id of the topic
    assert Ran(cluster, "replay", "--progress-group", "mine").out == "2 letters replayed.\n"
    assert values(cluster) == ["a", "b", "a", "b"]


def test_progress_of_a_topic_that_was_made_anew_skips_none_of_its_letters(cluster: MockCluster, write: Write) -> None:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"safekafka-replay-{DEAD}"})
    client.commit(offsets=[TopicPartition(DEAD, 1, 500)], asynchronous=False)
    client.close()
    write("a", "b")
    assert Ran(cluster, "replay").out == "2 letters replayed.\n"


@pytest.fixture
def ids(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What is told of the dead letter topic's id at each question, the last one for ever. Mock brokers tell none."""
    told: list[str | None] = ["first"]

    def ask(*_: Any) -> dict[str, str]:
        found = told.pop(0) if len(told) > 1 else told[0]
        return {} if found is None else {DEAD: found}

    monkeypatch.setattr(LetterLog, "_can_tell_ids", lambda _: True)
    monkeypatch.setattr(TopicIds, "ask", ask)
    return told


def test_progress_is_of_the_topic_with_that_id_also_where_one_made_anew_has_grown_past_it(
    cluster: MockCluster, write: Write, ids: list[str | None]
) -> None:
    write("a", "b", error=ValueError("no"))
    write("c", error=KeyError("no"))
    write("d", "e", error=ValueError("no"))
    assert Ran(cluster, "replay", "--error", "KeyError").out == "1 letter replayed, 4 others stay open.\n"
    ids[:] = ["second"]
    assert len(Ran(cluster, "list", "--json").lines) == 5
    ids[:] = ["first"]
    assert len(Ran(cluster, "list", "--json").lines) == 4, "what only looks changes nothing"
    ids[:] = ["second"]
    for done in (5, 0):
        assert Ran(cluster, "replay", "--json").lines[0]["done"] == done
    assert values(cluster) == ["c", "a", "b", "c", "d", "e"]
    # Told no more for a while, as by brokers that go back to a version without ids: believed, and not forgotten.
    ids[:] = ["A" * 22]
    write("f")
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    ids[:] = ["second"]
    assert Ran(cluster, "replay").out == "0 letters replayed.\n"
    ids[:] = ["third"]
    assert Ran(cluster, "replay").out == "6 letters replayed.\n"


def test_progress_that_others_have_set_is_believed_and_is_of_this_topic_from_then_on(
    cluster: MockCluster, write: Write, ids: list[str | None]
) -> None:
    write("a", "b", "c")
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": f"safekafka-replay-{DEAD}"})
    client.commit(offsets=[TopicPartition(DEAD, 1, 2, "node-7")], asynchronous=False)
    client.close()
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    ids[:] = ["second"]
    assert Ran(cluster, "replay").out == "3 letters replayed.\n"


def test_an_id_that_is_not_told_in_time_is_asked_for_again_and_never_passed_over(
    cluster: MockCluster, write: Write, ids: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a")
    ids[:] = [None, None, "first"]
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    monkeypatch.setattr("safekafka.deadletter.log._PATIENCE", 0.5)
    ids[:] = [None]
    ran = Ran(cluster, "replay")
    assert ran.status == 1
    assert "asked for its id: no answer to describe_topics (_TIMED_OUT)" in ran.err


# ---- discard


def test_discard_counts_letters_as_done_and_deletes_nothing(cluster: MockCluster, write: Write) -> None:
    write("a", error=ValueError("no"))
    write("b", error=KeyError("no"))
    write("c", error=ValueError("no"))
    assert Ran(cluster, "discard").status == 2
    assert Ran(cluster, "discard", "--all", "--error", "KeyError").status == 2
    for answer in ("n\n", ""):  # "": a script, where nobody is to answer
        refused = Ran(cluster, "discard", "--error", "ValueError", answer=answer)
        assert refused.status == 1
        assert "Be done with 2 letters?" in refused.err
        assert "Nothing was changed. Without a question: --yes." in refused.err
    assert Ran(cluster, "discard", "--error", "ValueError", "--yes").out == "2 letters discarded, 1 other stays open.\n"
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    assert values(cluster) == ["b"]
    assert values(cluster, DEAD) == ["a", "b", "c"]
    write("d")
    assert Ran(cluster, "discard", "--all", "--yes", "--json").lines[0]["done"] == 1
    assert Ran(cluster, "replay").out == "0 letters replayed.\n"


def test_what_comes_in_while_discard_asks_stays_open(
    cluster: MockCluster, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a", "b")

    def answers(question: str, **_: Any) -> bool:
        assert question == "Be done with 2 letters?"
        write("late")
        raw(cluster, b"late elsewhere", [], partition=2)
        return True

    monkeypatch.setattr("typer.confirm", answers)
    assert Ran(cluster, "discard", "--all").out == "2 letters discarded.\n"
    assert len(Ran(cluster, "list", "--json").lines) == 2
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    assert values(cluster) == ["late"]


# ---- looking


def test_show_reads_no_letter_but_its_own(cluster: MockCluster, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(*(str(number) for number in range(20)))
    read_ones: list[Message] = []

    def counting(message: Message) -> Letter:
        read_ones.append(message)
        return letter_of(message)

    monkeypatch.setattr("safekafka.deadletter.replay.letter_of", counting)
    assert Ran(cluster, "show", 1, 15, "--json").lines[0]["value"] == {"text": "15"}
    assert len(read_ones) == 1


def test_list_and_show_tell_of_letters_and_touch_no_progress(cluster: MockCluster, write: Write) -> None:
    write("secret value", error=ValueError("no such\ncustomer \x1b[2J"))
    listed = Ran(cluster, "list")
    assert listed.status == 0
    head, row = listed.out.splitlines()
    assert head.split() == ["PARTITION", "OFFSET", "FAILED", "FROM", "GROUP", "PASSES", "ATTEMPTS", "STATE", "ERROR"]
    assert row.split()[:2] == ["1", "0"]
    assert row.split()[3:] == [
        *("orders[1]@100", "billing", "1", "3", "open"),
        *("builtins.ValueError:", "no", "such", "customer", "\\x1b[2J"),
    ]
    assert "secret" not in listed.out + listed.err
    shown = Ran(cluster, "show", 1, 0)
    assert shown.status == 0
    for line in (
        "letter:        orders.dlq[1]@0 (open)",
        "from:          orders[1]@100",
        "passes:        1",
        "error class:   builtins.ValueError",
        "header:        trace = (1 bytes, hex) ff",
        "header:        trace = none",
        "key:           (3 bytes, text) key",
        "value:         (12 bytes, text) secret value",
    ):
        assert line in shown.out
    assert "\x1b" not in shown.out
    as_json = Ran(cluster, "show", 1, 0, "--json").lines[0]
    assert as_json["value"] == {"text": "secret value"}
    assert as_json["headers"] == [["trace", {"base64": "/w=="}], ["trace", None]]
    assert as_json["about"]["traceback"].startswith("ValueError: no such")
    missing = Ran(cluster, "show", 1, 7)
    assert (missing.status, missing.out) == (1, "")
    assert "orders.dlq[1]@7 is not there" in missing.err
    assert Ran(cluster, "replay").out == "1 letter replayed.\n"
    assert Ran(cluster, "list").out == ""
    assert "done" in Ran(cluster, "list", "--all").out


def test_what_the_command_line_says_wrong_is_a_status_of_2(cluster: MockCluster) -> None:
    assert Ran(cluster, "list", "--offsets", "1-2").status == 2
    assert Ran(cluster, "list", "--offsets", "x", "--partition", 0).status == 2
    assert Ran(cluster, "list", "--since", "yesterday").status == 2
    assert CliRunner().invoke(app, ["dlq", "list", DEAD]).exit_code == 2


def test_a_topic_that_is_not_there_is_told_in_one_line(kafka_mock: MockCluster) -> None:
    ran = Ran(kafka_mock, "list")
    assert ran.status == 1
    assert len(ran.err.splitlines()) == 1
    assert "'orders.dlq' can't be used" in ran.err


def test_brokers_that_do_not_answer_are_told_with_their_address(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safekafka.deadletter.log._PATIENCE", 1.0)
    monkeypatch.setattr("safekafka.deadletter.log._ASK_SECONDS", 0.5)
    cluster.set_broker_down()
    ran = Ran(cluster, "replay")
    assert ran.status == 1
    assert f"check bootstrap.servers='{cluster.bootstrap_servers}'" in ran.err
    assert "Traceback" not in ran.err


# ---- as a user runs it


def test_replay_shows_a_bar_on_a_terminal_and_ends_in_order_at_ctrl_c(
    cluster: MockCluster, write: Write, tmp_path: Path
) -> None:
    write(*(str(number) for number in range(40)))
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"bootstrap.servers": cluster.bootstrap_servers, "client.id": "ops"}))
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [*SAFEKAFKA, "dlq", "replay", DEAD, "--config", str(config), "--rate", "5"],
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    shown, interrupted = b"", False
    too_long = threading.Timer(60, running.kill)
    too_long.start()
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
            if not interrupted and any(int(seen) >= 5 for seen in re.findall(rb"(\d+)/40", shown)):
                interrupted = True
                running.send_signal(signal.SIGINT)
    except OSError:
        pass  # the other end is closed
    finally:
        os.close(ours)
        running.communicate(timeout=60)
        too_long.cancel()
    assert running.returncode == 130, shown.decode()
    assert "Ended early" in shown.decode()
    sent = len(values(cluster))
    assert 5 <= sent < 40
    ran = Ran(cluster, "replay")
    assert ran.status == 0
    found = values(cluster)
    assert list(dict.fromkeys(found)) == [str(number) for number in range(40)]
    assert len(found) - 40 <= 1  # what was on its way at the signal
