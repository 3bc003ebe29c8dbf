"""Failures that the program has not looked at yet: held for `flush()` and `close()` to raise. Never silent, and
bounded.

Threads: `fail` on the thread that resolves receipts; `observed` and `raise_if_any` on any. One lock, which nothing is
called under.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeAlias

from safekafka.errors import DeliveryError, DeliveryFailed, UndeliveredError
from safekafka.observe import Event, emit
from safekafka.producer.receipt import Receipt
from safekafka.record import Record

OnUndelivered: TypeAlias = "Callable[[Record, DeliveryError], Any]"
MAX_HELD = 1_000


class Unobserved:
    def __init__(self, on_undelivered: OnUndelivered | None) -> None:
        self._on_undelivered = on_undelivered
        self._lock = threading.RLock()  # reentrant, for a signal handler on top of any of these
        self._held: dict[Receipt, DeliveryError] = {}
        self._more = 0  # beyond MAX_HELD: counted, not held
        self.failed = 0  # of all, for stats
        self.unknown = 0
        # Goes up when the failures were raised: who observes one later must not be subtracted again.
        self._generation = 1

    def fail(self, receipt: Receipt, failure: DeliveryError) -> None:
        """End the receipt with `failure`, told to `on_undelivered` first; registered before anybody can see the
        outcome, unless the receipt has callbacks, which may observe it."""
        handled = self._handled(failure)
        called_back = bool(receipt._callbacks)
        with self._lock:
            if isinstance(failure, DeliveryFailed):
                self.failed += 1
            else:
                self.unknown += 1
        if not handled and not called_back:
            self._register(receipt, failure)
        receipt._resolve(failure)
        if not handled and called_back:
            self._register(receipt, failure)

    def observed(self, receipt: Receipt) -> None:
        failure = receipt._outcome
        assert isinstance(failure, DeliveryError)
        with self._lock:
            if failure._unobserved == self._generation and self._held.pop(receipt, None) is None:
                self._more -= 1
            failure._unobserved = -1

    @property
    def count(self) -> int:
        """Failures that nobody observed."""
        with self._lock:
            return len(self._held) + self._more

    def raise_if_any(self) -> None:
        """Raise `UndeliveredError` with all failures nobody observed, once."""
        with self._lock:
            failures, count = list(self._held.values()), len(self._held) + self._more
            self._held.clear()
            self._more = 0
            self._generation += 1
        if count:
            raise UndeliveredError(failures, count)

    def _register(self, receipt: Receipt, failure: DeliveryError) -> None:
        """As one that nobody observed, unless somebody has by now."""
        with self._lock:
            if failure._unobserved == -1:
                return
            failure._unobserved = self._generation
            room = len(self._held) < MAX_HELD
            if room:
                self._held[receipt] = failure
            else:
                self._more += 1
        if room:
            emit(Event.RECORD_UNDELIVERED, outcome=type(failure).__name__, error=str(failure))

    def _handled(self, failure: DeliveryError) -> bool:
        if self._on_undelivered is None:
            return False
        try:
            self._on_undelivered(failure.record, failure)
        except BaseException as error:  # noqa: BLE001 - SystemExit too: it must not end the thread that tells of the others
            emit(Event.CALLBACK_FAILED, callback="on_undelivered", error=type(error).__qualname__)
            return False
        return True
