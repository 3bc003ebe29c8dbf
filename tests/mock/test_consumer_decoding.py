"""Decoded keys and values: bytes that can't be decoded are poison, a registry that is down is not."""

from __future__ import annotations

import asyncio
import gzip
import lzma
import pickle
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import tenacity
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.schema_registry import AsyncSchemaRegistryClient, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from confluent_kafka.schema_registry.json_schema import (
    AsyncJSONDeserializer,
    AsyncJSONSerializer,
    JSONDeserializer,
    JSONSerializer,
)
from confluent_kafka.serialization import MessageField, SerializationContext, SerializationError, StringDeserializer
from google.protobuf.wrappers_pb2 import StringValue

from safekafka import HandlerFailed, Retry, SafeConsumer, SafeKafkaError
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log

TOPIC, DEAD, GROUP = "orders", "orders.dlq", "billing"
QUICK = Retry(attempts=2, wait=tenacity.wait_none())
SCHEMA = '{"title": "order", "type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}'


@pytest.fixture
def cluster(kafka_mock: MockCluster, caplog: pytest.LogCaptureFixture) -> MockCluster:
    caplog.set_level("INFO", logger="safekafka")
    for topic in (TOPIC, DEAD):
        kafka_mock.create_topic(topic, partitions=1, replication_factor=3)
    return kafka_mock


