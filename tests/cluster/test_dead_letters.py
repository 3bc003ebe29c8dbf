"""C5 on real brokers: what can't be handled is dead-lettered whole, whatever its size, and comes back by a replay."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest
import tenacity
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from safekafka import DeadLetterFailed, Retry, SafeConsumer
from safekafka.deadletter.about import About
from safekafka.deadletter.config import DeadLetter
from safekafka.deadletter.dialects import NATIVE, PREFIX, STREAMS, read, written
from safekafka.deadletter.progress import topic_id_of
from safekafka.deadletter.publisher import DeadLetterPublisher
from safekafka.deadletter.replay import Selection, discard, looked_at, progress_group, replay
from safekafka.testing import KafkaCluster
from safekafka.testing.ledger import read_log


@pytest.fixture
def dead_letters(kafka_cluster: KafkaCluster, topic: str) -> Iterator[str]:
    name = f"{topic}.dlq"
    kafka_cluster.create_topic(name, partitions=2)
    yield name
    kafka_cluster.delete_topic(name)


@pytest.mark.timeout(180)
def test_C5_dead_letters_carry_the_original_and_the_reason_and_everything_else_is_handled(
    kafka_cluster: KafkaCluster, topic: str, dead_letters: str
) -> None:
    servers = kafka_cluster.bootstrap_servers
    producer = Producer({"bootstrap.servers": servers, "acks": "all"})
    for number in range(600):
        # One key in ten is bad; its bytes are no text.
        key, value = (b"\xffbad", b"\x00\xfe" + str(number).encode()) if number % 10 == 0 else (b"good", b"%d" % number)
        producer.produce(
            topic, value, key, headers=[("trace", b"%d" % number), ("trace", None)], timestamp=1_000 + number
        )
    assert producer.flush(60) == 0
    source = {message.value(): message for message in read_log(servers, topic, timeout=60)}
    handled: list[bytes | None] = []

    def handle(message: Message) -> None:
        if message.key() == b"\xffbad":
            raise LookupError("no such customer")
        handled.append(message.value())

    group = f"{topic}-group"
    consumer = SafeConsumer(
        {"bootstrap.servers": servers, "group.id": group},
        [topic],
        retry=Retry(attempts=2, wait=tenacity.wait_none()),
        dead_letter=dead_letters,
        commit_interval=0.1,
    )
    thread = threading.Thread(target=consumer.run, args=(handle,))
    thread.start()
    watcher = Consumer({"bootstrap.servers": servers, "group.id": group})
    partitions = [TopicPartition(topic, n) for n in range(3)]
    ends = {p.partition: watcher.get_watermark_offsets(p, timeout=30)[1] for p in partitions}
    for _ in range(600):
        answer = watcher.committed(partitions, timeout=30)
        if {p.partition: max(0, p.offset) for p in answer} == ends:
            break
        threading.Event().wait(0.1)
    else:
        raise AssertionError(f"not committed to the end: {answer}, {ends}")
    watcher.close()
    consumer.close()
    thread.join(30)
    assert sorted(handled) == sorted(value for value, m in source.items() if m.key() == b"good")  # type: ignore[type-var]
    letters = read_log(servers, dead_letters, timeout=60)
    assert len(letters) == 60
    for letter in letters:
        original = source[letter.value()]
        headers = letter.headers() or []
        ours = dict(headers[2:])
        assert letter.key() == b"\xffbad"
        assert headers[:2] == original.headers()
        assert ours[PREFIX + "topic"] == topic.encode()
        assert ours[PREFIX + "partition"] == b"%d" % (original.partition() or 0)
        assert ours[PREFIX + "offset"] == b"%d" % (original.offset() or 0)
        assert ours[PREFIX + "timestamp"] == b"%d" % original.timestamp()[1]
        assert ours[PREFIX + "error.class"] == b"builtins.LookupError"
        assert ours[PREFIX + "error.message"] == b"no such customer"
        assert ours[PREFIX + "attempts"] == b"2"


_LIMIT = 1_048_588  # the broker's default of max.message.bytes
_BATCH_FRAME = 61 + 40  # around a lone record, about


@pytest.mark.timeout(180)
def test_B_D05_a_letter_near_the_limit_of_its_topic_is_written_with_what_fits(
    kafka_cluster: KafkaCluster, topic: str, dead_letters: str
) -> None:
    servers = kafka_cluster.bootstrap_servers
    publisher = DeadLetterPublisher(DeadLetter(dead_letters), "billing", {"bootstrap.servers": servers})
    text = os.urandom(500).hex()
    left = []
    sizes = {"2 MB that compress": 2_000_000, "room for all": _LIMIT - 10_000, "for the class": _LIMIT - 700, "none": 0}
    for what, size in sizes.items():
        value = what.encode() + (b"x" * size if "compress" in what else os.urandom(max(0, size - len(what))))
        if not size:  # not even for the coordinates
            value = os.urandom(_LIMIT - _BATCH_FRAME)
        message = Message(topic=topic, partition=0, offset=7, key=None, value=value, headers=[("a", b"1")])
        try:
            raise ValueError(text)
        except ValueError as error:
            if not size:
                with pytest.raises(DeadLetterFailed, match=r"Remedy: raise max\.message\.bytes"):
                    publisher.write(message, error, 3)
                continue
            publisher.write(message, error, 3)
        (letter,) = (one for one in read_log(servers, dead_letters, timeout=60) if one.value() == value)
        headers = letter.headers() or []
        told = read(headers)  # type: ignore[arg-type]
        assert told is not None
        assert headers[0] == ("a", b"1")
        assert (told.about.topic, told.about.offset, told.about.group) == (topic, 7, "billing")
        left.append((told.about.traceback is not None, told.about.error_message is not None))
    publisher.close(10)
    assert left == [(True, True), (True, True), (False, False)]
    assert len(read_log(servers, dead_letters, timeout=60)) == 3


@pytest.mark.timeout(180)
def test_a_replay_goes_on_where_it_was_and_tells_of_letters_that_retention_removed(
    kafka_cluster: KafkaCluster, topic: str, dead_letters: str
) -> None:
    servers = kafka_cluster.bootstrap_servers
    config = {"bootstrap.servers": servers}
    publisher = DeadLetterPublisher(DeadLetter(dead_letters, headers="spring"), "billing", config)

    def write(*values: int) -> None:
        for number in values:
            message = Message(topic=topic, partition=0, offset=number, key=b"k", value=b"%d" % number)
            publisher.write(message, KeyError() if number % 2 else ValueError(), 1)

    def back() -> list[int]:
        return [int(message.value() or b"-1") for message in read_log(servers, topic, timeout=60)]

    write(*range(10))
    assert replay(config, dead_letters, Selection(error="KeyError")).done == 5
    assert replay(config, dead_letters, Selection(error="KeyError")).done == 0
    assert back() == [1, 3, 5, 7, 9]
    assert discard(config, dead_letters, Selection(partition=0, first_offset=8)).done == 1
    assert [int(letter.message.value() or b"") for letter, _ in looked_at(config, dead_letters, Selection())] == [
        *(0, 2, 4, 6)
    ]
    admin, beginning = AdminClient(config), TopicPartition(dead_letters, 0, 4)
    admin.delete_records([beginning])[beginning].result(30)  # type: ignore[no-untyped-call]
    outcome = replay(config, dead_letters, Selection())
    assert (outcome.done, outcome.expired, outcome.failed) == (2, 2, None)
    assert back() == [1, 3, 5, 7, 9, 4, 6]
    write(10)
    assert replay(config, dead_letters, Selection()).done == 1
    assert replay(config, dead_letters, Selection()).expired == 0
    publisher.close(10)


@pytest.mark.timeout(180)
def test_a_replay_passes_over_markers_and_aborted_letters_and_waits_for_no_open_transaction(
    kafka_cluster: KafkaCluster, topic: str, dead_letters: str
) -> None:
    """As Kafka Streams writes them (exactly_once_v2)."""
    servers = kafka_cluster.bootstrap_servers
    config = {"bootstrap.servers": servers}
    producer = Producer({**config, "transactional.id": dead_letters})
    producer.init_transactions(30)

    def write(*values: int) -> None:
        producer.begin_transaction()
        for number in values:
            origin = written(About(topic, 0, number, error_class="KeyError" if number % 2 else "ValueError"), STREAMS)
            producer.produce(dead_letters, b"%d" % number, b"k", partition=0, headers=origin)
        assert producer.flush(30) == 0

    def replayed(error: str | None = None) -> list[int]:
        before = len(back())
        began = time.monotonic()
        outcome = replay(config, dead_letters, Selection(error=error))
        assert outcome.failed is None
        assert time.monotonic() - began < 20
        found = back()[before:]
        assert outcome.done == len(found)
        return found

    def back() -> list[int]:
        return [int(message.value() or b"-1") for message in read_log(servers, topic, timeout=60)]

    write(1, 2)
    producer.commit_transaction(30)
    write(3)
    producer.abort_transaction(30)
    write(5, 6)
    producer.commit_transaction(30)
    write(7, 8)
    assert replayed("KeyError") == [1, 5]
    assert replayed() == [2, 6]
    producer.commit_transaction(30)
    assert replayed("KeyError") == [7]
    assert replayed() == [8]
    assert replayed() == []
    watcher = Consumer({**config, "group.id": progress_group(dead_letters)})
    partition = TopicPartition(dead_letters, 0)
    (kept,) = watcher.committed([partition], timeout=30)
    assert kept.offset == watcher.get_watermark_offsets(partition, timeout=30)[1]
    assert (kept.metadata or "").endswith(f":{topic_id_of(kept.metadata or '')}:"), "nothing is done beyond it"
    watcher.close()


@pytest.mark.timeout(180)
def test_a_topic_that_is_made_anew_and_grows_past_the_progress_has_all_its_letters_replayed(
    kafka_cluster: KafkaCluster, topic: str, dead_letters: str
) -> None:
    servers = kafka_cluster.bootstrap_servers
    config = {"bootstrap.servers": servers}

    def write(*numbers: int) -> None:
        producer = Producer(config)
        for number in numbers:
            origin = written(About(topic, 0, number), NATIVE)
            producer.produce(dead_letters, b"%d" % number, b"k", partition=0, headers=origin)
        assert producer.flush(30) == 0

    write(0, 1, 2)
    assert replay(config, dead_letters, Selection()).done == 3
    keeper = Consumer({**config, "group.id": progress_group(dead_letters), "enable.auto.commit": False})
    (kept,) = keeper.committed([TopicPartition(dead_letters, 0)], timeout=30)
    assert topic_id_of(kept.metadata or "")
    kafka_cluster.delete_topic(dead_letters)
    kafka_cluster.create_topic(dead_letters, partitions=2)
    write(3, 4, 5, 6)
    # Brokers forget the offsets of a topic that is deleted, but not what is committed behind that.
    keeper.commit(offsets=[kept], asynchronous=False)
    keeper.close()
    assert replay(config, dead_letters, Selection()).done == 4
    assert replay(config, dead_letters, Selection()).done == 0
    assert [message.value() for message in read_log(servers, topic, timeout=60)] == [b"%d" % n for n in range(7)]


@pytest.mark.timeout(180)
def test_a_record_that_is_refused_stays_open_and_what_was_under_way_with_it_is_not_sent_twice(
    kafka_cluster: KafkaCluster, topic: str, dead_letters: str
) -> None:
    servers = kafka_cluster.bootstrap_servers
    config = {"bootstrap.servers": servers}
    kafka_cluster.create_topic(f"{topic}-small", partitions=1, config={"max.message.bytes": "2000"})
    producer = Producer(config)
    for number, size in enumerate((10, 10, 5_000, 10, 10)):
        origin = written(About(f"{topic}-small", 0, number), NATIVE)
        producer.produce(dead_letters, b"%d" % number + os.urandom(size), b"k", partition=0, headers=origin)
    assert producer.flush(30) == 0
    for done in (4, 0):
        outcome = replay(config, dead_letters, Selection())
        assert outcome.done == done
        assert f"{dead_letters}[0]@2 could not be replayed" in (outcome.failed or "")
    assert [letter.message.offset() for letter, _ in looked_at(config, dead_letters, Selection())] == [2]
    found = [(message.value() or b"")[:1] for message in read_log(servers, f"{topic}-small", timeout=60)]
    assert found == [b"0", b"1", b"3", b"4"]
    kafka_cluster.delete_topic(f"{topic}-small")
