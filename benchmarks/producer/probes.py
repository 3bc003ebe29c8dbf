"""Latency: one record at a time, sent, then waited for. At most 1,000 a second, fewer when the answer takes longer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from benchmarks.common.setup import Setup
from confluent_kafka import KafkaException, Producer

from safekafka import SafeProducer

VALUE = bytes(100)
_INTERVAL = 0.001
_WARM_UP = 20

Probe = Callable[[Setup, int], list[float]]


def raw_with_callback(setup: Setup, count: int) -> list[float]:
    """`produce()`, then `poll()` until the callback has come."""
    producer, arrived = Producer(setup.librdkafka()), False

    def on_delivery(error: object, message: object) -> None:
        nonlocal arrived
        if error is not None:
            raise KafkaException(error)
        arrived = True

    def send() -> None:
        nonlocal arrived
        arrived = False
        producer.produce(setup.topic, VALUE, on_delivery=on_delivery)
        while not arrived:
            producer.poll(1)

    return _paced(send, count)


def receipt_result(setup: Setup, count: int) -> list[float]:
    """`send().result()` in a thread."""
    producer = SafeProducer(setup.librdkafka())

    def send() -> None:
        producer.send(setup.topic, VALUE).result(10)

    return _paced(send, count)


def awaited_receipt(setup: Setup, count: int) -> list[float]:
    """`await send()` in asyncio."""
    return asyncio.run(_awaited(setup, count))


async def _awaited(setup: Setup, count: int) -> list[float]:
    producer, taken, due = SafeProducer(setup.librdkafka()), [], time.perf_counter()
    for _ in range(_WARM_UP + count):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        await producer.send(setup.topic, VALUE)
        taken.append(time.perf_counter() - start)
        due = start + _INTERVAL
    return taken[_WARM_UP:]


def _paced(send: Callable[[], None], count: int) -> list[float]:
    taken, due = [], time.perf_counter()
    for _ in range(_WARM_UP + count):
        time.sleep(max(0.0, due - time.perf_counter()))
        start = time.perf_counter()
        send()
        taken.append(time.perf_counter() - start)
        due = start + _INTERVAL
    return taken[_WARM_UP:]


# Named after the contestants; the second way of SafeProducer has a name of its own.
PROBES: dict[str, Probe] = {
    "raw-callback": raw_with_callback,
    "safekafka": receipt_result,
    "safekafka-await": awaited_receipt,
}
