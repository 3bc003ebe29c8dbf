"""confluent-kafka's Consumer in the three loops that are in use, two of them also tuned; and in front of threads."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.consumer.peers.base import Handlers, Peer
from benchmarks.consumer.setup import Setup
from confluent_kafka import Consumer, KafkaError, KafkaException, Message

_TUNED = {"fetch.queue.backoff.ms": 50}  # the one setting that SafeConsumer sets for its speed; the client has 1000
_ENOUGH = 2_000  # messages that wait in the queue


class _Raw(Peer):
    auto_commit = False

    def __init__(self, setup: Setup, **tuned: Any) -> None:
        super().__init__(setup)
        own = {"auto.offset.reset": "earliest", "enable.auto.commit": self.auto_commit, **tuned}
        self._consumer = Consumer({**setup.librdkafka(), **own})
        self._consumer.subscribe([setup.topic])


class Consume(_Raw):
    """`consume(500)`, then an asynchronous commit: the fastest loop that commits nothing unhandled."""

    def consume(self, handlers: Handlers) -> None:
        consumer, handle = self._consumer, handlers.handle
        while not handlers.ended:
            messages = consumer.consume(500, 1.0)
            for message in messages:
                checked(message)
                handle(message)
            if messages:
                consumer.commit(asynchronous=True)
        with nothing_left():
            consumer.commit(asynchronous=False)
        consumer.close()


class Poll(_Raw):
    """`poll()` with the client's own auto-commit, as in most programs: it commits what was taken, handled or not."""

    auto_commit = True

    def consume(self, handlers: Handlers) -> None:
        consumer, handle = self._consumer, handlers.handle
        while not handlers.ended:
            message = consumer.poll(1.0)
            if message is not None:
                handle(checked(message))
        consumer.close()


class Tuned(Consume):
    """As SafeConsumer's client."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, **_TUNED)


class TunedPoll(Poll):
    def __init__(self, setup: Setup) -> None:
        super().__init__(setup, **_TUNED)


class Queued(_Raw):
    """`consume(500)`, tuned as above, into a queue of threads: no order within a key, no count of what is finished, no
    commit. What a handler that waits can be given in Python before anything is promised."""

    def __init__(self, setup: Setup, threads: int) -> None:
        super().__init__(setup, **_TUNED)
        self._threads = threads

    def consume(self, handlers: Handlers) -> None:
        taken: queue.SimpleQueue[Message | None] = queue.SimpleQueue()

        def work() -> None:
            while (message := taken.get()) is not None:
                handlers.handle(message)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(self._threads)]
        for thread in threads:
            thread.start()
        while not handlers.ended:
            if taken.qsize() > _ENOUGH:
                time.sleep(0.002)
                continue
            for message in self._consumer.consume(500, 0.1):
                taken.put(checked(message))
        for _ in threads:
            taken.put(None)
        for thread in threads:
            thread.join()
        self._consumer.close()


class SyncCommit(_Raw):
    """`poll()`, then a synchronous commit of each record."""

    def consume(self, handlers: Handlers) -> None:
        consumer, handle = self._consumer, handlers.handle
        while not handlers.ended:
            message = consumer.poll(1.0)
            if message is not None:
                handle(checked(message))
                consumer.commit(message, asynchronous=False)
        consumer.close()


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """The last commit finds all committed already, which the client calls an error."""
    try:
        yield
    except KafkaException as error:
        if error.args[0].code() != KafkaError._NO_OFFSET:
            raise


def checked(message: Message) -> Message:
    error = message.error()
    if error is not None:
        raise KafkaException(error)
    return message