def fill(cluster: MockCluster, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": cluster.bootstrap_servers})
    for value in values:
        producer.produce(TOPIC, value, b"key")
    assert producer.flush(30) == 0


def committed(cluster: MockCluster) -> int:
    client = Consumer({"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP})
    try:
        return max(0, client.committed([TopicPartition(TOPIC, 0)], timeout=10)[0].offset)
    finally:
        client.close()


def consumer_of(cluster: MockCluster, **options: Any) -> SafeConsumer:
    options.setdefault("retry", QUICK)
    config = {"bootstrap.servers": cluster.bootstrap_servers, "group.id": GROUP, "session.timeout.ms": 6000}
    return SafeConsumer(config, [TOPIC], **options)


def run(consumer: SafeConsumer, enough: int, is_async: bool = False) -> list[tuple[Any, Any]]:
    seen: list[tuple[Any, Any]] = []

    def handle(message: Message) -> None:
        seen.append((message.key(), message.value()))
        if len(seen) == enough:
            consumer.stop()

    async def handle_async(message: Message) -> None:
        handle(message)

    guard = threading.Timer(60, consumer.stop)
    guard.start()
    try:
        consumer.run(handle_async if is_async else handle)
    finally:
        guard.cancel()
    return seen


def test_C5_the_bytes_are_put_back_for_the_next_attempt_where_a_plain_function_returned_what_failed_later(
    cluster: MockCluster,
) -> None:
    """As a decorator's wrapper does around an `async def`."""
    fill(cluster, [b"7"])
    seen: list[Any] = []

    async def handle(message: Message) -> None:
        seen.append(message.value())
        if len(seen) == 1:
            raise OSError("once")
        consumer.stop()

    consumer = consumer_of(cluster, value_deserializer=lambda value: int((value or b"").decode()))
    guard = threading.Timer(60, consumer.stop)
    guard.start()
    consumer.run(lambda message: handle(message))
    guard.cancel()
    assert seen == [7, 7]
    assert committed(cluster) == 1


@pytest.mark.parametrize("is_async", [False, True])
def test_B_C04_bytes_that_cannot_be_decoded_are_dead_lettered_as_they_were_and_the_next_is_handled(
    cluster: MockCluster, is_async: bool
) -> None:
    fill(cluster, [b"1", b"\xff\xfe", b"3"])
    calls: list[bytes | None] = []

    def decode(value: bytes | None) -> int:
        calls.append(value)
        return int((value or b"").decode())

    consumer = consumer_of(
        cluster, key_deserializer=StringDeserializer(), value_deserializer=decode, dead_letter=DEAD, commit_interval=0.1
    )
    assert run(consumer, 2, is_async) == [("key", 1), ("key", 3)]
    assert calls.count(b"\xff\xfe") == 1, "tried again"
    (letter,) = read_log(cluster.bootstrap_servers, DEAD, timeout=20)
    assert (letter.key(), letter.value()) == (b"key", b"\xff\xfe")
    headers = dict(letter.headers() or [])
    assert headers["safekafka.dlq.error.class"] == b"builtins.UnicodeDecodeError"
    assert committed(cluster) == 3


def test_B_C04_without_dead_letters_they_stop_the_consumer_uncommitted(cluster: MockCluster) -> None:
    fill(cluster, [b"1", b"x"])
    with pytest.raises(HandlerFailed, match=r"orders\[0\]@1"):
        run(consumer_of(cluster, value_deserializer=lambda value: int(value or b"")), 2)
    assert committed(cluster) == 1


def test_a_handler_that_fails_finds_the_decoded_value_again_and_the_dead_letter_has_the_bytes(
    cluster: MockCluster,
) -> None:
    fill(cluster, [b"7"])
    consumer = consumer_of(cluster, value_deserializer=lambda value: int(value or b""), dead_letter=DEAD)
    seen: list[Any] = []

    def fail(message: Message) -> None:
        seen.append(message.value())
        if len(seen) == 2:
            consumer.stop()
        raise ValueError

    consumer.run(fail)
    assert seen == [7, 7]
    (letter,) = read_log(cluster.bootstrap_servers, DEAD, timeout=20)
    assert letter.value() == b"7"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


class Outage:
    """A registry that answers in one of these ways until `end`."""

    def __init__(self, decoder: JSONDeserializer, error: Exception, seconds: float) -> None:
        self.decoder, self.error, self.end = decoder, error, time.monotonic() + seconds
        self.refused = 0

    def __call__(self, value: bytes | None) -> Any:
        if time.monotonic() < self.end:
            self.refused += 1
            raise self.error
        return self.decoder(value, SerializationContext(TOPIC, MessageField.VALUE))


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (SchemaRegistryError(503, 50301, "not now"), 10.0),
        (SchemaRegistryError(404, -1, "Unknown Schema Registry Error: b'default backend - 404'"), 3.0),
        (SchemaRegistryError(404, 404, "HTTP 404 Not Found"), 3.0),
        (SchemaRegistryError(404, None, "no Route matched"), 3.0),  # type: ignore[arg-type]
        (caused(SerializationError("no schema"), SchemaRegistryError(404, -1, "a proxy")), 3.0),
        (ConnectionRefusedError("registry"), 3.0),
        (TimeoutError("registry"), 3.0),
    ],
)
def test_a_registry_that_is_down_dead_letters_nothing(cluster: MockCluster, error: Exception, seconds: float) -> None:
    registry = SchemaRegistryClient.new_client({"url": "mock://orders"})
    to_bytes = JSONSerializer(SCHEMA, registry)
    values = [to_bytes({"id": n}, SerializationContext(TOPIC, MessageField.VALUE)) for n in range(5)]
    fill(cluster, values)
    outage = Outage(JSONDeserializer(SCHEMA, schema_registry_client=registry), error, seconds)
    consumer = consumer_of(cluster, value_deserializer=outage, dead_letter=DEAD)
    assert run(consumer, 5) == [(b"key", {"id": n}) for n in range(5)]
    assert outage.refused >= 2
    assert not read_log(cluster.bootstrap_servers, DEAD, timeout=20)
    assert committed(cluster) == 5


def test_a_schema_that_the_registry_does_not_know_is_poison(cluster: MockCluster) -> None:
    registry = SchemaRegistryClient.new_client({"url": "mock://orders"})
    good = JSONSerializer(SCHEMA, registry)({"id": 1}, SerializationContext(TOPIC, MessageField.VALUE))
    fill(cluster, [b"\x00\x00\x00\x03\xe7{}", good])
    consumer = consumer_of(
        cluster, value_deserializer=JSONDeserializer(SCHEMA, schema_registry_client=registry), dead_letter=DEAD
    )
    assert run(consumer, 1) == [(b"key", {"id": 1})]
    assert len(read_log(cluster.bootstrap_servers, DEAD, timeout=20)) == 1


@pytest.mark.parametrize(
    "error",
    [
        SchemaRegistryError(404, 40401, "Subject not found"),
        SchemaRegistryError(404, 40402, "Version not found"),
        SchemaRegistryError(404, 40403, "Schema not found"),
        SchemaRegistryError(422, 42202, "Invalid version"),
        caused(SerializationError("no schema"), SchemaRegistryError(404, 40403, "Schema not found")),
    ],
)
def test_so_is_one_of_which_the_registry_says_so_with_a_code_of_its_own(cluster: MockCluster, error: Exception) -> None:
    dead_letters_what_a_decoder_refuses(cluster, raising(error))


def raising(error: Exception) -> Callable[[bytes], Any]:
    def decode(_: bytes) -> Any:
        raise error

    return decode


def dead_letters_what_a_decoder_refuses(cluster: MockCluster, refusing: Callable[[bytes], Any]) -> None:
    fill(cluster, [b"bad", b"good"])

    def decode(value: bytes | None) -> Any:
        return "good" if value == b"good" else refusing(value or b"")

    consumer = consumer_of(cluster, value_deserializer=decode, dead_letter=DEAD)
    assert run(consumer, 1) == [(b"key", "good")]
    assert [letter.value() for letter in read_log(cluster.bootstrap_servers, DEAD, timeout=20)] == [b"bad"]
    assert committed(cluster) == 2


@pytest.mark.parametrize(
    "refusing",
    [
        zlib.decompress,
        gzip.decompress,
        lzma.decompress,
        pickle.loads,
        lambda value: struct.unpack("<q", value),
        StringValue.FromString,
    ],
    ids=["zlib", "gzip", "lzma", "pickle", "struct", "protobuf"],
)
def test_what_other_decoders_raise_about_the_bytes_is_poison_too(
    cluster: MockCluster, refusing: Callable[[bytes], Any]
) -> None:
    dead_letters_what_a_decoder_refuses(cluster, refusing)


def test_protobuf_is_not_imported_for_that() -> None:
    program = "import sys; import safekafka.consumer.decoding; print('google.protobuf' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


async def of_async_registry(values: list[dict[str, Any]]) -> tuple[AsyncJSONDeserializer, list[bytes]]:
    registry = AsyncSchemaRegistryClient.new_client({"url": "mock://orders"})
    to_bytes = await AsyncJSONSerializer(SCHEMA, registry)
    written = [await to_bytes(value, SerializationContext(TOPIC, MessageField.VALUE)) for value in values]
    return await AsyncJSONDeserializer(SCHEMA, schema_registry_client=registry), written


def test_an_async_deserializer_goes_with_an_async_handler(cluster: MockCluster) -> None:
    decoder, values = asyncio.run(of_async_registry([{"id": 1}, {"id": 2}]))
    fill(cluster, [values[0], b"\x00\x00\x00\x03\xe7{}", values[1]])
    consumer = consumer_of(cluster, value_deserializer=decoder, dead_letter=DEAD)
    assert run(consumer, 2, is_async=True) == [(b"key", {"id": 1}), (b"key", {"id": 2})]
    assert len(read_log(cluster.bootstrap_servers, DEAD, timeout=20)) == 1


def test_an_async_deserializer_is_refused_with_a_sync_handler_and_blames_no_message(cluster: MockCluster) -> None:
    decoder, values = asyncio.run(of_async_registry([{"id": 1}]))
    fill(cluster, values)
    with pytest.raises(SafeKafkaError, match=r"AsyncJSONDeserializer has to be awaited.*give an async handler"):
        run(consumer_of(cluster, value_deserializer=decoder, dead_letter=DEAD), 1)
    assert committed(cluster) == 0
    assert not read_log(cluster.bootstrap_servers, DEAD, timeout=20)


def test_an_async_deserializer_that_was_not_awaited_itself_is_refused_with_the_remedy(cluster: MockCluster) -> None:
    with pytest.raises(ValueError, match=r"value_deserializer=await AsyncAvroDeserializer"):
        consumer_of(cluster, value_deserializer=AsyncJSONDeserializer(SCHEMA))
