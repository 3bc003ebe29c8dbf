"""Delivery without a spool: `send()` hands the record to librdkafka on the caller's thread, one thread polls for
reports.

Threads
- Callers: `send` (any number at once; order is kept per calling thread), `flush`, `close`.
- The delivery thread: takes the reports, resolves every receipt, and keeps `delivery_timeout`.

Locks: `_progress` (a condition: "reports came in"), taken by callers that wait (full buffer, flush) and, to wake them,
by the delivery thread. `_compacting`, held while the list of pending receipts is not whole. Each is taken alone, and
the user's code runs under neither. The path of a record that finds room takes no lock at all.

`delivery_timeout` is on the receipt, not inside the client: a finite timeout in the client duplicates and misreports
records in an outage. A receipt that passes it ends as `unknown`, because the record is still with the client and may be
delivered yet.

`_pending` holds the receipts in the order of `send`. A receipt is appended before the record reaches the client, so no
record can be with the client that the sweep at the end does not see.
"""

from __future__ import annotations

import threading
import time
from collections import deque

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from safekafka.client import ClusterWatch
from safekafka.errors import (
    BufferFullError,
    DeliveryError,
    DeliveryFailed,
    DeliveryUnknown,
    InvalidRecordError,
    ProducerFatalError,
    SafeKafkaError,
)
from safekafka.observe import Event, emit
from safekafka.producer.outcomes import OnUndelivered
from safekafka.producer.receipt import Receipt
from safekafka.producer.way import PURGE_SECONDS, Way
from safekafka.record import Fields, as_record
from safekafka.verdict import Verdict, judge, refusal_of

_POLL_SECONDS = 0.1
_COMPACT_AT = 10_000


