"""The spool's own calls."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle, islice

from benchmarks.common.values import endless
from benchmarks.spool.cases import Case

from safekafka import Record, SafeProducer

_READY = 10  # lists of records
_CHUNK = 1_000
_MOST_AHEAD, _MOST_AHEAD_BYTES = 30_000, 80_000_000  # more than the sender takes ahead
_STILL_SECONDS = 0.1


def sending(case: Case, size: int, producer: SafeProducer, topic: str) -> Callable[[], object]:
    """One thread's call. The receipts are dropped."""
    values, count = endless(size), case.records
    if case.way == "send":
        return lambda: producer.send(topic, next(values))
    if case.way == "send_many":
        return lambda: producer.send_many([Record(topic, value) for value in islice(values, count)])
    ready = cycle([[Record(topic, value) for value in islice(values, count)] for _ in range(_READY)])
    return lambda: producer.send_many(next(ready))


def let_sender_rest(producer: SafeProducer, size: int, topic: str) -> int:
    """Sends as much as the sender hands to the client ahead of any answer, and waits until it has: from then on the
    sender has nothing to do until brokers answer. How many records that took."""
    values, records = endless(size), min(_MOST_AHEAD, _MOST_AHEAD_BYTES // size) // _CHUNK * _CHUNK
    for _ in range(records // _CHUNK):
        producer.send_many([Record(topic, value) for value in islice(values, _CHUNK)])
    with_client, since = -1, time.monotonic()
    while time.monotonic() < since + _STILL_SECONDS:
        stats = producer.stats()
        if stats.pending - stats.held != with_client:
            with_client, since = stats.pending - stats.held, time.monotonic()
        time.sleep(0.005)
    return records
