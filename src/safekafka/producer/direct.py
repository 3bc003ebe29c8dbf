"""Delivery without a spool: `send()` hands the record to librdkafka on the caller's thread; what goes wrong is put
right by one thread.

Threads
- Callers: `send` (any number at once; order is kept per calling thread), `flush`, `close`.
- The delivery thread: takes the reports from the client, runs the user's callbacks, keeps `delivery_timeout`, feeds
  what was held back, and replaces the client. Nobody else decides about a receipt.

The two take turns at high speed, since each report would otherwise be a fight for Python's interpreter lock: a caller
stands still at every 256th record until the delivery thread has taken what reports there are, and that thread takes
none in between. (The caller himself does not take them: a signal handler that raises would lose one.)

Locks, in this order
- `_progressing` (the lock of a condition: "reports came in"), taken by callers that wait (full buffer, flush) and to
  wake them.
- `_handing_over`: a record goes into `_held` or out of it, or the gate opens. Reentrant, for a signal handler that
  sends on top of a send. The common way of a record takes no lock at all.
The user's code runs under neither. `_settling` is for the end alone: whoever comes there gives all that is left its
outcome, callbacks included, so it is waited for within bounds. `_bell` is a lock used as a bell, since a signal handler
may ring it at any point: held while silent, released to ring.

A record is in `_open` from before it is handed over until it is reported, so none can be with the client unseen.

The gate (`_gate`) is the client's `produce` while records go straight to it. It is closed (None), and every record goes
through `_held` and the delivery thread, while (1) the client is being replaced, (2) a topic refuses records, (3) a
record waits for the first one of the client in its partition to be acknowledged (`known.py` says why), (4) the cluster
has stopped answering: what was never handed over is definitely not in Kafka when its time is up, and is never
sent behind the program's back. A caller may have gone through the gate just before it closed. He is seen by the record
that he put into `_open` before: it counts as with the client. A client that is fatally ill refuses it, and the caller
finds it taken back; if it was a client given up for another reason, the caller sees another gate afterwards, and tells
the delivery thread of a record that it has not seen (`_passed_by`).

`delivery_timeout` is on the receipt, not inside the client: a finite timeout in the client duplicates and misreports
records in an outage. What the client has goes on there, in the same idempotent session; the receipt is `unknown`.

What goes wrong is put right by `recovery.py`: clients that break off, batches and topics that are refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from time import monotonic, time
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from safekafka.client import ClusterWatch
from safekafka.errors import (
    BufferFullError,
    DeliveryError,
    DeliveryFailed,
    DeliveryUnknown,
    InvalidRecordError,
    SafeKafkaError,
)
from safekafka.observe import Event, emit
from safekafka.producer.health import ProducerStats
from safekafka.producer.held import Held, size_of
from safekafka.producer.known import FORGET_SECONDS, Known, Place
from safekafka.producer.outcomes import OnUndelivered
from safekafka.producer.receipt import Receipt, tell_raw
from safekafka.producer.recovery import BUSY_POLL_SECONDS, Recovery, no_such_partition, not_in_kafka
from safekafka.producer.way import Way
from safekafka.record import Fields, as_record
from safekafka.verdict import Verdict, judge, refusal_of

_POLL_SECONDS = 0.1
_STEP = 256  # a caller at high speed lets the delivery thread have its turn at each so many records
_HIGH_SPEED = 20_000  # records a second
_TURN_SECONDS = 0.001  # not more often
_HOT_SECONDS = 0.01  # so long after a caller came by, the delivery thread waits for the next one; and he for it
_LOOP_SECONDS = 0.001  # the longest that asend() makes its event loop wait for a turn
_LOOK_SECONDS = 0.02
_PORTION = 1_000
STALL_SECONDS = 2.0  # without any report: what comes now is held back
WEDGED_SECONDS = 90.0  # without any report although the cluster is well: the client is replaced
_WEDGED_ASK_SECONDS = 5.0
WELL_SECONDS = 30.0  # so long the cluster must have been well: after an outage a client needs its time
_SETTLE_SECONDS = 1.0
_WAITER_SECONDS = 1.0  # a task called that has not come by then is passed over


# What became of a record in `_open`
_STRAIGHT = 1  # it went through the gate, or waits behind it, and nothing went wrong
_AGAIN = 2  # it came back, and is not in Kafka
_MAYBE = 3  # it came back, and may be in Kafka

NOT_BELIEVED = KafkaError(KafkaError._FAIL, "acknowledged without an offset, which may be a wrong conclusion")

_new = object.__new__


class DirectReceipt(Receipt):
    """Resolved by the client's report itself."""

    __slots__ = ("_sent_at",)
    _owner: DirectDelivery

    def __init__(self, owner: DirectDelivery, fields: Fields) -> None:
        self._owner = owner
        self._fields = fields
        self._outcome = None
        self._callbacks = None
        self._sent_at = 0.0

    def fields(self) -> Fields:
        """Of a record that is not delivered."""
        assert self._fields is not None
        return self._fields

    def to_send(self) -> Fields:
        """The record with the time of `send()`, not of now."""
        fields = self.fields()
        if fields[5]:
            return fields
        sent_at = time() - (monotonic() - self._sent_at)
        return (*fields[:5], int(sent_at * 1000))

    def _report(self, error: KafkaError | None, message: Message) -> None:
        """On the delivery thread, inside the client's poll()."""
        owner = self._owner
        if error is None and self in owner._open:
            topic, partition, offset = self._fields[0], message.partition(), message.offset()  # type: ignore[index]
            if offset is None and not owner._known.believes(topic, partition):
                owner._came_back(self, NOT_BELIEVED)
                return
            self._outcome = topic, partition, offset, message.timestamp()  # type: ignore[assignment]
            self._fields = None
            if self._callbacks is not None:
                owner._resolved.append(self)
            del owner._open[self]  # last: who does not find it there finds the outcome, and its callbacks due
            owner._delivered += 1
        else:
            owner._came_back(self, error)


