"""Writes dead letters, and answers only when Kafka has them.

Threads: `write` is called by any number of workers at once, `awrite` by tasks of any event loop, `close` by the thread
that ends the consumer; there is no lock, since they share nothing but `_partitions` (a number that anybody may ask for
again) and the producer, which is thread safe and has threads of its own. Looking up partitions on behalf of an event
loop runs on a daemon thread made for it: the client has no other than a blocking call.

One dead letter has one course (`_course`), for threads and event loops alike: it is written as a coroutine, and what it
waits for is done by `_Threads` or by `_Loop`. With `_Threads` it never suspends, so one step runs it through.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from confluent_kafka import KafkaError, KafkaException

from safekafka.deadletter.about import About, text_of
from safekafka.deadletter.config import DeadLetter
from safekafka.deadletter.dialects import DIALECTS
from safekafka.deadletter.headers import CUTS, about_failure, letter_headers
from safekafka.errors import (
    DeadLetterFailed,
    DeliveryError,
    InvalidRecordError,
    SafeKafkaError,
)
from safekafka.observe import Event, emit
from safekafka.producer.producer import SafeProducer
from safekafka.producer.receipt import Delivery
from safekafka.record import Record
from safekafka.settings import connection_settings
from safekafka.steps import now

if TYPE_CHECKING:
    from confluent_kafka import Message

_T = TypeVar("_T")
_SIZE = {"message.max.bytes": 1_000_000_000, "compression.type": "zstd"}  # the broker's limit decides, not ours
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0  # seconds between two attempts
_ASK_SECONDS = 5.0
_TOO_LARGE = frozenset({KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE})


class DeadLetterPublisher:
    """Owns its producer, unless the application gave one. `group` is the consumer's, and is told in each letter."""

    def __init__(self, dead_letter: DeadLetter, group: str, consumer_config: Mapping[str, Any]) -> None:
        self.topic = dead_letter.topic
        self._group = group
        self._host = socket.gethostname()
        self._dialect = DIALECTS[dead_letter.headers]
        self._write_timeout = dead_letter.write_timeout
        self._partitions: int | None = None  # of the dead letter topic; None: to be asked for
        self._closing = threading.Event()
        self._is_ours = dead_letter.producer is None
        self._producer = dead_letter.producer or SafeProducer(
            {**connection_settings(consumer_config), **_SIZE},
            delivery_timeout=self._write_timeout,
            max_block=self._write_timeout,
            on_undelivered=lambda *_: None,  # told by DeadLetterFailed, if no other attempt is any better
            handle_sigterm=False,  # a letter that a signal cuts off is of an offset that was not committed
        )

    def write(self, message: Message, error: BaseException, attempts: int) -> None:
        """Return once the dead letter is acknowledged. Raises `DeadLetterFailed` if it is not within `write_timeout`,
        or can't ever be."""
        now(self._course(message, error, attempts, _Threads(self._producer, self._closing)))

    async def awrite(self, message: Message, error: BaseException, attempts: int) -> None:
        """`write` for an event loop, which is never blocked."""
        await self._course(message, error, attempts, _Loop(self._producer))

    def close(self, timeout: float) -> None:
        """Letters that wait for their next attempt are given up; a producer of ours ends within `timeout` seconds."""
        self._closing.set()
        if self._is_ours:
            self._producer.close(timeout)

    # ---- one letter

    async def _course(self, message: Message, error: BaseException, attempts: int, io: _Io) -> None:
        where = f"{message.topic()}[{message.partition()}]@{message.offset()}"
        if message.topic() == self.topic:
            raise DeadLetterFailed(
                f"{where} could not be handled ({_shown(error)}), and it comes from the dead letter topic itself: "
                "written there again it would come back for ever. It was not committed. Remedy: subscribe to topics "
                "(or a pattern) that leave the dead letter topic out."
            )
        until = time.monotonic() + self._write_timeout
        about = about_failure(
            message, error, attempts=attempts, group=self._group, host=self._host, now_ms=int(time.time() * 1000)
        )
        cut, pause, told = 0, _FIRST_PAUSE, False
        while True:
            try:
                delivery = await self._send(message, about, cut, io, until)
                break
            except (SafeKafkaError, KafkaException, TimeoutError) as failure:
                cause = failure
            if _is_too_large(cause) and cut + 1 < len(CUTS):
                cut += 1  # what we added goes first, the original never
                continue
            self._partitions = None  # it may be that the topic was made anew, with fewer
            left = until - time.monotonic()
            if not _may_pass(cause) or self._closing.is_set() or left <= 0:
                raise self._failed(where, error, cause) from cause
            if not told:
                told = True
                emit(Event.DEAD_LETTER_DELAYED, message=where, to=self.topic, error=_reason(cause))
            await io.pause(min(pause, left))
            pause = min(2 * pause, _LONGEST_PAUSE)
        emit(
            Event.DEAD_LETTERED,
            message=where,
            to=f"{delivery.topic}[{delivery.partition}]@{delivery.offset}",
            attempts=attempts,
            error=type(error).__qualname__,
            passes=about.passes,
            headers_cut=cut,
            pid=os.getpid(),
        )

    async def _send(self, message: Message, about: About, cut: int, io: _Io, until: float) -> Delivery:
        headers = letter_headers(message, about, self._dialect, CUTS[cut])
        key, partition = message.key(), None
        if key is not None:
            # The same number as in the source keeps the order of its key, whoever wrote it with whichever partitioner.
            partitions = self._partitions  # another thread may forget them meanwhile
            if partitions is None:
                partitions = self._partitions = await io.ask(lambda: self._ask_partitions(until))
            if about.partition < partitions:
                partition = about.partition
        record = Record(self.topic, message.value(), key, headers, partition)
        return await io.send(record, max(0.0, until - time.monotonic()))

    def _ask_partitions(self, until: float) -> int:
        """Blocks. Raises `KafkaException`."""
        seconds = min(_ASK_SECONDS, max(0.1, until - time.monotonic()))
        topic = self._producer.list_topics(self.topic, timeout=seconds).topics[self.topic]
        if topic.error is not None:
            raise KafkaException(topic.error)
        return len(topic.partitions)

    def _failed(self, where: str, error: BaseException, cause: Exception) -> DeadLetterFailed:
        remedy = (
            f"raise max.message.bytes of the topic {self.topic!r} (and message.max.bytes of its producer, if it is "
            "your own) above those of the source topic."
            if _is_too_large(cause)
            else f"check that the topic {self.topic!r} exists and may be written to."
        )
        # A letter that is still on its way has no failure yet; what keeps it there, the producer knows.
        why = "; ".join(self._producer.health().problems) if isinstance(cause, TimeoutError) else ""
        return DeadLetterFailed(
            f"{where} could not be handled ({_shown(error)}) and its dead letter could not be written to "
            f"{self.topic!r}: {cause or type(cause).__name__}{why and f' ({why}).'} "
            f"The message was not committed: it comes again at the next start. Remedy: {remedy}"
        )


