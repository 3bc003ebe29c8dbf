"""The brokers of a run: mock ones, made anew for each round, or three real ones for all rounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from benchmarks.common.journal import Row
from benchmarks.common.mock_process import MockProcess
from benchmarks.common.processes import WorkerFailedError
from benchmarks.common.setup import PARTITIONS
from confluent_kafka import Consumer, KafkaException, TopicPartition
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from safekafka.testing import KafkaCluster

_numbers = itertools.count(1)  # of topics


class Brokers(Protocol):
    """`round()` is entered once a round; within it each run has `topic()`: addresses and a topic to send to. Or the
    round has topics of its own, each from `new_topic()`, at `servers`."""

    name: str
    servers: str

    def round(self) -> AbstractContextManager[None]: ...

    def topic(self) -> AbstractContextManager[tuple[str, str]]: ...

    def new_topic(self, partitions: int) -> str: ...


class MockBrokers:
    """Mock brokers keep their logs in memory, hence new ones each round."""

    name = "mock"
    servers = ""

    @contextmanager
    def round(self) -> Iterator[None]:
        with MockProcess() as self._process:
            self.servers = self._process.servers
            yield

    @contextmanager
    def topic(self) -> Iterator[tuple[str, str]]:
        yield self.servers, self._process.topic

    def new_topic(self, partitions: int) -> str:
        name = f"bench-{next(_numbers)}"
        self._process.create_topic(name, partitions)
        return name


class RealBrokers:
    """Three brokers with three replicas of each partition. A topic is deleted after its run, or after the round that it
    was made for: the disk is finite."""

    name = "real"

    def __init__(self, cluster: KafkaCluster) -> None:
        self._cluster = cluster
        self.servers = cluster.bootstrap_servers

    @contextmanager
    def round(self) -> Iterator[None]:
        with ExitStack() as self._topics:
            yield

    @contextmanager
    def outage(self) -> Iterator[None]:
        """All brokers are dead in here, and are back afterwards, at the same addresses."""
        for broker in self._cluster.running():
            self._cluster.kill(broker)
        try:
            yield
        finally:
            self._cluster.heal()

    @contextmanager
    def topic(self) -> Iterator[tuple[str, str]]:
        with ExitStack() as topics:
            yield self.servers, self._create(PARTITIONS, topics)

    def new_topic(self, partitions: int) -> str:
        return self._create(partitions, self._topics)

    def _create(self, partitions: int, until: ExitStack) -> str:
        name = f"bench-{next(_numbers)}"
        self._cluster.create_topic(name, partitions)
        until.callback(self._cluster.delete_topic, name)
        return name


@contextmanager
def open_brokers(name: str) -> Iterator[Brokers]:
    if name == "mock":
        yield MockBrokers()
        return
    # What is deleted frees its space at once, not after a minute.
    with KafkaCluster(settings={"log.segment.delete.delay.ms": "1000"}) as cluster:
        yield RealBrokers(cluster)


def counted(brokers: Brokers, run: Callable[[str, str], Row]) -> Row:
    """Has a worker send to a topic, and the brokers confirm the number of records that it tells."""
    with brokers.topic() as (servers, topic):
        before = appended(servers, topic)
        row = run(servers, topic)
        arrived = appended(servers, topic) - before
    check_arrived(arrived, row["records"] + 1)  # with the one of the warm-up
    return row


def check_arrived(arrived: int, sent: int) -> None:
    if arrived != sent:
        raise WorkerFailedError(f"{arrived} records in the log, {sent} sent")


# A broker may learn a moment later than the others that it leads a new partition.
@retry(retry=retry_if_exception_type(KafkaException), stop=stop_after_delay(15), wait=wait_fixed(0.1), reraise=True)
def appended(servers: str, topic: str) -> int:
    """How many records the brokers ever appended to the topic: they know better than any contestant."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "benchmark"})
    try:
        partitions = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return sum(consumer.get_watermark_offsets(partition, timeout=10)[1] for partition in partitions)
    finally:
        consumer.close()
