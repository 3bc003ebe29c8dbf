"""What SafeConsumer holds: memory with very many keys, and with a handler that is far slower than the flow."""

from __future__ import annotations

import threading
import time
from typing import Any

from benchmarks.common.processes import check_count
from benchmarks.common.usage import peak_resident_bytes, resident_bytes
from benchmarks.consumer.setup import PARTITIONS, Setup
from confluent_kafka import Producer

from safekafka import SafeConsumer

# Records that the feeder may be in front, even if they are all of one partition that is read slowly: fewer than the
# mock brokers keep of it.
_AHEAD = 40_000
_REST = 60.0  # seconds for what is left when the last was sent
_BOUND = 16 << 20  # bytes: of max_in_flight_bytes, and of what the client fetches ahead
_SLOW = 0.5  # seconds a record: two a second of a flow of hundreds


def many_keys(setup: Setup, records: int) -> dict[str, Any]:
    """`records` keys, one record each, through `order="key"`. They are sent while they are handled."""
    handled, marks = 0, {}
    producer = Producer({"bootstrap.servers": setup.servers, "linger.ms": 20, "queue.buffering.max.messages": 20_000})
    consumer = SafeConsumer(setup.librdkafka(), [setup.topic], order="key", concurrency=8)
    lock, all_handled = threading.Lock(), threading.Event()

    def feed() -> None:
        for number in range(records):
            while number - handled > _AHEAD:
                time.sleep(0.01)
            while True:
                try:
                    producer.produce(setup.topic, None, b"%d" % number, partition=number % PARTITIONS)
                    break
                except BufferError:
                    producer.poll(0.1)
        producer.flush()
        if not all_handled.wait(_REST):
            consumer.stop()

    def handle(message: Any) -> None:
        nonlocal handled
        with lock:
            handled += 1
            if handled in (records // 10, records // 2, records):
                marks[handled] = resident_bytes()
            if handled == records:
                all_handled.set()
                consumer.stop()

    threading.Thread(target=feed, daemon=True).start()
    start = time.perf_counter()
    consumer.run(handle)
    check_count(handled, records)
    early, middle, late = marks.values()
    wall = time.perf_counter() - start
    return {"records": records, "wall": wall, "early": early, "middle": middle, "late": late}


def slow_handler(setup: Setup, seconds: float) -> dict[str, Any]:
    """Large records are there in plenty, and the handler takes its time."""
    handled = 0
    config = {**setup.librdkafka(), "queued.max.messages.kbytes": _BOUND >> 10}
    consumer = SafeConsumer(config, [setup.topic], max_in_flight_bytes=_BOUND, drain_timeout=5.0)

    def handle(message: Any) -> None:
        nonlocal handled
        if handled == 0:
            threading.Timer(seconds, consumer.stop).start()
        handled += 1
        time.sleep(_SLOW)

    before = resident_bytes()
    consumer.run(handle)
    return {"handled": handled, "bound": _BOUND, "before": before, "peak": peak_resident_bytes()}