class DirectDelivery(Way):
    """Made open; `close` ends it for good."""

    def __init__(
        self,
        client: Producer,
        watch: ClusterWatch,
        *,
        delivery_timeout: float,
        max_block: float,
        on_undelivered: OnUndelivered | None,
    ) -> None:
        super().__init__(client, watch, on_undelivered, "safekafka-delivery")
        self._delivery_timeout = delivery_timeout
        self._max_block = max_block
        self._pending: deque[Receipt] = deque()
        self._compacting = threading.RLock()
        self._compact_at = _COMPACT_AT
        self._waiting = 0
        self._flushing = 0
        self._delivered = 0  # written by the delivery thread only
        self._delivered_before = 0
        self._thread.start()

    # ---- callers

    def send(self, fields: Fields) -> Receipt:
        if self._refusal is not None:
            raise self._refusal
        try:
            receipt = self._hand_over(fields)
        except BufferError:
            receipt = self._wait_for_room(fields)
        except KafkaException as error:
            raise self._refused(fields, error.args[0]) from error
        if self._ended:  # close() finished between our first line and here, so its sweep may have missed this one
            self._settle()
        return receipt

    def flush(self, timeout: float | None) -> int:
        """Wait for the receipts of all earlier sends. Returns how many of them are still pending."""
        self.check_may_wait("flush()")
        open_receipts = self._open_receipts()

        def through() -> bool:
            while open_receipts and open_receipts[0].done():
                open_receipts.popleft()
            return not open_receipts or self._ended

        with self._progress:
            self._waiting += 1
            self._flushing += 1
            try:
                self._wait(through, timeout)
            finally:
                self._waiting -= 1
                self._flushing -= 1
        return sum(not receipt.done() for receipt in open_receipts)

    def __len__(self) -> int:
        self.check_owned()
        return sum(not receipt.done() for receipt in self._open_receipts())

    # ---- inside, callers' threads

    def _open_receipts(self) -> deque[Receipt]:
        with self._compacting:
            return self._pending.copy()

    def _hand_over(self, fields: Fields) -> Receipt:
        topic, value, key, headers, partition, timestamp = fields
        receipt = Receipt(self, fields, time.monotonic())

        def report(error: KafkaError | None, message: Message) -> None:
            if error is None and receipt._outcome is None:
                self._delivered += 1
                receipt._delivered(message)
            else:
                self._not_delivered(receipt, error)

        self._pending.append(receipt)
        try:
            self.client.produce(
                topic, value, key, partition=partition, on_delivery=report, timestamp=timestamp, headers=headers
            )
        except BaseException:
            # Nobody ever gets this receipt.
            receipt._outcome = DeliveryFailed("not accepted by send()", as_record(fields))
            raise
        return receipt

    def _wait_for_room(self, fields: Fields) -> Receipt:
        if self.on_own_thread():
            raise BufferFullError("the buffer is full, and this callback runs on the thread that makes room in it")
        accepted: list[Receipt] = []

        def handed_over() -> bool:
            if self._refusal is not None:
                raise self._refusal
            try:
                accepted.append(self._hand_over(fields))
            except BufferError:
                return False
            except KafkaException as error:
                raise self._refused(fields, error.args[0]) from error
            return True

        with self._progress:
            self._waiting += 1
            try:
                if not self._wait(handed_over, self._max_block):
                    raise BufferFullError(
                        f"the buffer stayed full for max_block={self._max_block} s; the record was not accepted, "
                        f"nothing was dropped.{self._watch.diagnosis()} Remedy: send again later, raise max_block or "
                        "queue.buffering.max.messages, or use spool= to accept records through an outage."
                    )
            finally:
                self._waiting -= 1
        return accepted[0]

    def _refused(self, fields: Fields, cause: KafkaError) -> SafeKafkaError:
        """What `send()` raises when `produce()` refused the record: it was not queued, so it is not in Kafka."""
        verdict = judge(cause)
        if verdict is Verdict.FATAL:
            return self._refusal or _fatal(cause)  # the delivery thread is about to learn of it, with the reason
        if verdict is Verdict.RECORD_BOUND:
            return InvalidRecordError(fields[0], [refusal_of(cause)])
        return DeliveryFailed(f"the client refused the record: {cause.str()}", as_record(fields), cause)

    # ---- the delivery thread

    def _work(self) -> None:
        while self._drain_until is None:
            self._turn(_POLL_SECONDS)
        self._flushing += 1
        while len(self) and (left := self._drain_until - time.monotonic()) > 0:
            self._turn(min(_POLL_SECONDS, left))
        if len(self):
            self.client.purge()
            give_up = time.monotonic() + PURGE_SECONDS
            while len(self) and time.monotonic() < give_up:
                self._turn(_POLL_SECONDS)

    def _turn(self, seconds: float) -> None:
        self._serve(seconds, at_once=self._flushing > 0)
        self._expire()
        if self._delivered != self._delivered_before:
            self._delivered_before = self._delivered
            self._watch.alive()
        if self._waiting:
            self._notify()

    def _on_fatal(self, error: KafkaError) -> None:
        if self._refusal is None:
            self._refusal = _fatal(error)
            emit(Event.PRODUCER_FATAL, error=error.name(), detail=error.str())

    def _not_delivered(self, receipt: Receipt, error: KafkaError | None) -> None:
        fields = receipt._fields
        if receipt._outcome is not None or fields is None or error is None:
            # Ended before by delivery_timeout. The program was told "unknown", which stays true.
            emit(Event.LATE_REPORT, status=receipt.status, late_outcome="delivered" if error is None else error.name())
            return
        where = f"record for topic {fields[0]!r}"
        failure: DeliveryError
        if judge(error) is Verdict.RECORD_BOUND:
            failure = DeliveryFailed(
                f"{where} is not in Kafka, which refused it or the batch it was in: {refusal_of(error)}",
                as_record(fields),
                error,
            )
        else:
            failure = DeliveryUnknown(
                f"{where} may or may not be in Kafka: {error.str()} ({error.name()}).{self._watch.diagnosis()}",
                as_record(fields),
                error,
            )
        self.failures.fail(receipt, failure)

    def _expire(self) -> None:
        """Let go of receipts that are done; end those past `delivery_timeout`. `_pending` is in the order of age."""
        pending = self._pending
        too_old = time.monotonic() - self._delivery_timeout
        while pending:
            receipt = pending[0]
            if not receipt.done():
                if receipt._sent_at > too_old:
                    break
                self._end_unknown(receipt, f"no report within delivery_timeout={self._delivery_timeout} s")
            pending.popleft()
        if len(pending) > self._compact_at and self._compacting.acquire(blocking=False):
            # One stuck partition at the head must not hold all that was delivered behind it. Senders append meanwhile.
            try:
                popped = (pending.popleft() for _ in range(len(pending)))
                still_open = [receipt for receipt in popped if not receipt.done()]
                pending.extendleft(reversed(still_open))
                self._compact_at = _COMPACT_AT + 2 * len(still_open)
            finally:
                self._compacting.release()

    def _settle(self) -> None:
        """Nobody will report any more, so what is pending is unknown. On the delivery thread, or after it."""
        while True:
            try:
                receipt = self._pending.popleft()
            except IndexError:
                return
            if not receipt.done():
                self._end_unknown(receipt, "the producer ended before its report came")

    def _end_unknown(self, receipt: Receipt, why: str) -> None:
        fields = receipt._fields
        assert fields is not None
        self.failures.fail(
            receipt,
            DeliveryUnknown(
                f"record for topic {fields[0]!r} may or may not be in Kafka: {why}.{self._watch.diagnosis()}",
                as_record(fields),
            ),
        )


def _fatal(cause: KafkaError) -> ProducerFatalError:
    return ProducerFatalError(
        f"the client can't continue: {cause.str()} ({cause.name()}). Remedy: close this producer and make a new one; "
        "what was in flight ends as `unknown` and is raised by close()."
    )
