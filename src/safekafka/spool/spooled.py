"""Delivery through the spool: `send()` writes the record to the journal, one sender thread hands it to Kafka, in order,
until it has it.

Threads
- Callers: `send` appends and commits on the caller's thread; `flush` waits; `close` stops the sender and waits for it.
- The sender thread: feeds and rebuilds the client, reads and deletes journal rows, resolves receipts.

Locks, in this order: `_appending` (a row is written, its receipt registered and the row announced to the sender in one
step, so the sender never reads a row whose receipt it can't find), then the journal's own. `_progress` (a condition:
"appended" towards an idle sender, "acknowledged" towards waiting callers) is taken alone. No user code runs under any
of them. `_appender` is the thread that holds `_appending`: a signal handler on top of it must not wait for the lock.

Order of records (P3): rows are read by ascending sequence number and handed over in that order. As soon as one of them
comes back with an error, feeding stops, everything in flight is waited for, what was delivered is deleted, and reading
starts again at the lowest row left: what is sent next is again the oldest of each partition. A verdict on a batch is
not a verdict on a record, so what failed is then sent one by one, and only a record that fails alone is rejected.
`enable.gapless.guarantee` makes the client stop at a failed batch; without it the batches behind it would pass it by.
Nothing expires (`message.timeout.ms=0`), so an outage produces no error at all.

Known limits of this first version: a topic that refuses records holds back the topics behind it; rows are always read
back from the disk; a row that is damaged on the disk stops the sender.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from safekafka.client import ClusterWatch
from safekafka.errors import (
    DeliveryFailed,
    DeliveryUnknown,
    SafeKafkaError,
    SpoolFullError,
    SpoolUnusableError,
)
from safekafka.observe import Event, emit
from safekafka.producer.health import ProducerStats
from safekafka.producer.outcomes import OnUndelivered
from safekafka.producer.receipt import Receipt, SpooledReceipt, tell_raw
from safekafka.producer.way import PURGE_SECONDS, Way
from safekafka.record import Fields, as_record
from safekafka.spool.config import Spool
from safekafka.spool.journal import Journal, RejectedRecord, StoredRecord
from safekafka.verdict import Verdict, judge, refusal_of

_WINDOW_RECORDS = 10_000  # with the client at any time: bounds memory, and the duplicates of a crash
_WINDOW_BYTES = 32 << 20
_READ_ROWS = 1_000
_READ_BYTES = 8 << 20
_ACK_ROWS = 1_000
_ACK_SECONDS = 0.1
_POLL_SECONDS = 0.01
_IDLE_SECONDS = 0.5
_BACKOFF_SECONDS = (0.1, 5.0)
_FATAL_WAIT_SECONDS = 30.0  # requests in flight at a fatal error may still succeed; their reports are waited for


class _Failure(NamedTuple):
    row: StoredRecord
    error: KafkaError
    alone: bool  # nothing else was in the same batch, so the verdict is on this record


class SpooledDelivery(Way):
    """Owns the journal. Made open; `close` ends it for good; what is left stays on the disk."""

    def __init__(
        self,
        make_client: Callable[[], tuple[Producer, ClusterWatch]],
        spool: Spool,
        *,
        max_block: float,
        on_undelivered: OnUndelivered | None,
    ) -> None:
        client, watch = make_client()  # first: bad settings must not leave a folder behind
        super().__init__(client, watch, on_undelivered, "safekafka-spool-sender")
        self._journal = Journal(spool)
        self._make_client = make_client
        self._spool = spool
        self._max_block = max_block
        self._appending = threading.Lock()
        self._appender: int | None = None
        self._idle = False
        # Receipts of this process by sequence number: weak, so a program that keeps none pays no memory in an outage
        # ...
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
        self._acked_at = time.monotonic()
        self._failed: list[_Failure] = []
        self._one_by_one_to = 0  # up to this sequence number records are sent singly
        self._single = False  # what is in flight is such a one
        self._fatal: KafkaError | None = None
        self._fatal_until = 0.0
        self._backoff = _BACKOFF_SECONDS[0]
        self._not_before = 0.0
        self._blocked: set[str] = set()
        self._settled = 0  # delivered or rejected
        self._polled = 0  # of them, those that poll() has told of
        self._rebuilds = 0
        self._sent_again = 0
        if self._journal.count:
            emit(
                Event.SPOOL_RECOVERED,
                spool=str(spool.folder),
                records=self._journal.count,
                bytes=self._journal.bytes,
            )
        self._thread.start()

    # ---- callers

    def send(self, fields: Fields) -> Receipt:
        return self.send_many([fields])[0]

    def send_many(self, many: Sequence[Fields]) -> list[Receipt]:
        """All of them or none, in one write to the disk."""
        if self._refusal is not None:
            self._raise_refusal()
        # The time of send(), not of the drain after an outage.
        now = int(time.time() * 1000)
        rows: list[Fields] = [(*fields[:5], fields[5] or now) for fields in many]
        if self._journal.bytes >= self._spool.max_bytes:
            self._wait_for_room()
        if self._interrupted_send():
            raise SafeKafkaError(
                "send() from a signal handler that interrupted a send() of the same thread. "
                "Remedy: let the handler set a flag, and send from the program."
            )
        receipts: list[Receipt] = [SpooledReceipt(self, fields) for fields in rows]
        if not receipts:
            return receipts
        with self._appending:
            self._appender = threading.get_ident()
            try:
                if self._refusal is not None:  # closed while we waited; the journal may be closed too
                    raise self._refusal
                last = self._journal.append(rows)
                self._receipts.update(zip(range(last - len(rows) + 1, last + 1), receipts, strict=True))
                self._announced = last
            finally:
                self._appender = None
        if self._idle:
            self._notify()
        return receipts

    def produce(self, fields: Fields, on_delivery: Callable[..., Any]) -> None:
        self.send(fields)._add(lambda receipt: tell_raw(on_delivery, receipt, fields, None))

    def flush(self, timeout: float | None) -> int:
        """Wait until Kafka has every record accepted before. Returns how many of them are still in the spool."""
        self.check_may_wait("flush()")
        target = self._announced
        if self._wait(lambda: self._open_from > target or self._ended, timeout):
            return 0 if self._open_from > target else len(self)
        return self._journal.count_up_to(target)

    def poll(self, timeout: float | None) -> int:
        """Wait for records to be settled. Returns how many were since the last time; 0 at once inside a callback."""
        if self.on_own_thread():
            return 0
        self.check_owned()
        self._wait(lambda: self._settled != self._polled or self._ended, timeout)
        settled = self._settled
        new, self._polled = settled - self._polled, settled
        return new

    def __len__(self) -> int:
        self.check_owned()
        return self._journal.count

    def stats(self) -> ProducerStats:
        pending = len(self)
        return ProducerStats(
            pending=pending,
            held=max(0, pending - len(self._in_flight)),
            delivered=self._settled - self.failures.failed,
            failed=self.failures.failed,
            rebuilds=self._rebuilds,
            sent_again=self._sent_again,
            blocked_topics=tuple(sorted(self._blocked.copy())),
        )

    def problems(self) -> list[str]:
        return super().problems() + [f"topic {topic!r} refuses records" for topic in sorted(self._blocked.copy())]

    def rejected(self) -> list[RejectedRecord]:
        self.check_owned()
        if self._ended and self._refusal is not None:
            raise self._refusal
        return self._journal.rejected()

    # ---- what receipts ask of their owner

    def watched(self, receipt: Receipt) -> None:
        self._watched.add(receipt)
        if receipt.done():
            self._watched.discard(receipt)

    # ---- inside, callers' threads

    def _wait_for_room(self) -> None:
        if self.on_own_thread():
            raise SpoolFullError("the spool is full, and this callback runs on the thread that makes room in it")

        def has_room() -> bool:
            return self._journal.bytes < self._spool.max_bytes or self._refusal is not None

        if not self._wait(has_room, self._max_block):
            raise SpoolFullError(
                f"the spool {str(self._spool.folder)!r} held max_bytes={self._spool.max_bytes} for "
                f"max_block={self._max_block} s; the record was not accepted, nothing was dropped."
                f"{self._watch.diagnosis()} Remedy: send again later, or raise Spool(max_bytes=...)."
            )

    def _interrupted_send(self) -> bool:
        return self._appender == threading.get_ident()

    # ---- the sender thread

    def _work(self) -> None:
        while self._drain_until is None or (self._open() and time.monotonic() < self._drain_until):
            try:
                self._step()
            except (SpoolUnusableError, SpoolFullError) as error:  # the disk refused a read or a deletion: again later
                if time.monotonic() >= self._not_before:
                    emit(Event.SPOOL_SENDER_FAILING, error=str(error))
                self._pause()
                self._poll(_ACK_SECONDS)
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
        while fed < _READ_ROWS:
            if not self._rows and not self._read():
                break
            row = self._rows[0]
            single = row.seq <= self._one_by_one_to
            if self._in_flight and (single or self._single or self._window_full(row)):
                break
            try:
                self._hand_over(row)
            except BufferError:
                if not self._in_flight:  # else reports will make room
                    self._fail_alone(
                        KafkaError(KafkaError._QUEUE_FULL, "the client's buffer has no room for this record")
                    )
                break
            except KafkaException as error:
                self._fail_alone(error.args[0])
                break
            self._rows.popleft()
            self._in_flight[row.seq] = row
            self._in_flight_bytes += row.size
            self._single = single
            fed += 1
        return fed

    def _read(self) -> bool:
        """Read the next rows from the disk; False if there are none."""
        announced = self._announced
        if self._cursor > announced:
            return False
        self._rows.extend(self._journal.read(self._cursor, announced, _READ_ROWS, _READ_BYTES))
        self._cursor = self._rows[-1].seq + 1 if self._rows else announced + 1
        return bool(self._rows)

    def _window_full(self, row: StoredRecord) -> bool:
        return len(self._in_flight) >= _WINDOW_RECORDS or self._in_flight_bytes + row.size > _WINDOW_BYTES

    def _fail_alone(self, error: KafkaError) -> None:
        self._failed.append(_Failure(self._rows.popleft(), error, alone=True))

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
        self._settled += 1
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
        self._serve(seconds, at_once=self._single)  # a lone record need not wait for linger.ms

    def _rest(self) -> None:
        """Nothing is in flight: sleep until something is appended, or the pause is over."""
        with self._progress:
            self._idle = True
            waits = self._cursor > self._announced and not self._rows and not self._failed and self._fatal is None
            paused = self._not_before - time.monotonic()
            if waits and self._drain_until is None:
                self._progress.wait(_ACK_SECONDS if self._delivered else _IDLE_SECONDS)
            elif paused > 0:
                self._progress.wait(min(paused, _ACK_SECONDS))
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
            self._open_from = open_from
            self._notify()

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
        sent_again = len(self._failed) + len(self._in_flight)
        self._failed.sort(key=lambda failure: failure.row.seq, reverse=True)
        while self._failed:
            self._settle_failure(self._failed[-1])  # the disk may refuse: then it is settled at the next turn
            self._failed.pop()
        if self._fatal is not None:
            self._rebuild(sent_again)
        self._rows.clear()
        self._cursor = (
            1  # what was delivered is deleted, so the lowest row is the oldest record that Kafka may not have
        )

    def _settle_failure(self, failure: _Failure) -> None:
        verdict = judge(failure.error)
        if verdict is Verdict.RECORD_BOUND and failure.alone:
            self._reject(failure)
        elif verdict is Verdict.RECORD_BOUND:
            self._one_by_one_to = max(self._one_by_one_to, failure.row.seq)
        elif verdict is Verdict.TOPIC_BOUND or failure.error.code() == KafkaError._QUEUE_FULL:
            self._block(failure)
        else:
            self._pause()

    def _reject(self, failure: _Failure) -> None:
        row, reason = failure.row, refusal_of(failure.error)
        self._journal.reject(row.seq, reason, row.size)
        self._settled += 1
        emit(Event.RECORD_REJECTED, topic=row.fields[0], seq=row.seq, reason=reason)
        receipt = self._receipts.pop(row.seq, None) or SpooledReceipt(self, row.fields)
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
            self._rebuilds += 1
            self._sent_again += sent_again
            emit(
                Event.CLIENT_REBUILT, error=self._fatal.name(), detail=self._fatal.str(), records_sent_again=sent_again
            )
            self._pause()
        self._fatal = None

    def _purge(self) -> None:
        self.client.purge()
        give_up = time.monotonic() + PURGE_SECONDS
        while self._in_flight and time.monotonic() < give_up:
            self._poll(_POLL_SECONDS)

    def _settle(self) -> None:
        try:
            with self._appending:  # a send() that got in before the refusal has registered its receipt by now
                self._journal.close()
        finally:  # though the disk refuses
            self._abandon_receipts()

    def _abandon_receipts(self) -> None:
        for receipt in list(self._receipts.values()):
            fields = receipt._fields
            if not receipt.done() and fields is not None:
                receipt._resolve(
                    DeliveryUnknown(
                        f"record for topic {fields[0]!r} is on the disk in {str(self._spool.folder)!r}, not "
                        f"known to be "
                        "in Kafka: the producer ended first. The next start sends it.",
                        as_record(fields),
                    )
                )
        self._watched.clear()
