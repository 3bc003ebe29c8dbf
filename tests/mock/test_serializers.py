"""Serializers: confluent-kafka's own and plain callables. What they refuse is told by `send()`, and nothing is queued.

The registry is confluent-kafka's in-memory one (`mock://`). What arrived is decoded with the matching deserializer.
"""

from __future__ import annotations

import json
import socket
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from confluent_kafka import Message
from confluent_kafka.schema_registry import (
    SchemaRegistryClient,
    header_schema_id_serializer,
    topic_subject_name_strategy,
)
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.schema_registry.json_schema import JSONDeserializer, JSONSerializer
from confluent_kafka.schema_registry.protobuf import ProtobufDeserializer, ProtobufSerializer
from confluent_kafka.serialization import (
    DoubleDeserializer,
    DoubleSerializer,
    IntegerDeserializer,
    IntegerSerializer,
    MessageField,
    SerializationContext,
    SerializationError,
    Serializer,
    StringDeserializer,
    StringSerializer,
)
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

from safekafka import InvalidRecordError, Record, SafeProducer
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from tests.mock.conftest import TOPIC

AVRO = json.dumps(
    {
        "type": "record",
        "name": "Order",
        "fields": [{"name": "number", "type": "int"}, {"name": "customer", "type": ["null", "string"]}],
    }
)
JSON = json.dumps(
    {
        "title": "Order",
        "type": "object",
        "properties": {"number": {"type": "integer"}, "customer": {"type": "string"}},
        "required": ["number"],
    }
)
ORDER = {"number": 7, "customer": "Zoë"}


def _order_class() -> Any:
    """`message Order { int32 number = 1; string customer = 2; }`, without protoc."""
    file = FileDescriptorProto(name="order.proto", package="shop", syntax="proto3")
    message = file.message_type.add(name="Order")
    for number, (name, kind) in enumerate(
        [("number", FieldDescriptorProto.TYPE_INT32), ("customer", FieldDescriptorProto.TYPE_STRING)], start=1
    ):
        message.field.add(name=name, number=number, type=kind, label=FieldDescriptorProto.LABEL_OPTIONAL)
    pool = DescriptorPool()
    pool.Add(file)
    return GetMessageClass(pool.FindMessageTypeByName("shop.Order"))


Order = _order_class()


@pytest.fixture
def registry() -> SchemaRegistryClient:
    return SchemaRegistryClient.new_client({"url": f"mock://{uuid.uuid4()}"})


@pytest.fixture
def absent_registry() -> Iterator[SchemaRegistryClient]:
    with socket.socket() as taken:  # bound and not listening: nobody can answer at this port
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        yield SchemaRegistryClient.new_client({"url": f"http://127.0.0.1:{port}", "max.retries": 0, "timeout": 5})


def the_message(cluster: MockCluster) -> Message:
    (message,) = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    return message


def assert_nothing_was_queued(cluster: MockCluster, producer: SafeProducer) -> None:
    assert len(producer) == 0
    assert producer.flush(10) == 0
    assert read_log(cluster.bootstrap_servers, TOPIC, timeout=30) == []


KEY = SerializationContext(TOPIC, MessageField.KEY)
VALUE = SerializationContext(TOPIC, MessageField.VALUE)


# ---- what arrives


@pytest.mark.parametrize(
    ("serializer", "deserializer", "values"),
    [
        (StringSerializer("utf_8"), StringDeserializer("utf_8"), ["", "plain", "Zoë ☃", None]),
        (StringSerializer("utf_16"), StringDeserializer("utf_16"), ["Zoë ☃"]),
        (IntegerSerializer(), IntegerDeserializer(), [0, -1, 2**31 - 1, None]),
        (DoubleSerializer(), DoubleDeserializer(), [0.1, -1e300, None]),
    ],
    ids=["string", "string-utf16", "integer", "double"],
)
def test_simple_serializers_serve_keys_and_values(
    cluster: MockCluster, make: Callable[..., SafeProducer], serializer: Any, deserializer: Any, values: list[Any]
) -> None:
    producer = make(key_serializer=serializer, value_serializer=serializer)
    for value in values:
        producer.send(TOPIC, value, key=value, partition=0).result(10)
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    assert [deserializer(message.value(), VALUE) for message in messages] == values
    assert [deserializer(message.key(), KEY) for message in messages] == values


