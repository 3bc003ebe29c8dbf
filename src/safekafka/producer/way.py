"""What the two ways to Kafka have in common: one client, one thread that owns it, and an orderly end of both.

Threads: the thread runs `_work` and then `_settle`; nobody else polls, purges or lets go of the client. `close` may be
called from any thread and from a signal handler, also one that interrupted a `send` or `flush` of the same thread: so
nothing that thread may hold is waited for without a bound.
A way belongs to the process that made it. After a fork the child's copy refuses every call.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from typing import Any, cast

from confluent_kafka import KafkaError, KafkaException, Producer

from safekafka.client import ClusterWatch
from safekafka.errors import ClosedError, ProducerFatalError, SafeKafkaError
from safekafka.observe import Event, emit
from safekafka.producer import sigterm
from safekafka.producer.outcomes import OnUndelivered, Unobserved
from safekafka.producer.receipt import Receipt, awaken, bounded
from safekafka.verdict import Verdict, judge

PURGE_SECONDS = 5.0  # reports of purged records come at once; this bounds a client that gives none
_CLOSE_MARGIN_SECONDS = 5.0
_NOTIFY_SECONDS = 0.2
_LOOK_SECONDS = 1.0  # who waits looks by himself this often, since a notification may have been given up
CLOSED = "the producer is closed. Remedy: make a new SafeProducer."


class Way:
    """Owns the client and its thread. A subclass has the work: `_work` until closing, `_settle` what is left."""

    def __init__(self, client: Producer, watch: ClusterWatch, on_undelivered: OnUndelivered | None, name: str) -> None:
        self.client = client
        self._watch = watch
        self.failures = Unobserved(on_undelivered)
        self._refusal: SafeKafkaError | None = None  # why send() no longer accepts; None while open
        self._death: ProducerFatalError | None = None  # the thread ended of an error
        self._disowned: ClosedError | None = None  # we are in a forked child
        self._drain_until: float | None = None  # set by close(): monotonic
        self._ended = False  # the thread is through; nobody reports any more
        self.ending_by_signal = False  # set by the SIGTERM handler: nobody is told any more, the process ends
        self._awaiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}  # the thread's own
        # "Something was reported", for those who wait. They take the lock itself: a signal handler that raises can't
        # come between its acquisition and the `with` block, as it can in the condition's own methods.
        self._progressing = threading.RLock()
        self._progress = threading.Condition(self._progressing)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    # ---- any thread

    def start(self) -> None:
        self._thread.start()

    @property
    def ended(self) -> bool:
        return self._ended

    def close(self, timeout: float) -> None:
        """Stop accepting, let the thread deliver for at most `timeout` seconds, and wait for its end."""
        if self._disowned is not None:
            return
        self.refuse_inside_callback("close()")
        self.begin_close(timeout)
        if self._interrupted_send():
            return  # the exit of the interrupted call, or of the interpreter, waits for the thread
        self._thread.join(min(max(0.0, timeout) + PURGE_SECONDS + _CLOSE_MARGIN_SECONDS, threading.TIMEOUT_MAX))
        if self._thread.is_alive():
            emit(Event.CLOSE_TIMED_OUT, thread=self._thread.name, timeout=timeout)
            raise SafeKafkaError(
                f"the producer's thread did not end within {timeout} s and a margin. Most likely a callback of the "
                "program still runs on it. Remedy: let callbacks return; hold no lock in close() that a callback needs."
            )

    def begin_close(self, timeout: float) -> None:
        if self._refusal is None:
            self._refusal = ClosedError(CLOSED)
        until = time.monotonic() + timeout
        if self._drain_until is None or self.ending_by_signal:  # a signal may cut a longer close() short
            self._drain_until = min(until, self._drain_until or until)
        self._notify()

    @property
    def closing(self) -> bool:
        return self._refusal is not None

    def problems(self) -> list[str]:
        """Sentences on what is the matter; empty while all is well."""
        found = []
        if self._refusal is not None:
            found.append(str(self._refusal))
        if diagnosis := self._watch.diagnosis():
            found.append(diagnosis.strip())
        return found

    def raise_death(self) -> None:
        if self._death is not None:
            raise self._death

    def on_own_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def refuse_inside_callback(self, call: str) -> None:
        if self.on_own_thread():
            raise SafeKafkaError(
                f"{call} inside a delivery callback would wait for ever: this thread is the one that makes the "
                f"progress."
                " Remedy: call it from another thread; receipt.done() and receipt.add_done_callback() work here."
            )

    def disown(self) -> None:
        """In a forked child: client, thread and locks stayed in the parent; nothing of them may be touched here."""
        self._disowned = self._refusal = ClosedError(
            "this belongs to the parent process, which still delivers what it accepted there. "
            "Remedy: look at receipts in the process that sent."
        )
        self.failures = Unobserved(None)  # with a lock that no thread of the parent holds

    def check_owned(self) -> None:
        if self._disowned is not None:
            raise self._disowned

    # ---- what receipts ask of their owner

    def check_may_wait(self, call: str) -> None:
        self.check_owned()
        self.refuse_inside_callback(call)
        if self._interrupted_send():
            raise SafeKafkaError(
                f"{call} in a signal handler that interrupted a send() of the same thread would wait for ever: for "
                "what that send() holds. Remedy: let the handler set a flag, and wait in the program."
            )

    def observed(self, receipt: Receipt) -> None:
        self.failures.observed(receipt)

    def watched(self, receipt: Receipt) -> None:
        """Every pending receipt is held anyway."""

    def wake(self, loop: asyncio.AbstractEventLoop, awaiting: asyncio.Future[None]) -> None:
        if self.on_own_thread():  # together with the others of this poll: one wake-up of the loop for all
            self._awaiting.setdefault(loop, []).append(awaiting)
        else:
            awaken(loop, [awaiting])

    # ---- for subclasses

    def _work(self) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """After the work, however it ended: no receipt may stay pending. Must cope with being half-way through
        anything."""
        raise NotImplementedError

    def _interrupted_send(self) -> bool:
        """Whether this thread is inside `send()` already: a signal handler runs on top of it."""
        return False

    def _wait(self, until: Callable[[], bool], timeout: float | None) -> bool:
        """Wait until the condition holds, for at most `timeout` seconds; whether it does."""
        timeout = bounded(timeout)
        end = math.inf if timeout is None else time.monotonic() + timeout
        with self._progressing:
            while not until():
                left = end - time.monotonic()
                if left <= 0:
                    return False
                self._progress.wait(min(left, _LOOK_SECONDS))
        return True

    def _notify(self) -> None:
        # Not waited for without a bound: its holder may be the very thread that waits for our end, in a signal handler.
        if self._progress.acquire(timeout=_NOTIFY_SECONDS):
            try:
                self._progress.notify_all()
            finally:
                self._progress.release()

    def _wake_awaiting(self) -> None:
        """After a poll."""
        if self._awaiting:
            awaiting, self._awaiting = self._awaiting, {}
            for loop, futures in awaiting.items():
                awaken(loop, futures)

    def _raise_refusal(self) -> None:
        """Why `send()` does not accept any more."""
        if self.ending_by_signal and not self.on_own_thread():
            # An exception would end the program in its own way before the drain is over. The process ends meanwhile.
            self._thread.join(PURGE_SECONDS + _CLOSE_MARGIN_SECONDS + self._drain_left())
        if self._refusal is not None:
            raise self._refusal

    def _drain_left(self) -> float:
        return max(0.0, (self._drain_until or 0.0) - time.monotonic())

    def _serve(self, seconds: float, *, at_once: bool) -> None:
        """Take reports. `at_once`: without waiting for linger.ms."""
        try:
            if at_once:
                self.client.flush(seconds)
            else:
                self.client.poll(seconds)
        except (
            KafkaException
        ) as error:  # a fatal error is raised out of poll(); the remaining reports come with the next one
            if judge(error.args[0]) is not Verdict.FATAL:
                raise
            self._on_fatal(error.args[0])
        self._wake_awaiting()

    def _on_fatal(self, error: KafkaError) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - the cause is raised by every later call
            emit(Event.THREAD_DIED, thread=self._thread.name, error=repr(error))
            self._death = ProducerFatalError(
                f"the thread {self._thread.name} ended: {error}. Remedy: mend the cause and make a new SafeProducer; "
                "what a spool had accepted is still on the disk."
            )
            self._death.__cause__ = error
            self._refusal = self._death
        finally:
            self._ended = True
            self._settle_all()
            self.client = cast(Producer, _EndedClient())  # librdkafka's threads end with the last reference
            self._wake_awaiting()
            self._notify()
            sigterm.ended(self)

    def _settle_all(self) -> None:
        try:
            self._settle()
        except Exception as error:  # noqa: BLE001 - told, and the end goes on: others wait for it
            emit(Event.THREAD_DIED, thread=self._thread.name, error=repr(error))


class _EndedClient:
    """In the client's place after the end."""

    def __getattr__(self, name: str) -> Any:
        raise ClosedError(CLOSED)
