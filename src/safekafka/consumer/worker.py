"""The worker: handles messages one after the other, in the order they were taken, on a daemon thread of its own.

Threads: `put`, `give_up`, `wait_until_free` and `end` are called by the poll thread; `run` is the worker's. A daemon
thread and no executor: an executor's threads are joined at the interpreter's exit, so a handler that never returns
would keep the process for ever.

Lock: `_state` (a condition) guards which partition is being handled and which are given up. The handler runs outside of
it.
"""

from __future__ import annotations

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeAlias

from safekafka.consumer.progress import PartitionProgress
from safekafka.consumer.retry import Exhausted, Retry
from safekafka.errors import HandlerFailed
from safekafka.observe import Event, emit

if TYPE_CHECKING:
    from confluent_kafka import Message

    from safekafka.deadletter.publisher import DeadLetterPublisher

Handler: TypeAlias = "Callable[[Message], Any]"


class Worker(threading.Thread):
    """`ended(progress, message, done)` is called on this thread for every message taken, `done` telling whether its
    offset counts as finished."""

    def __init__(
        self,
        handler: Handler,
        retry: Retry,
        dead_letters: DeadLetterPublisher | None,
        ended: Callable[[PartitionProgress, Message, bool], None],
    ) -> None:
        super().__init__(name="safekafka-worker", daemon=True)
        self._handler = handler
        self._retry = retry
        self._dead_letters = dead_letters
        self._ended = ended
        self._queue: queue.SimpleQueue[tuple[PartitionProgress, Message] | None] = queue.SimpleQueue()
        self._state = threading.Condition()
        self._current: PartitionProgress | None = None
        self._given_up = threading.Event()  # the message being handled gets no further attempt
        self._loop: asyncio.AbstractEventLoop | None = None
        self.failure: BaseException | None = None  # why the consumer has to stop

    # ---- the poll thread

    def put(self, progress: PartitionProgress, message: Message) -> None:
        self._queue.put((progress, message))

    def give_up(self, progresses: Collection[PartitionProgress]) -> None:
        """Queued messages of these partitions are not handled any more; a wait for a retry ends at once; a running
        handler goes on."""
        with self._state:
            for progress in progresses:
                progress.revoked = True
            if self._current is not None and self._current.revoked:
                self._given_up.set()

    def wait_until_free(self, progresses: Collection[PartitionProgress], until: float) -> bool:
        """Wait until no message of these partitions is being handled; False if one still is at `until` (monotonic)."""
        with self._state:
            return self._state.wait_for(lambda: self._current not in progresses, max(0.0, until - time.monotonic()))

    def end(self) -> None:
        self._queue.put(None)

    # ---- the worker's own thread

    def run(self) -> None:
        try:
            while self.failure is None:
                item = self._queue.get()
                if item is None:
                    break
                self._take(*item)
        finally:
            if self._loop is not None:
                self._loop.close()

    def _take(self, progress: PartitionProgress, message: Message) -> None:
        with self._state:
            given_up = progress.revoked
            if not given_up:
                self._current = progress
                self._given_up.clear()
        done = False
        try:
            done = not given_up and self._handle(message)
        except BaseException as error:  # noqa: BLE001 - not finished; run() raises it on the caller's thread
            self.failure = error
        finally:
            try:
                # The mark comes before "free": a drain that sees us free must find what we finished.
                self._ended(progress, message, done)
            finally:
                with self._state:
                    self._current = None
                    self._state.notify_all()

    def _handle(self, message: Message) -> bool:
        """Whether the offset counts as finished: handled, or its dead letter is confirmed."""
        try:
            self._retry.run(
                lambda: self._call(message), self._given_up, lambda attempt, error: _tell_retry(message, attempt, error)
            )
        except Exhausted as exhausted:
            if self._given_up.is_set():
                return False  # whoever has the partition next handles it
            error = _as_raised_by_handler(exhausted.error)
            if self._dead_letters is None:
                raise HandlerFailed(message, exhausted.attempts, error) from error
            self._dead_letters.write(message, error, exhausted.attempts)
        return True

    def _call(self, message: Message) -> None:
        result = self._handler(message)
        if inspect.isawaitable(result):
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(_awaited(result))


async def _awaited(result: Any) -> None:
    await result


def _as_raised_by_handler(error: Exception) -> Exception:
    """Without the frames of the retry machinery: the reader of a dead letter wants the handler's."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not Worker._call.__code__:
        trace = trace.tb_next
    return error if trace is None or trace.tb_next is None else error.with_traceback(trace.tb_next)


def _tell_retry(message: Message, attempt: int, error: BaseException) -> None:
    emit(
        Event.HANDLER_RETRY,
        topic=message.topic(),
        partition=message.partition(),
        offset=message.offset(),
        attempt=attempt,
        error=type(error).__qualname__,
    )
