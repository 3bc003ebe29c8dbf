"""Hands a consumer a message with a header whose name is no UTF-8, as another client may write it: a program of its
own, since reading such a name through the client ends the process."""

from __future__ import annotations

import ctypes
import threading

import tenacity
from confluent_kafka import Message, Producer

from safekafka import Retry, SafeConsumer
from safekafka.deadletter.marks import is_for
from safekafka.message import headers_of
from safekafka.testing import MockCluster
from safekafka.testing.ledger import read_log
from safekafka.testing.mock import _handle, load_librdkafka


class _Header(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("value", ctypes.c_char_p), ("size", ctypes.c_ssize_t))


class _Value(ctypes.Structure):
    _fields_ = (("data", ctypes.c_char_p), ("size", ctypes.c_size_t))


class _Either(ctypes.Union):
    _fields_ = (
        ("text", ctypes.c_char_p),
        ("number", ctypes.c_int),
        ("value", _Value),
        ("header", _Header),
        ("room", ctypes.c_char * 64),
    )


class _Argument(ctypes.Structure):  # rd_kafka_vu_t
    _fields_ = (("kind", ctypes.c_int), ("of", _Either))


def produce(producer: Producer, topic: bytes, value: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """By librdkafka itself: the client takes no such name either."""
    arguments = (_Argument * (3 + len(headers)))()
    arguments[0].kind, arguments[0].of.text = 1, topic  # RD_KAFKA_VTYPE_TOPIC
    arguments[1].kind, arguments[1].of.value = 4, _Value(value, len(value))  # RD_KAFKA_VTYPE_VALUE
    arguments[2].kind, arguments[2].of.number = 7, 2  # RD_KAFKA_VTYPE_MSGFLAGS: RD_KAFKA_MSG_F_COPY
    for position, (name, content) in enumerate(headers, start=3):
        arguments[position].kind = 9  # RD_KAFKA_VTYPE_HEADER
        arguments[position].of.header = _Header(name, content, len(content))
    library = load_librdkafka()
    library.rd_kafka_produceva.restype = ctypes.c_void_p
    library.rd_kafka_produceva.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    assert library.rd_kafka_produceva(_handle(library, producer), arguments, len(arguments)) is None
    assert producer.flush(30) == 0


def main() -> None:
    with MockCluster() as kafka:
        for topic in ("orders", "orders.dlq"):
            kafka.create_topic(topic)
        servers = {"bootstrap.servers": kafka.bootstrap_servers}
        producer = Producer(servers)
        produce(producer, b"orders", b"v", [(b"good", b"1"), (b"\xff\xfe", b"2"), (b"good", b"3")])
        seen = []

        def handle(message: Message) -> None:
            seen.append(message.value())
            raise ValueError("no")

        consumer = SafeConsumer(
            {**servers, "group.id": "billing"},
            ["orders"],
            retry=Retry(attempts=1, wait=tenacity.wait_none()),
            dead_letter="orders.dlq",
            commit_interval=0.05,
        )
        thread = threading.Thread(target=consumer.run, args=(handle,))
        thread.start()
        while not (letters := read_log(kafka.bootstrap_servers, "orders.dlq", timeout=30)):
            pass
        consumer.close()
        thread.join(30)
        print("letter", [pair for pair in letters[0].headers() or [] if not pair[0].startswith("safekafka.dlq.")])

        (message,) = read_log(kafka.bootstrap_servers, "orders", timeout=30)
        print("for us", is_for(message, "billing"), headers_of(message) == headers_of(message) == message.headers())


if __name__ == "__main__":
    main()
