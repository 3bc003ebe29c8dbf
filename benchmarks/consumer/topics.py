"""The topics of a run: made and filled before a contestant starts, and asked afterwards what its group committed."""

from __future__ import annotations

import itertools

from benchmarks.common.clusters import Brokers
from benchmarks.common.processes import WorkerFailedError
from benchmarks.consumer.setup import KEYS, PARTITIONS, VALUE_BYTES
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

# The mock brokers keep about 5 MB of a partition.
_MOST_BYTES = {"mock": 4_000_000, "real": 64_000_000}
_OVERHEAD = 40  # bytes a record, at most
_numbers = itertools.count(1)  # of groups


def most_records(cluster: str) -> int:
    """That a topic can hold, of the usual size."""
    return PARTITIONS * _MOST_BYTES[cluster] // (VALUE_BYTES + _OVERHEAD)


def fill(
    servers: str, topic: str, records: int, *, keys: int = KEYS, size: int = VALUE_BYTES, batch: int = 10_000
) -> None:
    """Keys in turn, each always in the same partition, and all partitions alike. `batch`: records in one, at most; a
    consumer gets as many of a partition before it gets the next one's, and mock brokers answer a fetch with one of
    each."""
    settings = {"linger.ms": 200, "queue.buffering.max.messages": 500_000, "message.max.bytes": 2_000_000}
    settings["batch.num.messages"] = batch
    producer = Producer({"bootstrap.servers": servers, "acks": "all", **settings})
    value = bytes(size)
    names = [b"k%d" % key for key in range(min(keys, records))]
    for number in range(records):
        key = number % keys
        while True:
            try:
                producer.produce(topic, value, names[key], partition=key % PARTITIONS)
                break
            except BufferError:
                producer.poll(0.1)
    if left := producer.flush(120):
        raise WorkerFailedError(f"{left} records could not be written")


class Filled:
    """The topics of a round by what they hold: contestants that handle as many share one, each with its own group."""

    def __init__(self, brokers: Brokers, batch: int = 10_000) -> None:
        self._brokers = brokers
        self._batch = batch
        self._topics: dict[tuple[int, int], str] = {}

    def topic(self, records: int, keys: int = KEYS) -> str:
        if (records, keys) not in self._topics:
            name = self._topics[records, keys] = self._brokers.new_topic(PARTITIONS)
            fill(self._brokers.servers, name, records, keys=keys, batch=self._batch)
        return self._topics[records, keys]


def new_group() -> str:
    return f"group-{next(_numbers)}"


# A broker may learn a moment later than the others that it coordinates a group.
@retry(retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(15), wait=wait_fixed(0.1), reraise=True)
def check_committed(servers: str, topic: str, group: str, records: int) -> None:
    """The brokers' word on what a contestant left behind it."""
    client = Consumer({"bootstrap.servers": servers, "group.id": group})
    try:
        answer = client.committed([TopicPartition(topic, number) for number in range(PARTITIONS)], timeout=20)
    finally:
        client.close()
    if (committed := sum(max(0, partition.offset) for partition in answer)) != records:
        raise WorkerFailedError(f"{committed} records committed, {records} handled")
