"""The publisher of dead letters on mock brokers: acknowledged or refused, never dropped, and the original whole."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tenacity
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from safekafka import DeadLetter, DeadLetterFailed, Retry, SafeConsumer, SafeProducer
from safekafka.deadletter.config import described
from safekafka.deadletter.dialects import PREFIX, read
from safekafka.deadletter.headers import CUTS
from safekafka.deadletter.publisher import DeadLetterPublisher
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import ApiKey
from tests.processes import program, wait_until

TOPIC, DEAD, GROUP = "orders", "orders.dlq", "billing"


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    kafka_mock.create_topic(TOPIC, partitions=8)
    kafka_mock.create_topic(DEAD, partitions=4)
    return kafka_mock


@pytest.fixture
def make(cluster: MockCluster) -> Iterator[Callable[..., DeadLetterPublisher]]:
    made: list[DeadLetterPublisher] = []

    def make_one(dead_letter: DeadLetter | str = DEAD, **config: Any) -> DeadLetterPublisher:
        settings = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, **config}
        publisher = DeadLetterPublisher(described(dead_letter), GROUP, settings)
        made.append(publisher)
        return publisher

    yield make_one
    for publisher in made:
        publisher.close(1.0)


def message(value: bytes | None = b"v", key: bytes | None = b"k", partition: int = 0, **more: Any) -> Message:
    about = {"topic": TOPIC, "offset": 42, "timestamp": (1, 1_000), **more}
    return Message(value=value, key=key, partition=partition, **about)


def letters(cluster: MockCluster, topic: str = DEAD) -> list[Message]:
    return read_log(cluster.bootstrap_servers, topic, timeout=30)


@pytest.mark.parametrize(("value", "key"), [(b"\xff\x00", b"\xfe"), (b"", b""), (None, None), (None, b"k")])
def test_B_D04_key_value_and_headers_are_written_byte_for_byte_and_the_time_can_be_read(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher], value: bytes | None, key: bytes | None
) -> None:
    original = [("trace", b"\x00\xff"), ("trace", None), ("a", b"")]
    make().write(message(value, key, headers=original), ValueError("no"), 3)
    (letter,) = letters(cluster)
    headers = letter.headers() or []
    assert (letter.value(), letter.key(), headers[:3]) == (value, key, original)
    told = read(headers)  # type: ignore[arg-type]
    assert told is not None
    assert told.about.timestamp == 1_000
    # Not the letter's own time: retention counts from it, and an old message would be deleted at once.
    assert letter.timestamp()[1] > time.time() * 1000 - 60_000


def test_B_D04_a_key_keeps_its_order_in_the_partition_it_had(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    publisher = make()
    for number in range(20):
        publisher.write(message(b"%d" % number, b"any", partition=2), ValueError(), 1)
    found = letters(cluster)
    assert [letter.value() for letter in found] == [b"%d" % number for number in range(20)]
    assert {letter.partition() for letter in found} == {2}


def test_B_D07_a_partition_that_the_dead_letter_topic_does_not_have_is_left_to_the_partitioner(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    publisher = make()
    for _ in range(5):
        publisher.write(message(key=b"any", partition=7), ValueError(), 1)
    found = letters(cluster)
    assert len(found) == 5
    assert len({letter.partition() for letter in found}) == 1


def test_without_a_key_the_partitioner_decides(cluster: MockCluster, make: Callable[..., DeadLetterPublisher]) -> None:
    publisher = make()
    for _ in range(60):
        publisher.write(message(key=None, partition=2), ValueError(), 1)
    assert len({letter.partition() for letter in letters(cluster)}) > 1


def test_many_workers_and_tasks_write_at_once(cluster: MockCluster, make: Callable[..., DeadLetterPublisher]) -> None:
    publisher = make()

    def work(worker: int) -> None:
        for number in range(25):
            publisher.write(message(b"%d %d" % (worker, number), b"%d" % worker), ValueError(), 1)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()

    async def tasks() -> None:
        await asyncio.gather(
            *(publisher.awrite(message(b"task %d" % n, b"%d" % (n % 9)), ValueError(), 1) for n in range(200))
        )

    asyncio.run(tasks())
    for thread in threads:
        thread.join(60)
    expected = [b"%d %d" % (worker, number) for worker in range(8) for number in range(25)]
    expected += [b"task %d" % n for n in range(200)]
    assert sorted(letter.value() or b"" for letter in letters(cluster)) == sorted(expected)


def test_awrite_never_blocks_its_loop_although_no_broker_answers(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    cluster.set_broker_down()
    publisher = make()
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - before)

    async def main() -> None:
        watching = asyncio.create_task(watch())
        writing = asyncio.create_task(publisher.awrite(message(), ValueError(), 1))
        await asyncio.sleep(1.0)
        assert not writing.done()
        cluster.set_broker_up()
        await writing
        watching.cancel()

    asyncio.run(main())
    assert len(letters(cluster)) == 1
    assert longest < 0.5


def test_a_task_that_is_cancelled_leaves_at_once(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    cluster.set_broker_down()
    publisher = make()

    async def main() -> float:
        writing = asyncio.create_task(publisher.awrite(message(key=None), ValueError(), 1))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
        return time.monotonic() - began

    assert asyncio.run(main()) < 1.0


def test_B_D05_headers_are_cut_until_the_topic_takes_the_letter_and_the_original_never(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make()
    for cut in range(len(CUTS)):
        cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2 * cut)  # each is sent twice
        publisher.write(message(b"%d" % cut, headers=[("a", b"1")]), ValueError("no"), 1)
    found = sorted(letters(cluster), key=lambda letter: letter.value() or b"")
    assert [letter.value() for letter in found] == [b"%d" % cut for cut in range(len(CUTS))]
    names = [{name.removeprefix(PREFIX) for name, _ in letter.headers() or []} for letter in found]
    for cut, left in enumerate(names):
        assert left.isdisjoint(field.replace("error_", "error.") for field in CUTS[cut])
        assert {"a", "topic", "partition", "offset", "timestamp", "group", "passes"} <= left
    assert [("error.message" in left, "error.class" in left) for left in names] == [
        (True, True),
        (True, True),
        (False, True),
        (False, False),
    ]
    assert "headers_cut=3" in caplog.text


def test_B_D03_a_letter_too_large_with_the_least_of_headers_is_told_so_at_once(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    cluster.push_request_errors(ApiKey.Produce, *[KafkaError.MSG_SIZE_TOO_LARGE] * 2 * len(CUTS))
    began = time.monotonic()
    with pytest.raises(
        DeadLetterFailed, match=r"orders\[0\]@42 could not be handled .*Remedy: raise max.message.bytes"
    ):
        make().write(message(), ValueError("no"), 1)
    assert time.monotonic() - began < 20
    assert letters(cluster) == []


def test_a_2_mb_message_of_a_compressing_producer_is_no_problem_of_size(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    make().write(message(b"x" * 2_000_000), ValueError("no"), 1)
    (letter,) = letters(cluster)
    assert letter.value() == b"x" * 2_000_000


def test_a_producer_of_the_application_is_used_with_its_own_limit_and_not_closed(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers, "client.id": "theirs"}) as producer:
        publisher = make(DeadLetter(DEAD, producer))
        publisher.write(message(), ValueError("no"), 1)
        # Its message.max.bytes is the client's 1 MB: what fits without our texts is written.
        publisher.write(message(b"x" * 999_400), ValueError("no"), 1)
        with pytest.raises(DeadLetterFailed, match=r"message.max.bytes of its producer"):
            publisher.write(message(b"x" * 1_000_001), ValueError("no"), 1)
        publisher.close(5.0)
        assert producer.send(DEAD, b"alive").result(30).topic == DEAD
    assert sorted(len(letter.value() or b"") for letter in letters(cluster)) == [1, 5, 999_400]


def test_the_default_producer_takes_connection_and_security_settings_and_nothing_else(
    cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: dict[str, Any] = {}

    class Stub(SafeProducer):
        def __init__(self, config: Any, **options: Any) -> None:
            taken.update(config)

    monkeypatch.setattr("safekafka.deadletter.publisher.SafeProducer", Stub)
    consumer = {
        "bootstrap.servers": cluster.bootstrap_servers,
        "group.id": GROUP,
        "client.id": "kitchen",
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "u",
        "sasl.password": "p",
        "ssl.ca.location": "ca.pem",
        "session.timeout.ms": 6000,
        "fetch.min.bytes": 10,
        "partition.assignment.strategy": "range",
        "message.max.bytes": 1000,
        "on_commit": print,
        "stats_cb": print,
        "statistics.interval.ms": 100,
    }
    DeadLetterPublisher(DeadLetter(DEAD), GROUP, consumer)
    assert taken == {
        "bootstrap.servers": cluster.bootstrap_servers,
        "client.id": "kitchen",
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "PLAIN",
        "sasl.username": "u",
        "sasl.password": "p",
        "ssl.ca.location": "ca.pem",
        "message.max.bytes": 1_000_000_000,
        "compression.type": "zstd",
    }


def test_B_D06_what_comes_from_the_dead_letter_topic_is_not_written_into_it_again(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    with pytest.raises(DeadLetterFailed, match=r"orders\.dlq\[0\]@42 .* comes from the dead letter topic itself"):
        make().write(message(topic=DEAD), ValueError("no"), 1)
    assert letters(cluster) == []


def test_B_D02_a_topic_that_is_not_there_yet_gets_the_letter_when_it_is(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make("late.dlq")
    thread = threading.Thread(target=publisher.write, args=(message(), ValueError("no"), 1))
    thread.start()
    wait_until(lambda: "dead_letter_delayed" in caplog.text, 20, "told that it waits")
    assert thread.is_alive()
    cluster.create_topic("late.dlq", partitions=1)
    thread.join(40)
    assert len(letters(cluster, "late.dlq")) == 1
    assert caplog.text.count("dead_letter_delayed") == 1


def test_B_D02_an_answer_that_fails_for_a_while_is_asked_for_again_by_a_producer_of_the_application_too(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher]
) -> None:
    with SafeProducer({"bootstrap.servers": cluster.bootstrap_servers}, delivery_timeout=0.5, max_block=0.5) as theirs:
        publisher = make(DeadLetter(DEAD, theirs))
        publisher.write(message(b"first"), ValueError("no"), 1)
        cluster.set_broker_down()
        thread = threading.Thread(target=publisher.write, args=(message(b"second"), ValueError("no"), 1))
        thread.start()
        thread.join(2.0)
        assert thread.is_alive()
        cluster.set_broker_up()
        thread.join(40)
        assert not thread.is_alive()
    assert {letter.value() for letter in letters(cluster)} == {b"first", b"second"}


@pytest.mark.parametrize("key", [b"k", None])
def test_B_D03_a_letter_that_cannot_be_written_within_its_time_is_told_so(
    make: Callable[..., DeadLetterPublisher], key: bytes | None
) -> None:
    publisher = make(DeadLetter("no.such.topic", write_timeout=1.0))
    began = time.monotonic()
    with pytest.raises(DeadLetterFailed, match=r"no\.such\.topic.*comes again.*Remedy"):
        publisher.write(message(key=key), ValueError("no"), 1)
    assert time.monotonic() - began < 10
    with pytest.raises(DeadLetterFailed, match=r"no\.such\.topic"):
        asyncio.run(publisher.awrite(message(key=key), ValueError("no"), 1))


def test_close_ends_the_wait_for_another_attempt(
    cluster: MockCluster, make: Callable[..., DeadLetterPublisher], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = make("no.such.topic")
    failed: list[Exception] = []

    def write() -> None:
        try:
            publisher.write(message(), ValueError("no"), 1)
        except DeadLetterFailed as error:
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    wait_until(lambda: "dead_letter_delayed" in caplog.text, 20, "told that it waits")
    publisher.close(1.0)
    thread.join(10)
    assert len(failed) == 1


def test_B_D01_a_source_offset_is_committed_when_its_dead_letter_is_acknowledged_and_not_before(
    cluster: MockCluster,
) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    producer.produce(TOPIC, b"bad", b"k", partition=0)
    assert producer.flush(30) == 0
    watcher = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})

    def committed() -> int:
        try:
            return max(0, watcher.committed([TopicPartition(TOPIC, 0)], timeout=5)[0].offset)
        except KafkaException:
            return 0

    failed = threading.Event()

    def fail(_: Message) -> None:
        if not failed.is_set():
            # From here on no acknowledgement comes.
            for broker in (1, 2, 3):
                cluster.push_broker_request_errors(broker, ApiKey.Produce, *[(KafkaError.NO_ERROR, 3.0)] * 20)
            failed.set()
        raise ValueError("always")

    consumer = SafeConsumer(
        {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP},
        [TOPIC],
        retry=Retry(attempts=1, wait=tenacity.wait_none()),
        dead_letter=DeadLetter(DEAD),
        commit_interval=0.05,
    )
    thread = threading.Thread(target=consumer.run, args=(fail,))
    thread.start()
    assert failed.wait(30)
    end = time.monotonic() + 2.0  # of many commit intervals
    while time.monotonic() < end:
        assert committed() == 0
    wait_until(lambda: committed() == 1, 60, "committed")
    assert len(letters(cluster)) == 1
    consumer.close()
    thread.join(30)
    watcher.close()


def test_B_D08_each_message_has_all_its_attempts_and_waits_before_it_is_dead_lettered(
    cluster: MockCluster, caplog: pytest.LogCaptureFixture
) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for number in range(4):
        producer.produce(TOPIC, b"%d" % number, b"k", partition=0)
    assert producer.flush(30) == 0
    attempts: dict[int, list[float]] = {}

    def fail(failing: Message) -> None:
        attempts.setdefault(failing.offset() or 0, []).append(time.monotonic())
        raise ConnectionError("the database is down")

    consumer = SafeConsumer(
        {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP},
        [TOPIC],
        retry=Retry(attempts=3, wait=tenacity.wait_fixed(0.2)),
        dead_letter=DEAD,
    )
    thread = threading.Thread(target=consumer.run, args=(fail,))
    thread.start()
    wait_until(lambda: caplog.text.count("dead_lettered") == 4, 60, "dead-lettered, each told by an event")
    consumer.close()
    thread.join(30)
    assert len(letters(cluster)) == 4
    for times in attempts.values():
        assert len(times) == 3
        assert times[2] - times[0] >= 0.4


def test_a_header_name_that_the_client_cannot_read_ends_no_process_and_its_message_is_dead_lettered(
    tmp_path: Path,
) -> None:
    log = tmp_path / "log"
    with program("unreadable_header", log=log) as process:
        assert process.wait(90) == 0, log.read_text()
    assert "letter [('good', b'1'), ('safekafka.unreadable-name', b'2'), ('good', b'3')]" in log.read_text()
    assert "for us True True" in log.read_text()