class RawReceipt(DirectReceipt):
    """Of a record whose outcome is told to an `on_delivery` of the raw client's kind, and to nobody else."""

    __slots__ = ("_about", "_message")

    def __init__(self, owner: DirectDelivery, fields: Fields, on_delivery: Callable[..., Any]) -> None:
        super().__init__(owner, fields)
        self._about = fields
        self._message: Message | None = None
        self._callbacks = [on_delivery]

    def _report(self, error: KafkaError | None, message: Message) -> None:
        self._message = message if error is None else None
        DirectReceipt._report(self, error, message)

    def _call_back(self) -> None:
        while self._callbacks:
            tell_raw(self._callbacks.pop(), self, self._about, self._message)


class DirectDelivery(Way):
    """Made open, and running after `start()`; `close` ends it for good."""

    endless = False  # whether a record waits for as long as it takes, and an open fate means: again

    def __init__(
        self,
        make_client: Callable[[bool], tuple[Producer, ClusterWatch]],
        *,
        max_records: int,
        max_bytes: int,
        delivery_timeout: float,
        max_block: float,
        linger: float,
        partitioner: str,
        one_at_a_time: bool,
        on_undelivered: OnUndelivered | None,
        resend_after_fatal: bool,
    ) -> None:
        client, watch = make_client(True)
        super().__init__(client, watch, on_undelivered, "safekafka-delivery")
        self._make_client = make_client
        self._max_records = max_records
        self._max_bytes = max_bytes
        self._delivery_timeout = delivery_timeout
        self._max_block = max_block
        self._stall_seconds = STALL_SECONDS + linger
        self._resend_after_fatal = resend_after_fatal
        self._handing_over = threading.RLock()
        self._settling = threading.Lock()
        self._bell = threading.Lock()
        self._bell.acquire()
        # The client's produce() while records go straight to it; None while they go through `_held`. Closed by any
        # thread, opened by the delivery thread.
        self._gate: Callable[..., None] | None = client.produce
        self._partitioner, self._one_at_a_time = partitioner, one_at_a_time
        self._known = self._new_known()
        # Under _handing_over:
        self._held: Held[DirectReceipt] = Held()
        # Any thread, each step atomic:
        self._sends = 0  # about
        self._open: dict[DirectReceipt, int] = {}  # in the order of send; _STRAIGHT, _AGAIN or _MAYBE
        self._passed_by: deque[DirectReceipt] = deque()  # went to a client that was given up meanwhile, unseen
        # Taken out of _open by the delivery thread, about to get their outcome:
        self._ending: dict[DirectReceipt, bool] = {}
        self._resolved: deque[Receipt] = deque()  # their callbacks are due; the first may be running
        self._fatal: KafkaError | None = None
        self._stepped_at = 0.0
        self._turned_at = 0.0
        self._delivered_before = 0
        self._hot_until = 0.0
        self._turns: deque[threading.Lock] = deque()  # of callers who stand still until reports are taken
        self._waiting = 0  # callers that wait for room or for the end of a flush
        self._flushing = 0
        self._waiters: deque[_Waiter] = deque()  # tasks in asend(), those of a loop in the order they came
        self._line = threading.RLock()  # of `_waiters`, around what changes it
        # The delivery thread's own:
        self._delivered = 0
        self._answers = 0  # reports other than a delivery
        self._late = 0  # of them, those on receipts that had ended
        self._returned: deque[tuple[DirectReceipt, KafkaError]] = deque()  # came back with an error
        self._parked = False  # at the bell, while callers send at high speed
        self._recovery = Recovery(self, make_client)
        self._late_told = 0
        self._looked_at = 0.0
        self._heard_before = 0
        self._unreachable_before = 0.0
        self._progress_at = monotonic()
        self._busy_since = self._progress_at
        self._stalled = False
        self._asked_at = 0.0
        self._well_since: float | None = None  # written by the thread that asks whether the cluster is well
        self._polled = 0  # reports that poll() has told of

    # ---- callers

    def send(self, fields: Fields, receipt: DirectReceipt | None = None) -> Receipt:
        """The common way takes no lock and makes no call that it can do without."""
        if receipt is None:
            receipt = _new(DirectReceipt)  # not by __init__: a call for each record
            receipt._owner = self
            receipt._fields = fields
            receipt._outcome = receipt._callbacks = None
        produce = self._gate
        if produce is not None and fields[0] in self._known.topics:
            topic, value, key, headers, partition, timestamp = fields
            receipt._sent_at = monotonic()
            self._open[receipt] = _STRAIGHT
            try:
                produce(topic, value, key, partition, receipt._report, None, timestamp, headers)
            except (BufferError, KafkaException):
                if self._gate is produce:
                    del self._open[receipt]  # at once: in any call a signal handler may raise
                elif self._taken_back(receipt):
                    return receipt
            except BaseException as error:
                if not _of_signal_handler(error):
                    self._open.pop(receipt, None)
                raise
            else:
                self._sends = sends = self._sends + 1
                if not sends % _STEP or self._gate is not produce:
                    self._after_sending(receipt, produce)
                return receipt
        self._send_when_possible(receipt)
        return receipt

    def produce(self, fields: Fields, on_delivery: Callable[..., Any]) -> None:
        self.send(fields, RawReceipt(self, fields, on_delivery))

    async def asend(self, fields: Fields) -> Receipt:
        """`send()` for an event loop. Tasks that wait for room are let in in the order they came."""
        receipt = DirectReceipt(self, fields)
        if not self._waiters and self._accept(receipt):
            return self._accepted(receipt, _LOOP_SECONDS)
        await self._raise_refusal_async()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._max_block
        waiter = _Waiter(loop)
        with self._line:
            self._waiters.append(waiter)
        alarm = loop.call_at(end, lambda: _let_in(waiter.called))
        try:
            while loop.time() < end:
                self.ring()
                await waiter.called  # not wait_for(): up to Python 3.11 it may swallow a cancellation
                waiter.arm()
                if self._waiters[0] is waiter and self._accept(receipt):
                    return self._accepted(receipt, _LOOP_SECONDS)
                await self._raise_refusal_async()
            raise self._no_room()
        finally:
            alarm.cancel()
            with self._line:
                self._waiters.remove(waiter)
            self._call_first_waiter()  # whoever leaves the line passes the word on

    def _wait_at_bell(self, until: Callable[[], bool], timeout: float | None) -> None:
        """Wait for what the delivery thread does, and let it do that at once."""
        with self._progressing:
            self._waiting += 1
            try:
                self.ring()
                self._wait(until, timeout)
            finally:
                self._waiting -= 1

    def flush(self, timeout: float | None) -> int:
        """Wait for the outcomes of all earlier sends and for their callbacks. Returns how many are still open."""
        self.check_may_wait("flush()")
        open_receipts = deque([*self._open, *self._ending])

        def through() -> bool:
            while open_receipts and not self._pending(open_receipts[0]):
                open_receipts.popleft()
            return (not open_receipts and not self._resolved) or self._ended

        with self._progressing:
            self._flushing += 1
            try:
                self._wait_at_bell(through, timeout)
            finally:
                self._flushing -= 1
        self._polled = self._reports()
        return sum(self._pending(receipt) for receipt in open_receipts)

    def poll(self, timeout: float | None) -> int:
        """Wait for reports. Returns how many came since the last time; 0 at once where waiting would never end."""
        if self.on_own_thread() or self._interrupted_send():
            return 0
        self.check_owned()
        if timeout != 0:  # 0: as code for the raw client calls it, after every record
            self._wait_at_bell(lambda: (self._reports() != self._polled and not self._resolved) or self._ended, timeout)
        reports = self._reports()
        new, self._polled = reports - self._polled, reports
        return new

    def __len__(self) -> int:
        self.check_owned()
        return len(self._open) + len(self._ending)

    def stats(self) -> ProducerStats:
        self.check_owned()
        oldest = self._oldest()
        return ProducerStats(
            pending=len(self._open) + len(self._ending),
            held=len(self._held),
            delivered=self._delivered,
            failed=self.failures.failed,
            unknown=self.failures.unknown,
            late=self._late,
            rebuilds=self._recovery.rebuilds,
            sent_again=self._recovery.sent_again,
            blocked_topics=tuple(sorted(self._held.blocked.copy())),
            oldest_pending_seconds=None if oldest is None else monotonic() - oldest._sent_at,
        )

    def problems(self) -> list[str]:
        found = super().problems()
        if self._fatal is not None:
            found.append(f"the client broke off and is being replaced: {self._fatal.str()} ({self._fatal.name()})")
        found += [
            f"topic {topic!r} refuses records: {blocked.error.str()} ({blocked.error.name()})"
            for topic, blocked in list(self._held.blocked.items())
        ]
        oldest = self._oldest()
        if oldest is not None and (age := monotonic() - oldest._sent_at) > self._delivery_timeout / 2:
            found.append(f"the oldest record has waited for {age:.0f} s of delivery_timeout={self._delivery_timeout} s")
        return found

    def watched(self, receipt: Receipt) -> None:
        self._hot_until = 0.0  # somebody waits: the delivery thread takes the reports again, at once
        self.ring()

    def ring(self) -> None:
        """The delivery thread has something to do. From anywhere, a signal handler included."""
        with contextlib.suppress(RuntimeError):  # it rings already
            self._bell.release()

    def begin_close(self, timeout: float) -> None:
        super().begin_close(timeout)
        self._gate = None
        self.ring()

    def disown(self) -> None:
        super().disown()
        self._gate = None

    # ---- inside, callers' threads

    def _interrupted_send(self) -> bool:
        return self._handing_over._is_owned()  # type: ignore[attr-defined, no-any-return]

    def _pending(self, receipt: DirectReceipt) -> bool:
        """Without an outcome, or its failure is just being told."""
        return receipt in self._open or receipt in self._ending

    def _reports(self) -> int:
        return self._delivered + self.failures.failed + self.failures.unknown

    def _send_when_possible(self, receipt: DirectReceipt) -> None:
        accepted = self._accept(receipt)

        def accept() -> bool:
            nonlocal accepted
            accepted = self._accept(receipt)
            return accepted or self._refusal is not None

        if not accepted and self._refusal is None:
            if self.on_own_thread():
                raise BufferFullError("the buffer is full, and this callback runs on the thread that makes room in it")
            self._wait_at_bell(accept, self._max_block)
        if not accepted:
            self._raise_refusal()  # not under the lock: it may wait
            raise self._no_room()
        self._accepted(receipt)

    def _accepted(self, receipt: DirectReceipt, patience: float = _HOT_SECONDS) -> DirectReceipt:
        self._sends += 1
        if self._ended:  # the thread ended while we sent, so its sweep may have missed this record
            self._settle_all()
        elif not self._sends % _STEP:
            self._take_turns(patience)
        return receipt

    def _after_sending(self, receipt: DirectReceipt, produce: Callable[..., None]) -> None:
        """Every 256th record; and when the gate closed behind this one."""
        if self._ended:  # the thread ended while we sent, so its sweep may have missed this record
            self._settle_all()
        elif self._gate is produce:
            self._take_turns(_HOT_SECONDS)
        else:
            with self._handing_over:
                gone = getattr(produce, "__self__", None) is not self.client
                if gone and self._open.get(receipt) == _STRAIGHT:
                    self._passed_by.append(receipt)
                    self._gate = None
            self.ring()

    def _taken_back(self, receipt: DirectReceipt) -> bool:
        """The client refused the record. Whether it was found in `_open` meanwhile, and so waits on our side now."""
        with self._handing_over:
            if self._open.get(receipt) != _STRAIGHT:
                return True
            del self._open[receipt]
            return False

    async def _raise_refusal_async(self) -> None:
        """`_raise_refusal` for an event loop."""
        while self.ending_by_signal and not self._ended:  # noqa: ASYNC110 - until the process ends
            await asyncio.sleep(_POLL_SECONDS)
        if self._refusal is not None:
            raise self._refusal

    def _no_room(self) -> BufferFullError:
        return BufferFullError(
            f"the buffer stayed full for max_block={self._max_block} s; the record was not accepted, nothing was "
            f"dropped.{self._watch.diagnosis()} Remedy: send again later, raise max_block or "
            "queue.buffering.max.messages, or use spool= to accept records through an outage."
        )

    def _accept(self, receipt: DirectReceipt) -> bool:
        """Hand the record over or hold it back; False if there is no room, or none at all any more (`_refusal`)."""
        with self._handing_over:
            if self._refusal is not None:
                return False
            receipt._sent_at = monotonic()
            produce = self._gate
            if produce is None:
                return self._hold(receipt)
            fields = receipt.fields()
            partition, place = self._known.way(fields)
            report = self._report_to(receipt, place)
            topic, value, key, headers, _, timestamp = fields
            first = self._known.first
            # From here to the client no call, so no signal handler comes between that sends, or raises.
            if place in first:
                self._gate = None
                return self._hold(receipt)
            if place is not None:
                first[place] = True
            self._open[receipt] = _STRAIGHT
            try:
                produce(topic, value, key, partition, report, None, timestamp, headers)
            except BufferError:
                del self._open[receipt]
                first.pop(place, None)
                return False
            except KafkaException as error:
                del self._open[receipt]
                first.pop(place, None)
                return self._refused(receipt, error.args[0])
            except BaseException as error:
                if not _of_signal_handler(error):
                    del self._open[receipt]
                    first.pop(place, None)
                raise
            return True

    def _new_known(self) -> Known:
        return Known(self._partitioner, monotonic(), alone=self._one_at_a_time)

    def _report_to(self, receipt: DirectReceipt, place: Place | None) -> Callable[[KafkaError | None, Message], None]:
        if place is None:
            return receipt._report
        known = self._known

        def report(error: KafkaError | None, message: Message) -> None:
            known.reported(place, message.partition() if error is None else None)
            receipt._report(error, message)

        return report

    def _refused(self, receipt: DirectReceipt, cause: KafkaError) -> bool:
        """The client did not take the record, so this attempt is not in Kafka."""
        fields = receipt.fields()
        verdict = judge(cause)
        if verdict is Verdict.FATAL:
            self._on_fatal(cause)
            return self._hold(receipt)
        if cause.code() == KafkaError._UNKNOWN_PARTITION and fields[4] >= 0:
            raise InvalidRecordError(fields[0], [no_such_partition(fields)]) from KafkaException(cause)
        if verdict is Verdict.TOPIC_BOUND:
            self._gate = None  # the delivery thread will come to the same refusal, and block the topic
            return self._hold(receipt)
        if verdict is Verdict.RECORD_BOUND:
            raise InvalidRecordError(fields[0], [refusal_of(cause)]) from KafkaException(cause)
        raise DeliveryFailed(
            f"the client refused the record: {cause.str()}", as_record(fields), cause
        ) from KafkaException(cause)

    def _hold(self, receipt: DirectReceipt) -> bool:
        if len(self._open) >= self._max_records or (
            self._held.bytes and self._held.bytes + size_of(receipt) > self._max_bytes
        ):
            return False
        self._open[receipt] = _STRAIGHT
        try:
            self._held.add(receipt)
        except BaseException:  # a signal handler's
            if receipt not in self._held:
                del self._open[receipt]
            raise
        self.ring()
        return True

    def _take_turns(self, patience: float) -> None:
        """Every 256th record of a caller: at high speed he stands still until the delivery thread has had its turn."""
        now = monotonic()
        before, self._stepped_at = self._stepped_at, now
        if now - before > _STEP / _HIGH_SPEED or self.on_own_thread():
            return
        self._hot_until = now + _HOT_SECONDS
        if now - self._turned_at < _TURN_SECONDS:
            return
        delivered, self._delivered_before = self._delivered_before, self._delivered
        if self._parked or delivered != self._delivered_before:  # else it waits for reports, and we not for it
            turn = threading.Lock()
            turn.acquire()
            self._turns.append(turn)
            self.ring()
            turn.acquire(timeout=patience)  # a callback may take its time
        self._turned_at = monotonic()

    def _came_back(self, receipt: DirectReceipt, error: KafkaError | None) -> None:
        self._answers += 1
        if receipt not in self._open:  # ended before by delivery_timeout; the program was told "unknown"
            self._late += 1
        elif error is not None:
            self._returned.append((receipt, error))
            if error.fatal() or judge(error) is Verdict.FATAL:
                self._on_fatal(error)

    def _on_fatal(self, error: KafkaError) -> None:
        """The client can't go on. Any thread; the delivery thread puts it right."""
        if self._fatal is None or self._fatal.code() == KafkaError._FATAL:  # produce() does not tell the reason
            self._fatal = error
        self._gate = None
        self.ring()

    def _call_first_waiter(self) -> None:
        """There may be room for the first task in line. He stays the first until he is in, or has gone."""
        with contextlib.suppress(IndexError):
            waiter = self._waiters[0]
            if waiter.call():
                return
            with self._line:  # his loop stands still, or is closed: all its tasks go behind those of the others
                others = [one for one in self._waiters if one.loop is not waiter.loop]
                if others:
                    standing = [one for one in self._waiters if one.loop is waiter.loop]
                    self._waiters = deque([*others, *standing])  # at once: tasks look without the lock who is first
                    others[0].call()

    def _oldest(self) -> DirectReceipt | None:
        return next(iter(self._first_open(1)), None)

    def _first_open(self, count: int) -> list[DirectReceipt]:
        """So many of `_open`, the oldest. Others send meanwhile."""
        while True:
            with contextlib.suppress(RuntimeError):  # the dictionary changed between two steps
                return list(islice(self._open, count))

    # ---- the delivery thread

    def _work(self) -> None:
        while self._drain_until is None:
            self._turn(_POLL_SECONDS)
        self._flushing += 1
        while len(self) and (left := self._drain_until - monotonic()) > 0:
            self._turn(min(_POLL_SECONDS, left))
        if len(self.client):
            self._recovery.purge()

    def _turn(self, seconds: float) -> None:
        if self._gate is None:
            seconds = min(seconds, BUSY_POLL_SECONDS)
        self._take_reports(seconds)
        self._tell()
        while self._turns:
            self._turns.popleft().release()
        if self._fatal is not None:
            self._recovery.replace_client()
        elif self._returned:
            self._recovery.settle_returned()
        if self._passed_by:
            with self._handing_over:
                late = [self._passed_by.popleft() for _ in range(len(self._passed_by))]
                self._put_back((receipt, True) for receipt in late if self._open.get(receipt) == _STRAIGHT)
        if self._known.reports:
            self._recovery.settle_first()
        if self._gate is None:
            if self._fatal is None:
                self._recovery.hear_alone()
                self._recovery.feed()
                if self._gate is not None:
                    self._recovery.abandon()
            self._recovery.announce_blocked()
        self._look()
        self._wake_awaiting()
        if self._waiting:
            self._notify()
        if self._waiters:
            self._call_first_waiter()

    def _take_reports(self, seconds: float) -> None:
        if monotonic() < self._hot_until and not self._waiting and not self._waiters and self._gate is not None:
            self._parked = True
            if self._bell.acquire(timeout=_HOT_SECONDS):
                seconds = 0.0
            self._parked = False
        try:
            self._serve(seconds, at_once=self._flushing > 0)
        except KafkaException as error:
            emit(Event.CLIENT_ERROR, error=error.args[0].name(), detail=error.args[0].str(), fatal=False)

    def _tell(self) -> None:
        """Run the callbacks that are due."""
        with contextlib.suppress(IndexError):  # after the thread's end, callers may come here at the same time
            while self._resolved:
                self._resolved[0]._call_back()
                self._resolved.popleft()

    def _end(self, failures: Iterable[tuple[DirectReceipt, DeliveryError]]) -> None:
        """Give the receipts, each in `_ending`, their outcomes."""
        for receipt, failure in failures:
            self.failures.fail(receipt, failure)
            self._ending.pop(receipt, None)

    def _take_out(self, receipts: Iterable[DirectReceipt]) -> list[DirectReceipt]:
        """Move from `_open` to `_ending`: from here on a report on them is late."""
        taken = []
        for receipt in receipts:
            self._ending[receipt] = True
            if self._open.pop(receipt, None):
                taken.append(receipt)
            else:
                del self._ending[receipt]
        return taken

    def _put_back(self, receipts: Iterable[tuple[DirectReceipt, bool]]) -> None:
        """To our side again, each with whether this attempt may be in Kafka. Under `_handing_over`."""
        back = []
        for receipt, tried in receipts:
            maybe = tried or self._open[receipt] == _MAYBE
            self._open[receipt] = _MAYBE if maybe else _AGAIN
            back.append((receipt, maybe))
        self._held.put_back(back)

    def _end_now(self, receipt: DirectReceipt, failure: DeliveryError) -> None:
        self._end((one, failure) for one in self._take_out([receipt]))

    # -- the clock

    def _look(self) -> None:
        now = monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        heard = self._delivered + self._answers
        unreachable_since = self._watch.unreachable_since
        if unreachable_since != self._unreachable_before:
            self._unreachable_before = unreachable_since
            self._heard_before = heard  # what was heard so far came before
        if heard != self._heard_before:
            self._heard_before = heard
            self._progress_at = now
            self._stalled = False
            self._watch.alive()
        if self._late != self._late_told:
            self._late_told, records = self._late, self._late - self._late_told
            emit(Event.LATE_REPORT, records=records)
        if now - self._known.since > FORGET_SECONDS:
            self._recovery.forget_known()
        if not len(self.client):
            self._busy_since = now
        quiet_since = max(self._progress_at, self._busy_since)
        if not self._stalled and len(self.client):
            silent = now - quiet_since > self._stall_seconds
            if silent or (unreachable_since > self._progress_at and not self.endless):
                with self._handing_over:
                    self._stalled, self._gate = True, None
        oldest = self._oldest()
        if oldest is not None and now - oldest._sent_at > self._delivery_timeout:
            self._expire(now - self._delivery_timeout)
        if now - quiet_since > WEDGED_SECONDS:
            self._look_whether_wedged(now, quiet_since)

    def _expire(self, too_old: float) -> None:
        taken: list[DirectReceipt] = []
        while True:
            expired = [receipt for receipt in self._first_open(_PORTION) if receipt._sent_at <= too_old]
            taken += self._take_out(expired)
            if len(expired) < _PORTION:
                break
        limit = f"delivery_timeout={self._delivery_timeout} s"
        self._end(
            (receipt, self._given_up(receipt, f"within {limit} it was not sent", f"no report within {limit}"))
            for receipt in taken
        )

    def _given_up(self, receipt: DirectReceipt, if_held: str, if_with_client: str) -> DeliveryError:
        """How a record ends that we stop waiting for. What no client ever had is definitely not in Kafka."""
        fields = receipt.fields()
        blocked = self._held.blocked.get(fields[0])
        error = None if blocked is None else blocked.error
        because = "" if error is None else f", since its topic refuses records: {error.str()} ({error.name()})"
        with self._handing_over:
            held = receipt in self._held
            tried = not held or self._held.tried(receipt)
            if held:
                self._held.remove(receipt)
        if tried:
            return self._maybe_in_kafka(fields, if_with_client + because, error)
        return not_in_kafka(fields, f"{if_held}{because}.{self._watch.diagnosis()}", error)

    def _look_whether_wedged(self, now: float, quiet_since: float) -> None:
        """No report for long although records are with the client: either the cluster is ill, or the client."""
        if self._fatal is not None or now - self._asked_at < _WEDGED_ASK_SECONDS:
            return
        self._asked_at = now
        stuck = self._recovery.with_client()
        if not stuck:
            return
        if self._well_since is not None and self._well_since < quiet_since:
            self._well_since = None  # found in an earlier silence
        if self._well_since is not None and now - self._well_since > WELL_SECONDS:
            self._well_since = None
            self._recovery.wait_no_longer()
            self._on_fatal(KafkaError(KafkaError._TIMED_OUT, "no report for long, although the cluster is well"))
            return
        topic = stuck[0].fields()[0]
        with contextlib.suppress(RuntimeError):  # no thread to be had, as at the interpreter's exit
            threading.Thread(target=self._ask, args=(topic,), name="safekafka-ask", daemon=True).start()

    def _ask(self, topic: str) -> None:
        """On a thread of its own, with a client of its own: can the topic be written to?"""
        well = False
        with contextlib.suppress(KafkaException, SafeKafkaError):
            client, _ = self._make_client(False)
            metadata = client.list_topics(topic, _WEDGED_ASK_SECONDS).topics[topic]
            well = metadata.error is None and all(
                partition.error is None
                and partition.leader >= 0
                and len(partition.isrs) >= min(2, len(partition.replicas))
                for partition in metadata.partitions.values()
            )
        if not well:
            self._well_since = None
        elif self._well_since is None:
            self._well_since = monotonic()

    # -- the end

    def _settle(self) -> None:
        """Nobody will report any more: give every open record its outcome. On the delivery thread, or after it."""
        self._gate = None
        for waiter in list(self._waiters):
            waiter.call()
        if not self._settling.acquire(timeout=_SETTLE_SECONDS):
            return  # another one does it for all, and a callback keeps him
        try:
            self._recovery.abandon()
            self._tell()
            self._take_out(list(self._open))
            self._end_left()
        finally:
            self._settling.release()
        if self._open:  # it came while we were at it
            self._settle()

    def _end_left(self) -> None:
        left = []
        for receipt in list(self._ending):
            if receipt.done():
                self._ending.pop(receipt, None)
            else:
                left.append(receipt)
        why = "the producer ended before"
        self._end(
            (receipt, self._given_up(receipt, f"{why} it was sent", f"{why} its report came")) for receipt in left
        )

    def _maybe_in_kafka(self, fields: Fields, why: str, error: KafkaError | None = None) -> DeliveryUnknown:
        return DeliveryUnknown(
            f"record for topic {fields[0]!r} may or may not be in Kafka: {why}.{self._watch.diagnosis()}",
            as_record(fields),
            error,
        )


def _of_signal_handler(error: BaseException) -> bool:
    """Whether the exception that the client's `produce()` seems to raise came from a signal handler. Python runs one
    right after the call: the client has taken the record, which stays in `_open` and goes its way."""
    traceback = error.__traceback__
    return isinstance(error, KeyboardInterrupt) or (traceback is not None and traceback.tb_next is not None)


class _Waiter:
    """A task that waits for room."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.arm()

    def arm(self) -> None:
        self.called: asyncio.Future[None] = self.loop.create_future()
        self._called_at: float | None = None

    def call(self) -> bool:
        """Let the task try again. From any thread. False if its loop does not run."""
        now = monotonic()
        if self._called_at is not None:
            return now - self._called_at < _WAITER_SECONDS
        self._called_at = now
        with contextlib.suppress(RuntimeError):
            self.loop.call_soon_threadsafe(_let_in, self.called)
            return True
        return False


def _let_in(called: asyncio.Future[None]) -> None:
    if not called.done():
        called.set_result(None)