def limit_reached(message: Message, error: BaseException, why: str) -> DeadLetterFailed:
    """For `on_limit="stop"`: what the consumer stops with. `why`: that of the circuit."""
    return DeadLetterFailed(
        f"{message.topic()}[{message.partition()}]@{message.offset()} could not be handled ({_shown(error)}) and was "
        f"not dead-lettered: {why}. It was not committed: it comes again at the next start. Remedy: mend what the "
        "handler depends on, then start again; or raise the limit of DeadLetter(...)."
    )


def _shown(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {text_of(error)}"


def _reason(cause: Exception) -> str:
    code = _code(cause)
    return type(cause).__name__ if code is None else str(code.name())


def _code(cause: BaseException | None) -> KafkaError | None:
    if isinstance(cause, DeliveryError):
        return cause.error
    if isinstance(cause, InvalidRecordError):
        return _code(cause.__cause__)
    return cause.args[0] if isinstance(cause, KafkaException) else None


def _is_too_large(cause: Exception) -> bool:
    """By the broker's verdict, or by the client's own: its limit is the application's, where the producer is."""
    code = _code(cause)
    if code is not None:
        return code.code() in _TOO_LARGE
    return isinstance(cause, InvalidRecordError)


def _may_pass(cause: Exception) -> bool:
    """Whether another attempt is worth it. Also after "unknown": two dead letters are better than none."""
    code = _code(cause)
    if code is not None and code.code() in _TOO_LARGE:
        return False
    gone = code is not None and code.code() == KafkaError._UNKNOWN_PARTITION
    return gone or isinstance(cause, (BufferError, DeliveryError, KafkaException))  # no room: in memory or on the disk


class _Io(Protocol):
    """What a letter waits for."""

    async def ask(self, call: Callable[[], _T]) -> _T: ...

    async def send(self, record: Record, seconds: float) -> Delivery: ...

    async def pause(self, seconds: float) -> None: ...


class _Threads:
    """Waits on the calling thread; nothing here suspends."""

    def __init__(self, producer: SafeProducer, closing: threading.Event) -> None:
        self._producer = producer
        self._closing = closing

    async def ask(self, call: Callable[[], _T]) -> _T:
        return call()

    async def send(self, record: Record, seconds: float) -> Delivery:
        return self._producer.send(*record).result(seconds)

    async def pause(self, seconds: float) -> None:
        self._closing.wait(seconds)


class _Loop:
    """Waits as a task of the running event loop."""

    def __init__(self, producer: SafeProducer) -> None:
        self._producer = producer

    async def ask(self, call: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_T] = loop.create_future()

        def set_answer(result: _T | None, error: Exception | None) -> None:
            if not answer.done():
                answer.set_exception(error) if error is not None else answer.set_result(result)  # type: ignore[arg-type]

        def run() -> None:
            result, failure = None, None
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - raised by the task that waits for it
                failure = error
            try:
                loop.call_soon_threadsafe(set_answer, result, failure)
            except RuntimeError:
                return  # the loop was closed: nobody waits any more

        threading.Thread(target=run, name="safekafka-ask", daemon=True).start()
        return await answer

    async def send(self, record: Record, seconds: float) -> Delivery:
        receipt = await self._producer.asend(*record)
        waiting = asyncio.ensure_future(receipt)
        try:
            # Not wait_for(): up to Python 3.11 it may swallow a cancellation.
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                raise TimeoutError(f"no outcome after {seconds:.1f} s; the record is still on its way")
            return waiting.result()
        finally:
            waiting.cancel()

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
