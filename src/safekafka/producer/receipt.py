"""The receipt of one accepted record: pending, then exactly one of delivered, failed, unknown.

Threads: resolved once, by the thread that takes the reports from the client; read, awaited and given callbacks from
any thread. There is no lock per receipt. The outcome is written first and the callbacks are looked at afterwards; who
adds a callback looks at the outcome afterwards; so at least one of the two sees the other, and `list.pop` hands each
callback to one. Callbacks run on the owner's thread, or on the adder's if there is an outcome already.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import Callable, Generator
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast

from confluent_kafka import KafkaError, Message

from safekafka.client import call_isolated, isolated
from safekafka.errors import DeliveryError, DeliveryFailed
from safekafka.record import Fields, Record, as_record

Status: TypeAlias = Literal["pending", "delivered", "failed", "unknown"]


class Delivery(NamedTuple):
    """Where the record is. `timestamp` is in ms since the epoch, None if the broker gave none; so is `offset`, which a
    broker leaves out when it has seen the record before (a retry whose first acknowledgement was lost)."""

    topic: str
    partition: int
    offset: int | None
    timestamp: int | None


class ReceiptOwner(Protocol):
    """What a receipt needs of the part that will resolve it."""

    def check_may_wait(self, call: str) -> None:
        """Raise where waiting would never end: on the thread that resolves receipts, and in a forked child."""

    def observed(self, receipt: Receipt) -> None:
        """Somebody looked at a failure, so `flush()` and `close()` need not raise it."""

    def watched(self, receipt: Receipt) -> None:
        """Somebody waits for the receipt: it must be kept until it is resolved, though nobody else holds it."""

    def wake(self, loop: asyncio.AbstractEventLoop, awaiting: asyncio.Future[None]) -> None:
        """Let the task go on that awaits this future: its receipt has an outcome."""


# Taken by who adds a callback, never by who resolves. Reentrant, for a signal handler that adds one on top of it.
_adding = threading.RLock()


def _renew_lock() -> None:
    """In a forked child: a thread of the parent may have held it."""
    global _adding
    _adding = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


class Receipt:
    """The outcome of one record. Made by `SafeProducer.send()`; thread safe; may be awaited on any running event
    loop."""

    __slots__ = ("__weakref__", "_callbacks", "_fields", "_outcome", "_owner")
    _spooled = False

    def __init__(self, owner: ReceiptOwner, fields: Fields) -> None:
        self._owner = owner
        self._fields: Fields | None = fields
        # Delivered: a plain tuple, as the report gave it, until somebody asks for the Delivery.
        self._outcome: Delivery | tuple[str, int, int, tuple[int, int]] | DeliveryError | None = None
        self._callbacks: list[Callable[[Receipt], Any]] | None = None

    @property
    def status(self) -> Status:
        outcome = self._outcome
        if outcome is None:
            return "pending"
        if isinstance(outcome, tuple):
            return "delivered"
        return "failed" if isinstance(outcome, DeliveryFailed) else "unknown"

    @property
    def durable(self) -> bool:
        """True once the record is on the local disk or delivered."""
        return self._spooled or isinstance(self._outcome, tuple)

    @property
    def record(self) -> Record | None:
        """What was sent. None once it is delivered: the payload is let go then."""
        fields = self._fields
        return None if fields is None else as_record(fields)

    def done(self) -> bool:
        return self._outcome is not None

    def result(self, timeout: float | None = None) -> Delivery:
        """Wait for the outcome, at most `timeout` seconds.

        Raises `DeliveryFailed`, `DeliveryUnknown`, or `TimeoutError` when there is no outcome yet (the record goes on
        all the same).
        """
        outcome = self._wait(timeout)
        if isinstance(outcome, Delivery):
            return outcome
        raise outcome

    def exception(self, timeout: float | None = None) -> DeliveryError | None:
        """Like `result`, but returns the failure; None when delivered."""
        outcome = self._wait(timeout)
        return None if isinstance(outcome, Delivery) else outcome

    def add_done_callback(self, callback: Callable[[Receipt], Any]) -> None:
        """Call `callback(receipt)` once there is an outcome, on the delivery thread; at once if there is one already.

        An exception of the callback is logged. A failure that reaches a callback counts as observed.
        """
        call = isolated(callback, getattr(callback, "__qualname__", repr(callback)))

        def tell(receipt: Receipt) -> None:
            call(receipt)
            if isinstance(receipt._outcome, DeliveryError):
                self._owner.observed(receipt)

        self._add(tell)

    def __await__(self) -> Generator[Any, None, Delivery]:
        if self._outcome is None:
            self._owner.check_may_wait("await receipt")
            loop = asyncio.get_running_loop()
            woken: asyncio.Future[None] = loop.create_future()

            def wake(_: Receipt) -> None:
                self._owner.wake(loop, woken)

            self._add(wake)
            try:
                yield from woken
            except BaseException:
                self._remove(wake)
                raise
        return self.result(0)

    def __repr__(self) -> str:
        return f"<Receipt {self.status} {'' if self._outcome is None else self._known()}>"

    # ---- for the owner

    def _delivered(self, message: Message) -> None:
        self._resolve(delivery_of(message))

    def _resolve(self, outcome: Delivery | DeliveryError) -> None:
        if isinstance(outcome, Delivery):
            self._fields = None
        self._outcome = outcome
        if self._callbacks is not None:
            self._call_back()

    # ---- inside

    def _known(self) -> Delivery | DeliveryError:
        """The outcome, which is there."""
        outcome = self._outcome
        if type(outcome) is tuple:
            topic, partition, offset, (kind, timestamp) = cast("tuple[str, int, int, tuple[int, int]]", outcome)
            self._outcome = outcome = Delivery(topic, partition, offset, timestamp if kind else None)
        assert isinstance(outcome, (Delivery, DeliveryError))
        return outcome

    def _wait(self, timeout: float | None) -> Delivery | DeliveryError:
        if self._outcome is None:
            self._owner.check_may_wait("receipt.result()")
            timeout = bounded(timeout)
            arrived = threading.Lock()
            arrived.acquire()

            def wake(_: Receipt) -> None:
                arrived.release()

            self._add(wake, first=True)  # before the program's callbacks, which may take their time
            try:
                if not arrived.acquire(timeout=-1 if timeout is None else timeout) and self._outcome is None:
                    raise TimeoutError(f"no outcome after {timeout} s; the record is still on its way")
            except BaseException:
                self._remove(wake)
                raise
        outcome = self._known()
        if isinstance(outcome, DeliveryError):
            self._owner.observed(self)
        return outcome

    def _add(self, callback: Callable[[Receipt], Any], first: bool = False) -> None:
        with _adding:
            callbacks = self._callbacks
            if callbacks is None:
                callbacks = self._callbacks = []
            callbacks.insert(0 if first else len(callbacks), callback)
        self._owner.watched(self)
        if self._outcome is not None:
            self._call_back()

    def _remove(self, callback: Callable[[Receipt], Any]) -> None:
        with contextlib.suppress(ValueError, AttributeError):  # it was called meanwhile
            self._callbacks.remove(callback)  # type: ignore[union-attr]

    def _call_back(self) -> None:
        while self._callbacks:
            try:
                callback = self._callbacks.pop(0)
            except IndexError:
                return
            callback(self)


def bounded(timeout: float | None) -> float | None:
    """The timeout as the threading module takes it: negative, as in the raw client, and infinite mean no bound."""
    return None if timeout is None or timeout < 0 or not math.isfinite(timeout) else min(timeout, threading.TIMEOUT_MAX)


class SpooledReceipt(Receipt):
    """Of a record that is on the local disk."""

    __slots__ = ()
    _spooled = True


def delivery_of(message: Message) -> Delivery:
    """What the report of a delivered record says. The client types its fields as optional; here they are set."""
    kind, timestamp = message.timestamp()
    return Delivery(message.topic(), message.partition(), message.offset(), timestamp if kind else None)  # type: ignore[arg-type]


def tell_raw(on_delivery: Callable[..., Any], receipt: Receipt, fields: Fields, message: Message | None) -> None:
    """Call the raw client's `on_delivery(error, message)`: with the client's own message, where there is one."""
    outcome = receipt._outcome
    topic, value, key, headers, partition, timestamp = fields
    about: dict[str, Any] = {"topic": topic, "value": value, "key": key, "headers": headers}
    if isinstance(outcome, DeliveryError):
        error = outcome.error or KafkaError(KafkaError._MSG_TIMED_OUT, str(outcome))
        message = Message(partition=partition, timestamp=(1, timestamp), error=error, **about)
        call_isolated("on_delivery", on_delivery, error, message)
        receipt._owner.observed(receipt)
        return
    if message is None:
        known = cast(Delivery, receipt._known())
        stamp = (0, 0) if known.timestamp is None else (1, known.timestamp)
        message = Message(partition=known.partition, offset=known.offset, timestamp=stamp, **about)
    call_isolated("on_delivery", on_delivery, None, message)


def awaken(loop: asyncio.AbstractEventLoop, awaiting: list[asyncio.Future[None]]) -> None:
    """Let the tasks go on that await these futures of one loop. From any thread."""
    try:
        loop.call_soon_threadsafe(_set, awaiting)
    except RuntimeError:
        return  # the loop was closed: nobody waits there any more; the receipts have their outcomes all the same


def _set(awaiting: list[asyncio.Future[None]]) -> None:
    for future in awaiting:
        if not future.done():
            future.set_result(None)
