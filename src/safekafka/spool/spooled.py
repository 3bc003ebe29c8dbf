"""Delivery through the spool: `send()` writes the record to the journal, one sender thread hands it to Kafka, in order,
until it has it.

Threads
- Callers: `send` appends and commits on the caller's thread; `flush` waits; `close` stops the sender and waits for it.
- The sender thread: alone feeds, polls and rebuilds the client, reads and deletes journal rows, resolves receipts.

Locks, in this order: `_appending` (a row is written, its receipt registered and the row announced to the sender in one
step, so the sender never reads a row whose receipt it can't find), then the journal's own. `_changed` (a condition:
"appended" towards an idle sender, "acknowledged" towards waiting callers) is taken alone. No user code runs under any
of them.

Order of records (P3): rows are read by ascending sequence number and handed over in that order. As soon as one of them
comes back with an error, feeding stops, everything in flight is waited for, what was delivered is deleted, and reading
starts again at the lowest row left: what is sent next is again the oldest of each partition. A verdict on a batch is
not a verdict on a record, so what failed is then sent one by one, and only a record that fails alone is rejected.
`enable.gapless.guarantee` makes the client stop at a failed batch; without it the batches behind it would pass it by.
Nothing expires (`message.timeout.ms=0`), so an outage produces no error at all.

Known limits of this first version: a topic that refuses records holds back the topics behind it; rows are always read
back from the disk.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from safekafka.client import ClusterWatch
from safekafka.errors import (
    ClosedError,
    DeliveryFailed,
    DeliveryUnknown,
    InvalidRecordError,
    ProducerFatalError,
    SafeKafkaError,
    SpoolFullError,
    SpoolUnusableError,
)
from safekafka.observe import Event, emit
from safekafka.producer.direct import refusal_of
from safekafka.producer.outcomes import OnUndelivered, Unobserved
from safekafka.producer.ownthread import refuse_on
from safekafka.producer.receipt import Receipt
from safekafka.record import Fields, as_record
from safekafka.spool.config import Spool
from safekafka.spool.journal import Journal, RejectedRecord, StoredRecord
from safekafka.verdict import Verdict, judge

_WINDOW_RECORDS = 10_000  # with the client at any time: bounds memory, and the duplicates of a crash
_WINDOW_BYTES = 32 << 20
_READ_ROWS = 1_000
_ACK_ROWS = 1_000
_ACK_SECONDS = 0.1
_POLL_SECONDS = 0.01
_IDLE_SECONDS = 0.5
_BACKOFF_SECONDS = (0.1, 5.0)
_PURGE_SECONDS = 5.0
_FATAL_WAIT_SECONDS = 30.0  # requests in flight at a fatal error may still succeed; their reports are waited for


class _Failure(NamedTuple):
    row: StoredRecord
    error: KafkaError
    alone: bool  # nothing else was in the same batch, so the verdict is on this record


class SpooledDelivery:
    """Owns the journal and the client. Made open; `close` ends it for good; what is left stays on the disk."""

    def __init__(
        self,
        make_client: Callable[[], tuple[Producer, ClusterWatch]],
        spool: Spool,
        *,
        max_record_bytes: int,
        max_block: float,
        on_undelivered: OnUndelivered | None,
    ) -> None:
        self.client, self._watch = make_client()  # first: bad settings must not leave a folder behind
        self._journal = Journal(spool)
        self._make_client = make_client
        self._spool = spool
        self._max_record_bytes = max_record_bytes
        self._max_block = max_block
        self.failures = Unobserved(on_undelivered)
        self._refusal: SafeKafkaError | None = None  # why send() no longer accepts; None while open
        self._appending = threading.Lock()
        self._changed = threading.Condition()
        self._idle = False
        self._drain_until: float | None = None  # set by close(): monotonic
        self._ended = False  # the sender thread is through: journal and client are closed
        # Receipts of this process by sequence number: weak, so a program that keeps none pays no memory in a long
        # outage ...
        self._receipts: weakref.WeakValueDictionary[int, Receipt] = weakref.WeakValueDictionary()
        # ... but one that somebody waits for, or that has a callback, is kept until it is resolved.
        self._watched: set[Receipt] = set()
        self._announced = self._journal.last_seq  # the sender reads up to here
        self._open_from = 1  # published by the sender: every record below is delivered or rejected
        # The sender thread's own:
        self._cursor = 1  # the next sequence number to read
        self._rows: deque[StoredRecord] = deque()  # read, not yet handed over
        self._in_flight: dict[int, StoredRecord] = {}  # by ascending sequence number
        self._in_flight_bytes = 0
        self._delivered: list[StoredRecord] = []  # Kafka has them; not yet deleted here
        self._delivered_total = 0
        self._acked_at = time.monotonic()
        self._failed: list[_Failure] = []
        self._one_by_one_to = 0  # up to this sequence number records are sent singly
        self._single = False  # what is in flight is such a one
        self._fatal: KafkaError | None = None
        self._fatal_until = 0.0
        self._backoff = _BACKOFF_SECONDS[0]
        self._not_before = 0.0
        self._blocked: set[str] = set()
        if self._journal.count:
            emit(
                Event.SPOOL_RECOVERED,
                spool=str(spool.folder),
                records=self._journal.count,
                bytes=self._journal.bytes,
            )
        self._thread = threading.Thread(target=self._run, name="safekafka-spool-sender", daemon=True)
        self._thread.start()

    # ---- callers

    def send(self, fields: Fields) -> Receipt:
        if self._refusal is not None:
            raise self._refusal
        topic, value, key, headers, partition, timestamp = fields
        size = len(value or b"") + len(key or b"")
        if size > self._max_record_bytes:  # the client would refuse it, but after it was accepted
            raise InvalidRecordError(
                topic,
                [
                    f"{size} bytes are more than message.max.bytes={self._max_record_bytes}: make it smaller or "
                    f"raise the limit"
                ],
            )
        # The time of send(), not of the drain after an outage.
        fields = (topic, value, key, headers, partition, timestamp or int(time.time() * 1000))
        if self._journal.bytes >= self._spool.max_bytes:
            self._wait_for_room()
        receipt = Receipt(self, fields, 0.0, spooled=True)
        with self._appending:
            if self._refusal is not None:  # closed while we waited; the journal is closed then
                raise self._refusal
            seq = self._journal.append([fields])
            self._receipts[seq] = receipt
            self._announced = seq
        if self._idle:
            with self._changed:
                self._changed.notify_all()
        return receipt

    def flush(self, timeout: float | None) -> int:
        """Wait until Kafka has every record accepted before. Returns how many of them are still in the spool."""
        refuse_on(self._thread, "flush()")
        target = self._announced
        if self._wait(lambda: self._open_from > target or self._ended, timeout):
            return 0 if self._open_from > target else len(self)
        return self._journal.count_up_to(target)

    def close(self, timeout: float) -> None:
        """Send what is in the spool, for at most `timeout` seconds; what is left then stays on the disk for the next
        start."""
        refuse_on(self._thread, "close()")
        with self._appending:
            if self._refusal is None:
                self._refusal = ClosedError("the producer is closed. Remedy: make a new SafeProducer.")
        with self._changed:
            if self._drain_until is None:
                self._drain_until = time.monotonic() + timeout
            self._changed.notify_all()
        self._thread.join()

    def __len__(self) -> int:
        return self._journal.count

    def rejected(self) -> list[RejectedRecord]:
        if self._ended:
            raise self._refusal or ClosedError("the producer is closed")
        return self._journal.rejected()

    def disown(self) -> None:
        """In a forked child: journal, lock and client stayed in the parent; nothing of them may be touched here."""
        self._refusal = ClosedError(
            "this producer and its spool belong to the parent process, which still delivers what it accepted there. "
            "Remedy: make a SafeProducer in the child, after the fork, with a spool folder of its own."
        )

    # ---- what receipts ask of their owner

    def resolving_thread(self) -> threading.Thread:
        return self._thread

    def observed(self, receipt: Receipt) -> None:
        self.failures.observed(receipt)

    def watched(self, receipt: Receipt) -> None:
        self._watched.add(receipt)
        if receipt.done():
            self._watched.discard(receipt)

    # ---- inside, callers' threads

    def _wait_for_room(self) -> None:
        if threading.current_thread() is self._thread:
            raise SpoolFullError("the spool is full, and this callback runs on the thread that makes room in it")
        if not self._wait(
            lambda: self._journal.bytes < self._spool.max_bytes or self._refusal is not None, self._max_block
        ):
            raise SpoolFullError(
                f"the spool {str(self._spool.folder)!r} held max_bytes={self._spool.max_bytes} for "
                f"max_block={self._max_block} s; "
                f"the record was not accepted, nothing was dropped.{self._watch.diagnosis()} "
                "Remedy: send again later, or raise Spool(max_bytes=...)."
            )

    def _wait(self, until: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(until, timeout)

    # ---- the sender thread

    def _run(self) -> None:
        try:
            while self._drain_until is None or (self._open() and time.monotonic() < self._drain_until):
                try:
                    self._step()
                except (
                    SpoolUnusableError,
                    SpoolFullError,
                ) as error:  # the disk refused a read or a deletion: again later
                    emit(Event.SPOOL_SENDER_FAILING, error=str(error))
                    self._pause()
                    self._poll(_POLL_SECONDS)
            self._end()
        except BaseException as error:  # noqa: BLE001 - the cause is raised by every later call
            emit(Event.THREAD_DIED, thread="safekafka-spool-sender", error=repr(error))
            refusal = ProducerFatalError(
                f"the spool's sender thread ended: {error}. What was accepted is on the disk in "
                f"{str(self._spool.folder)!r}. "
                "Remedy: mend the cause and start again."
            )
            refusal.__cause__ = error
            self._refusal = refusal
        finally:
            self._journal.close()
            self._abandon_receipts()
            self._ended = True
            with self._changed:
                self._changed.notify_all()

    def _step(self) -> None:
        fed = 0
        if self._failed or self._fatal is not None:
            self._recover()
        else:
            fed = self._feed()
        if self._in_flight:
            self._poll(0 if fed else _POLL_SECONDS)
        else:
            self._poll(0)
            self._rest()
        self._acknowledge()

    def _open(self) -> bool:
        """Whether anything accepted is not yet known to be in Kafka."""
        return bool(self._in_flight or self._failed or self._rows) or self._cursor <= self._announced

    def _feed(self) -> int:
        """Hand rows to the client while the window has room. Returns how many."""
        fed = 0
        if time.monotonic() < self._not_before or len(self._delivered) > _WINDOW_RECORDS:
            return fed
        while not self._failed:
            if not self._rows:
                announced = self._announced
                if self._cursor > announced:
                    break
                self._rows.extend(self._journal.read(self._cursor, announced, _READ_ROWS))
                self._cursor = self._rows[-1].seq + 1 if len(self._rows) == _READ_ROWS else announced + 1
                continue
            row = self._rows[0]
            single = row.seq <= self._one_by_one_to
            if self._in_flight and (single or self._single or self._window_full(row)):
                break
            try:
                self._hand_over(row)
            except BufferError:
                break
            except KafkaException as error:
                self._rows.popleft()
                self._failed.append(_Failure(row, error.args[0], alone=True))
                break
            self._rows.popleft()
            self._in_flight[row.seq] = row
            self._in_flight_bytes += row.size
            self._single = single
            fed += 1
            if fed >= _READ_ROWS:
                break
        return fed

    def _window_full(self, row: StoredRecord) -> bool:
        return len(self._in_flight) >= _WINDOW_RECORDS or self._in_flight_bytes + row.size > _WINDOW_BYTES

    def _hand_over(self, row: StoredRecord) -> None:
        topic, value, key, headers, partition, timestamp = row.fields

        def report(error: KafkaError | None, message: Message) -> None:
            self._reported(row, error, message)

        self.client.produce(
            topic, value, key, partition=partition, on_delivery=report, timestamp=timestamp, headers=headers
        )

    def _reported(self, row: StoredRecord, error: KafkaError | None, message: Message) -> None:
        del self._in_flight[row.seq]
        self._in_flight_bytes -= row.size
        if error is not None:
            self._failed.append(_Failure(row, error, alone=self._single))
            if judge(error) is Verdict.FATAL:
                self._on_fatal(error)
            return
        self._delivered.append(row)
        self._delivered_total += 1
        self._backoff = _BACKOFF_SECONDS[0]
        self._watch.alive()
        topic = row.fields[0]
        if topic in self._blocked:
            self._blocked.discard(topic)
            emit(Event.TOPIC_UNBLOCKED, topic=topic)
        receipt = self._receipts.pop(row.seq, None)
        if receipt is not None:
            receipt._delivered(message)
            self._watched.discard(receipt)

    def _poll(self, seconds: float) -> None:
        try:
            if self._single:
                self.client.flush(seconds)  # as poll(), but a lone record need not wait for linger.ms
            else:
                self.client.poll(seconds)
        except (
            KafkaException
        ) as error:  # a fatal error is raised out of poll(); the remaining reports come with the next one
            if judge(error.args[0]) is not Verdict.FATAL:
                raise
            self._on_fatal(error.args[0])

    def _rest(self) -> None:
        """Nothing is in flight: sleep until something is appended, or the pause is over."""
        with self._changed:
            self._idle = True
            waits = self._cursor > self._announced and not self._rows and not self._failed and self._fatal is None
            paused = self._not_before - time.monotonic()
            if waits and self._drain_until is None:
                self._changed.wait(_ACK_SECONDS if self._delivered else _IDLE_SECONDS)
            elif paused > 0:
                self._changed.wait(min(paused, _ACK_SECONDS))
            self._idle = False

    def _acknowledge(self, at_once: bool = False) -> None:
        """Delete what Kafka has, in batches; tell those who wait."""
        now = time.monotonic()
        due = at_once or len(self._delivered) >= _ACK_ROWS or now - self._acked_at >= _ACK_SECONDS
        if self._delivered and due:
            self._journal.delete([row.seq for row in self._delivered], sum(row.size for row in self._delivered))
            self._delivered.clear()
            self._acked_at = now
        open_from = min(
            next(iter(self._in_flight), self._cursor),
            self._rows[0].seq if self._rows else self._cursor,
            min((failure.row.seq for failure in self._failed), default=self._cursor),
            self._cursor,
        )
        if due or open_from != self._open_from:
            with self._changed:
                self._open_from = open_from
                self._changed.notify_all()

    def _recover(self) -> None:
        """Something came back with an error: settle it, and start again at the lowest row left.

        First everything in flight has to be reported. After a fatal error a new client goes on (P6); what the old had
        in flight may still succeed, so its reports are waited for, for a bounded time.
        """
        if self._in_flight:
            if self._fatal is None or time.monotonic() < self._fatal_until:
                return
            self._purge()
        self._acknowledge(at_once=True)
        failures, self._failed = sorted(self._failed, key=lambda failure: failure.row.seq), []
        for failure in failures:
            verdict = judge(failure.error)
            if verdict is Verdict.RECORD_BOUND and failure.alone:
                self._reject(failure)
            elif verdict is Verdict.RECORD_BOUND:
                self._one_by_one_to = max(self._one_by_one_to, failure.row.seq)
            elif verdict is Verdict.TOPIC_BOUND:
                self._block(failure)
            else:
                self._pause()
        if self._fatal is not None:
            self._rebuild(sent_again=len(failures) + len(self._in_flight))
        self._rows.clear()
        self._cursor = (
            1  # what was delivered is deleted, so the lowest row is the oldest record that Kafka may not have
        )

    def _reject(self, failure: _Failure) -> None:
        row, reason = failure.row, refusal_of(failure.error)
        self._journal.reject(row.seq, reason, row.size)
        emit(Event.RECORD_REJECTED, topic=row.fields[0], seq=row.seq, reason=reason)
        receipt = self._receipts.pop(row.seq, None) or Receipt(self, row.fields, 0.0, spooled=True)
        self._watched.discard(receipt)
        self.failures.fail(
            receipt,
            DeliveryFailed(
                f"record {row.seq} for topic {row.fields[0]!r} can't be taken by Kafka: {reason}. It is kept in "
                f"rejected().",
                as_record(row.fields),
                failure.error,
            ),
        )

    def _block(self, failure: _Failure) -> None:
        """Not the record's fault: nothing is rejected for it. The record is sent again, after a pause that grows."""
        topic = failure.row.fields[0]
        if topic not in self._blocked:
            self._blocked.add(topic)
            emit(Event.TOPIC_BLOCKED, topic=topic, error=failure.error.name(), detail=failure.error.str())
        self._pause()

    def _pause(self) -> None:
        now = time.monotonic()
        if now >= self._not_before:
            self._not_before = now + self._backoff
            self._backoff = min(self._backoff * 2, _BACKOFF_SECONDS[1])

    def _on_fatal(self, error: KafkaError) -> None:
        if self._fatal is None:
            self._fatal = error
            self._fatal_until = time.monotonic() + _FATAL_WAIT_SECONDS

    def _rebuild(self, sent_again: int) -> None:
        assert self._fatal is not None
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self.client, self._watch = self._make_client()
        if self._fatal.code() != KafkaError._GAPLESS_GUARANTEE:  # that one is how we keep order, and no fault
            emit(
                Event.CLIENT_REBUILT, error=self._fatal.name(), detail=self._fatal.str(), records_sent_again=sent_again
            )
            self._pause()
        self._fatal = None

    def _purge(self) -> None:
        self.client.purge()
        give_up = time.monotonic() + _PURGE_SECONDS
        while self._in_flight and time.monotonic() < give_up:
            self._poll(_POLL_SECONDS)

    def _end(self) -> None:
        if self._in_flight:
            self._purge()  # or the client would go on sending records that we no longer see acknowledged
        self._acknowledge(at_once=True)
        if self._journal.count:
            emit(
                Event.SPOOL_LEFT,
                spool=str(self._spool.folder),
                records=self._journal.count,
                remedy="they are sent by the next start of a producer with this spool",
            )

    def _abandon_receipts(self) -> None:
        for receipt in list(self._receipts.values()):
            fields = receipt._fields
            if not receipt.done() and fields is not None:
                receipt._resolve(
                    DeliveryUnknown(
                        f"record for topic {fields[0]!r} is on the disk in {str(self._spool.folder)!r}, not "
                        f"known to be in Kafka: "
                        "the producer ended first. The next start sends it.",
                        as_record(fields),
                    )
                )
        self._watched.clear()
