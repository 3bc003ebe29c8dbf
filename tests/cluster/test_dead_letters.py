"""C5: a handler that always fails for one key: its records are dead-lettered whole, everything else is handled."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import tenacity
from confluent_kafka import Consumer, Message, Producer, TopicPartition

from safekafka import Retry, SafeConsumer
from safekafka.deadletter.headers import PREFIX
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
