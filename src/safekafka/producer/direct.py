"""Delivery without a spool: `send()` hands the record to librdkafka on the caller's thread, one thread polls for the
reports.

Threads
- Callers: `send` (any number at once; order is kept per calling thread), `flush`, `close`.
- The delivery thread: alone polls, purges and lets go of the client, resolves every receipt, and keeps
  `delivery_timeout`.

Locks: `_progress` only (a condition: "reports came in"). It is taken by callers that wait (full buffer, flush)
and by the delivery thread to wake them; nobody calls the user's code under it. The path of a record that finds room
takes no lock at all.

`delivery_timeout` is on the receipt, not inside the client: a finite timeout in the client duplicates and
misreports records in an outage. A receipt that passes it ends as `unknown`, because the record is still with the client
and may be delivered yet.

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
    ClosedError,
    DeliveryError,
    DeliveryFailed,
    DeliveryUnknown,
    InvalidRecordError,
    ProducerFatalError,
    SafeKafkaError,
)
from safekafka.observe import Event, emit
from safekafka.producer.outcomes import OnUndelivered, Unobserved
from safekafka.producer.ownthread import refuse_on
from safekafka.producer.receipt import Receipt
from safekafka.record import Fields, as_record
from safekafka.verdict import Verdict, judge

_POLL_SECONDS = 0.1
_PURGE_SECONDS = 5.0  # reports of purged records come at once; this bounds a client that gives none


class DirectDelivery:
    """Owns the client. Made open; `close` ends it for good."""

    def __init__(
        self,
        client: Producer,
        watch: ClusterWatch,
        *,
        delivery_timeout: float,
        max_block: float,
        on_undelivered: OnUndelivered | None,
    ) -> None:
        self.client = client
        self._watch = watch
        self._delivery_timeout = delivery_timeout
        self._max_block = max_block
        self.failures = Unobserved(on_undelivered)
        self._pending: deque[Receipt] = deque()
        self._compact_at = 10_000
        self._refusal: SafeKafkaError | None = None  # why send() no longer accepts; None while open
        self._progress = threading.Condition()
        self._waiting = 0
        self._flushing = 0
        self._drain_until: float | None = None  # set by close(): monotonic
        self._ended = False  # the client is gone; whatever is pending has no reporter any more
        self._delivered = 0  # written by the delivery thread only
        self._delivered_before = 0
        self._late = 0
        self._thread = threading.Thread(target=self._run, name="safekafka-delivery", daemon=True)
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
            self._sweep()
        return receipt

    def flush(self, timeout: float | None) -> int:
        """Wait for the receipts of all earlier sends. Returns how many of them are still pending."""
        refuse_on(self._thread, "flush()")
        end = None if timeout is None else time.monotonic() + timeout
        open_receipts = self._pending.copy()
        with self._progress:
            self._waiting += 1
            self._flushing += 1
            try:
                while True:
                    while open_receipts and open_receipts[0].done():
                        open_receipts.popleft()
                    left = None if end is None else end - time.monotonic()
                    if not open_receipts or self._ended or (left is not None and left <= 0):
                        return sum(not receipt.done() for receipt in open_receipts)
                    self._progress.wait(left)
            finally:
                self._waiting -= 1
                self._flushing -= 1

    def close(self, timeout: float) -> None:
        """Deliver what is pending, for at most `timeout` seconds; what is left then is purged and ends as `unknown`."""
        refuse_on(self._thread, "close()")
        if self._refusal is None:
            self._refusal = ClosedError("the producer is closed. Remedy: make a new SafeProducer.")
        if self._drain_until is None:
            self._drain_until = time.monotonic() + timeout
        self._thread.join()

    def __len__(self) -> int:
        return sum(not receipt.done() for receipt in self._pending.copy())

    def disown(self) -> None:
        """In a forked child: the client and its thread stayed in the parent; nothing of them may be touched here."""
        self._refusal = ClosedError(
            "this producer belongs to the parent process; the parent still delivers what it accepted there. "
            "Remedy: make a SafeProducer in the child, after the fork."
        )
        self._pending = deque()
        self._ended = True

    # ---- what receipts ask of their owner

    def resolving_thread(self) -> threading.Thread:
        return self._thread

    def observed(self, receipt: Receipt) -> None:
        self.failures.observed(receipt)

    def watched(self, receipt: Receipt) -> None:
        return  # every pending receipt is held by `_pending`

    # ---- inside, callers' threads

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
                topic,
                value,
                key,
                partition=partition,
                on_delivery=report,
                timestamp=timestamp,
                headers=headers,
            )
        except BaseException:
            receipt._outcome = DeliveryFailed(
                "not accepted by send()", as_record(fields)
            )  # nobody ever gets this receipt
            raise
        return receipt

    def _wait_for_room(self, fields: Fields) -> Receipt:
        if threading.current_thread() is self._thread:
            raise BufferFullError("the buffer is full, and this callback runs on the thread that makes room in it")
        end = time.monotonic() + self._max_block
        with self._progress:
            self._waiting += 1
            try:
                while True:
                    if self._refusal is not None:
                        raise self._refusal
                    try:
                        return self._hand_over(fields)
                    except BufferError:
                        left = end - time.monotonic()
                    except KafkaException as error:
                        raise self._refused(fields, error.args[0]) from error
                    if left <= 0 or not self._progress.wait(left):
                        raise BufferFullError(
                            f"the buffer stayed full for max_block={self._max_block} s; the record was not "
                            f"accepted, nothing "
                            f"was dropped.{self._watch.diagnosis()} Remedy: send again later, raise max_block or "
                            "queue.buffering.max.messages, or use spool= to accept records through an outage."
                        )
            finally:
                self._waiting -= 1

    def _refused(self, fields: Fields, cause: KafkaError) -> SafeKafkaError:
        """What `send()` raises when `produce()` refused the record: it was not queued, so it definitely is not in
        Kafka."""
        verdict = judge(cause)
        if verdict is Verdict.FATAL:
            return self._refusal or _fatal(cause)  # the delivery thread is about to learn of it, with the reason
        if verdict is Verdict.RECORD_BOUND:
            return InvalidRecordError(fields[0], [refusal_of(cause)])
        return DeliveryFailed(f"the client refused the record: {cause.str()}", as_record(fields), cause)

    # ---- the delivery thread

    def _run(self) -> None:
        try:
            while self._drain_until is None:
                self._poll(_POLL_SECONDS)
                self._expire()
                self._wake()
            self._drain(self._drain_until)
        except BaseException as error:  # noqa: BLE001 - the cause is raised by every later call
            emit(Event.THREAD_DIED, thread="safekafka-delivery", error=repr(error))
            refusal = ProducerFatalError(f"the delivery thread ended unexpectedly: {error!r}")
            refusal.__cause__ = error
            self._refusal = refusal
        finally:
            self._ended = True
            self._sweep()
            self._wake()

    def _poll(self, seconds: float) -> None:
        try:
            if self._flushing:
                self.client.flush(seconds)  # as poll(), but without waiting for linger.ms
            else:
                self.client.poll(seconds)
        except (
            KafkaException
        ) as error:  # a fatal error is raised out of poll(); the remaining reports come with the next one
            cause = error.args[0]
            if judge(cause) is not Verdict.FATAL:
                raise
            if self._refusal is None:
                self._became_fatal(cause)

    def _became_fatal(self, cause: KafkaError) -> None:
        self._refusal = _fatal(cause)
        emit(Event.PRODUCER_FATAL, error=cause.name(), detail=cause.str())

    def _not_delivered(self, receipt: Receipt, error: KafkaError | None) -> None:
        fields = receipt._fields
        if receipt._outcome is not None or fields is None or error is None:
            # Ended before by delivery_timeout. The program was told "unknown", which stays true.
            self._late += 1
            emit(
                Event.LATE_REPORT,
                status=receipt.status,
                late_outcome="delivered" if error is None else error.name(),
            )
            return
        where = f"record for topic {fields[0]!r}"
        failure: DeliveryError
        if judge(error) is Verdict.RECORD_BOUND:
            failure = DeliveryFailed(f"{where} can't be taken by Kafka: {error.str()}", as_record(fields), error)
        else:
            failure = DeliveryUnknown(
                f"{where} may or may not be in Kafka: {error.str()} ({error.name()}).{self._watch.diagnosis()}",
                as_record(fields),
                error,
            )
        self.failures.fail(receipt, failure)

    def _expire(self) -> None:
        """Let go of the receipts that are done; end those past `delivery_timeout`. `_pending` is in the order of
        sending, so of age."""
        pending = self._pending
        too_old = time.monotonic() - self._delivery_timeout
        while pending:
            receipt = pending[0]
            if not receipt.done():
                if receipt._sent_at > too_old:
                    break
                self._end_unknown(receipt, f"no report within delivery_timeout={self._delivery_timeout} s")
            pending.popleft()
        if len(pending) > self._compact_at:
            # One stuck partition at the head must not hold all that was delivered behind it. Senders append at the
            # right meanwhile.
            still_open = [receipt for receipt in (pending.popleft() for _ in range(len(pending))) if not receipt.done()]
            pending.extendleft(reversed(still_open))
            self._compact_at = 10_000 + 2 * len(still_open)

    def _drain(self, until: float) -> None:
        self._flushing += 1
        while len(self) and time.monotonic() < until:
            self._poll(min(_POLL_SECONDS, max(0.0, until - time.monotonic())))
            self._expire()
            self._wake()
        if len(self):
            self.client.purge()
            give_up = time.monotonic() + _PURGE_SECONDS
            while len(self) and time.monotonic() < give_up:
                self._poll(_POLL_SECONDS)

    def _sweep(self) -> None:
        """After the end: nobody will report any more, so what is pending is unknown. On the delivery thread, or after
        it."""
        with self._progress:
            left = [self._pending.popleft() for _ in range(len(self._pending))]
        for receipt in left:
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

    def _wake(self) -> None:
        if self._delivered != self._delivered_before:
            self._delivered_before = self._delivered
            self._watch.alive()
        if self._waiting:
            with self._progress:
                self._progress.notify_all()


def _fatal(cause: KafkaError) -> ProducerFatalError:
    return ProducerFatalError(
        f"the client can't continue: {cause.str()} ({cause.name()}). Remedy: close this producer and make a new one; "
        "what was in flight ends as `unknown` and is raised by close()."
    )


def refusal_of(cause: KafkaError) -> str:
    """A record-bound error with its remedy."""
    limit = "message.max.bytes and the topic's max.message.bytes" if "large" in cause.str() else "the limit it names"
    return f"{cause.str()} ({cause.name()}): make the record smaller or raise {limit}"