def test_avro_arrives_with_its_schemas_id(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    producer = make(key_serializer=StringSerializer(), value_serializer=AvroSerializer(registry, AVRO))
    producer.send(TOPIC, ORDER, key="k").result(10)
    message = the_message(cluster)
    assert AvroDeserializer(registry)(message.value(), VALUE) == ORDER
    assert message.key() == b"k"
    subject = topic_subject_name_strategy(VALUE, None)
    schema_id = registry.get_latest_version(subject).schema_id
    assert (message.value() or b"")[:5] == b"\0" + int(schema_id or 0).to_bytes(4, "big")


def test_avro_serves_keys_under_a_subject_of_their_own(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    serializer = AvroSerializer(registry, AVRO)
    make(key_serializer=serializer, value_serializer=serializer).send(TOPIC, ORDER, key=ORDER).result(10)
    assert AvroDeserializer(registry)(the_message(cluster).key(), KEY) == ORDER
    assert sorted(registry.get_subjects()) == [f"{TOPIC}-key", f"{TOPIC}-value"]


def test_json_arrives_with_its_schemas_id(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    make(value_serializer=JSONSerializer(JSON, registry)).send(TOPIC, ORDER).result(10)
    decode = JSONDeserializer(JSON, schema_registry_client=registry)
    assert decode(the_message(cluster).value(), VALUE) == ORDER


def test_protobuf_arrives_with_its_schemas_id(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    conf = {"use.deprecated.format": False}
    make(value_serializer=ProtobufSerializer(Order, registry, conf)).send(TOPIC, Order(**ORDER)).result(10)
    decode = ProtobufDeserializer(Order, conf, schema_registry_client=registry)
    assert decode(the_message(cluster).value(), VALUE) == Order(**ORDER)


@pytest.mark.parametrize("kind", ["avro", "json", "protobuf"])
def test_a_tombstone_stays_one(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient, kind: str
) -> None:
    serializers: dict[str, Callable[[], Any]] = {
        "avro": lambda: AvroSerializer(registry, AVRO),
        "json": lambda: JSONSerializer(JSON, registry),
        "protobuf": lambda: ProtobufSerializer(Order, registry, {"use.deprecated.format": False}),
    }
    make(value_serializer=serializers[kind]()).send(TOPIC, None, key=b"k").result(10)
    assert the_message(cluster).value() is None


def test_a_plain_callable_gets_the_value_alone(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make(key_serializer=str, value_serializer=lambda value: json.dumps(value).encode())
    producer.send(TOPIC, ORDER, key=12).result(10)
    message = the_message(cluster)
    assert (message.key(), json.loads(message.value() or b"")) == (b"12", ORDER)


def test_every_way_of_sending_serializes(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make(key_serializer=IntegerSerializer(), value_serializer=IntegerSerializer())
    producer.send(TOPIC, 0, key=0, partition=0)
    producer.send_many([Record(TOPIC, 1, 1, partition=0)])  # type: ignore[arg-type]
    producer.produce(TOPIC, 2, 2, 0)
    assert producer.flush(30) == 0
    messages = read_log(cluster.bootstrap_servers, TOPIC, timeout=30)
    assert [IntegerDeserializer()(message.value()) for message in messages] == [0, 1, 2]
    assert [IntegerDeserializer()(message.key()) for message in messages] == [0, 1, 2]


# ---- the context


class Witness(Serializer):
    """Keeps the contexts it was called with."""

    def __init__(self) -> None:
        self.contexts: list[SerializationContext] = []

    def __call__(self, obj: Any, ctx: SerializationContext | None = None) -> bytes | None:
        assert ctx is not None
        self.contexts.append(ctx)
        return obj if obj is None else str(obj).encode()


@pytest.mark.parametrize("headers", [{"trace": "1"}, [("trace", "1"), ("trace", b"2")]])
def test_the_context_names_topic_field_and_headers(make: Callable[..., SafeProducer], headers: Any) -> None:
    key_witness, value_witness = Witness(), Witness()
    producer = make(key_serializer=key_witness, value_serializer=value_witness)
    producer.send(TOPIC, 1, key=2, headers=headers).result(10)
    ((key_context,), (value_context,)) = key_witness.contexts, value_witness.contexts
    assert (key_context.topic, key_context.field) == (TOPIC, MessageField.KEY)
    assert (value_context.topic, value_context.field) == (TOPIC, MessageField.VALUE)
    assert key_context.headers == headers
    assert value_context.headers == headers


@pytest.mark.parametrize("headers", [None, {}, [], {"trace": "1"}, [("trace", "1")]])
def test_a_header_that_a_serializer_adds_arrives_and_the_callers_headers_stay_as_they_are(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient, headers: Any
) -> None:
    """The schema's id can travel in a header. A list used for many records must not grow with each of them."""
    conf = {"schema.id.serializer": header_schema_id_serializer}
    producer = make(value_serializer=AvroSerializer(registry, AVRO, conf=conf))
    before = None if headers is None else type(headers)(headers)
    for _ in range(2):
        producer.send(TOPIC, ORDER, headers=headers, partition=0).result(10)
    assert headers == before
    for message in read_log(cluster.bootstrap_servers, TOPIC, timeout=30):
        arrived = message.headers() or []
        assert [name for name, _ in arrived] == ["trace"] * bool(before) + ["__value_schema_id"]
        decode = AvroDeserializer(registry, AVRO)
        context = SerializationContext(TOPIC, MessageField.VALUE, arrived)  # type: ignore[arg-type]
        assert decode(message.value(), context) == ORDER


# ---- what is refused


@pytest.mark.parametrize("field", ["key", "value"])
@pytest.mark.parametrize("value", [2**31, "seven", 1.5])
def test_a_serialization_error_is_told_by_send_and_nothing_is_queued(
    cluster: MockCluster, make: Callable[..., SafeProducer], field: str, value: Any
) -> None:
    producer = make(**{f"{field}_serializer": IntegerSerializer()})
    with pytest.raises(InvalidRecordError, match=f"{field} serializer refused it") as caught:
        producer.send(TOPIC, **{field: value})
    assert isinstance(caught.value.__cause__, SerializationError)
    assert_nothing_was_queued(cluster, producer)


def test_a_value_that_breaks_the_json_schema_is_told_by_send(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    producer = make(value_serializer=JSONSerializer(JSON, registry))
    with pytest.raises(InvalidRecordError, match="not of type 'integer'"):
        producer.send(TOPIC, {"number": "seven"})
    with pytest.raises(InvalidRecordError, match="'number' is a required property"):
        producer.send(TOPIC, {})
    assert_nothing_was_queued(cluster, producer)


@pytest.mark.parametrize("value", [{"number": "seven", "customer": None}, {"customer": "Zoë"}, 7])
def test_what_does_not_fit_the_avro_schema_raises_what_the_serializer_raises(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient, value: Any
) -> None:
    producer = make(value_serializer=AvroSerializer(registry, AVRO))
    with pytest.raises((TypeError, ValueError, AttributeError)):
        producer.send(TOPIC, value)
    assert_nothing_was_queued(cluster, producer)


def test_a_message_of_another_protobuf_type_raises_what_the_serializer_raises(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    producer = make(value_serializer=ProtobufSerializer(Order, registry, {"use.deprecated.format": False}))
    with pytest.raises(ValueError, match="message must be of type"):
        producer.send(TOPIC, Timestamp(seconds=3))
    assert_nothing_was_queued(cluster, producer)


def test_a_schema_that_the_registry_does_not_know_is_told_by_send(
    cluster: MockCluster, make: Callable[..., SafeProducer], registry: SchemaRegistryClient
) -> None:
    conf = {"auto.register.schemas": False}
    producer = make(value_serializer=AvroSerializer(registry, AVRO, conf=conf))
    with pytest.raises(Exception, match=r"[Nn]ot [Ff]ound"):
        producer.send(TOPIC, ORDER)
    assert_nothing_was_queued(cluster, producer)


@pytest.mark.parametrize("kind", ["avro", "json", "protobuf"])
def test_an_unreachable_registry_is_told_by_send_and_the_next_record_can_be_sent(
    cluster: MockCluster, make: Callable[..., SafeProducer], absent_registry: SchemaRegistryClient, kind: str
) -> None:
    serializers: dict[str, Callable[[], Any]] = {
        "avro": lambda: AvroSerializer(absent_registry, AVRO),
        "json": lambda: JSONSerializer(JSON, absent_registry),
        "protobuf": lambda: ProtobufSerializer(Order, absent_registry, {"use.deprecated.format": False}),
    }
    producer = make(value_serializer=serializers[kind]())
    with pytest.raises(Exception, match="refused"):  # the registry client's own error, whatever its HTTP library
        producer.send(TOPIC, Order(**ORDER) if kind == "protobuf" else ORDER)
    assert_nothing_was_queued(cluster, producer)
    producer.send(TOPIC, None, key=b"tombstone").result(10)
    assert the_message(cluster).key() == b"tombstone"


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, OSError])
@pytest.mark.parametrize("field", ["key", "value"])
def test_any_other_error_of_a_callable_reaches_the_caller_unchanged(
    cluster: MockCluster, make: Callable[..., SafeProducer], error: type[Exception], field: str
) -> None:
    raised = error("mine")

    def fail(_: Any) -> bytes:
        raise raised

    producer = make(**{f"{field}_serializer": fail})
    with pytest.raises(error) as caught:
        producer.send(TOPIC, b"v", key=b"k")
    assert caught.value is raised
    assert_nothing_was_queued(cluster, producer)


def test_what_a_callable_returns_is_checked(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make(value_serializer=lambda value: value)
    with pytest.raises(InvalidRecordError, match="value must be bytes, str or None, not dict"):
        producer.send(TOPIC, ORDER)
    assert_nothing_was_queued(cluster, producer)


def test_the_size_is_that_of_what_was_serialized(cluster: MockCluster, make: Callable[..., SafeProducer]) -> None:
    producer = make({"message.max.bytes": 2_000}, value_serializer=lambda count: b"v" * count)
    with pytest.raises(InvalidRecordError, match=r"2001 bytes .*message\.max\.bytes=2000"):
        producer.send(TOPIC, 1_965)
    assert_nothing_was_queued(cluster, producer)
    producer.send(TOPIC, 1_964).result(10)


def test_one_unserializable_record_keeps_all_of_send_many_back(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make(value_serializer=IntegerSerializer())
    records: list[Any] = [Record(TOPIC, 1), Record(TOPIC, "two"), Record(TOPIC, 3), Record(TOPIC, 2**40)]  # type: ignore[arg-type]
    with pytest.raises(InvalidRecordError, match=r"record 1 .*record 3 "):
        producer.send_many(records)
    assert_nothing_was_queued(cluster, producer)


def test_B_P05_a_refused_record_keeps_no_place_in_the_buffer(
    cluster: MockCluster, make: Callable[..., SafeProducer]
) -> None:
    producer = make({"queue.buffering.max.messages": 2}, max_block=5, value_serializer=IntegerSerializer())
    for _ in range(20):
        with pytest.raises(InvalidRecordError):
            producer.send(TOPIC, "seven")
    receipts = [producer.send(TOPIC, number, partition=0) for number in range(2)]
    assert [receipt.result(10).offset for receipt in receipts] == [0, 1]


@pytest.mark.parametrize("way", ["send", "produce"])
def test_a_serialization_error_calls_no_callback(
    cluster: MockCluster, make: Callable[..., SafeProducer], way: str
) -> None:
    told: list[Any] = []
    producer = make(value_serializer=IntegerSerializer(), on_undelivered=lambda *what: told.append(what))
    with pytest.raises(InvalidRecordError):
        if way == "send":
            producer.send(TOPIC, "seven")
        else:
            producer.produce(TOPIC, "seven", on_delivery=lambda *what: told.append(what))
    assert_nothing_was_queued(cluster, producer)
    assert told == []
