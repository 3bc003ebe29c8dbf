"""Delivery through the spool: `send()` writes the record to the journal on the caller's thread, and returns when it is
on the disk. The delivery thread hands the records to Kafka, in order, until it has them.

What `direct.py` and `recovery.py` do for records that are with the client is the same here, with one difference: a
record never expires, and an open fate means that it is sent again (`endless`). New here: who calls `send()` goes to the
writer (`writer.py`), and the delivery thread feeds itself from the journals (`sender.py`).

Threads: callers as in `direct.py`; the delivery thread owns the sender. The writer's lock comes before the journal's,
both after `_progressing` and `_handing_over`, of which no code here takes the one within the other.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from confluent_kafka.admin import AdminClient

from safekafka.client import ClusterWatch
from safekafka.errors import (
    DeliveryError,
    DeliveryFailed,
    DeliveryUnknown,
    SafeKafkaError,
    SpoolCorruptError,
    SpoolFullError,
    SpoolUnusableError,
)
from safekafka.observe import Event, emit
from safekafka.producer.direct import _STRAIGHT, NOT_BELIEVED, DirectDelivery, DirectReceipt, _new
from safekafka.producer.health import ProducerStats
from safekafka.producer.held import BlockedTopic
from safekafka.producer.outcomes import OnUndelivered
from safekafka.producer.receipt import Receipt, tell_raw
from safekafka.record import Fields, as_record
from safekafka.spool.codec import encode
from safekafka.spool.config import Spool
from safekafka.spool.drain import LaneDrain
from safekafka.spool.inspect import rejected_in
from safekafka.spool.journal import Loss, RejectedRecord
from safekafka.spool.lane import Identity, Unusable, own_lane, tell_loss
from safekafka.spool.sender import WINDOW, Sender
from safekafka.spool.writer import Writer
from safekafka.verdict import refusal_of

ID_HEADER = "safekafka.id"
ID_OVERHEAD = 64  # bytes that the header may add to a record
_POLL_SECONDS = 0.002  # while something is with the client; what is appended meanwhile waits so long
_IDLE_SECONDS = 0.1
_FLUSH_SECONDS = 0.02
_INSTANT = 1e-7  # apart from one record to the next; floats of this size can tell it
_FREE_LOOK_SECONDS = 0.25


class SpooledReceipt(DirectReceipt):
    """Of a record that is on the local disk. `_seq` is 0 until it is there."""

    __slots__ = ("_drain", "_seq", "_size")
    _spooled = True
    _owner: SpooledDelivery
    _drain: LaneDrain
    _seq: int
    _size: int

    def to_send(self) -> Fields:
        fields = self._fields
        assert fields is not None
        if not self._owner.record_ids:
            return fields
        topic, value, key, headers, partition, timestamp = fields
        mine = ID_HEADER, b"%b-%d" % (self._drain.id, self._seq)
        return topic, value, key, [mine] if headers is None else [*headers, mine], partition, timestamp

    def _report(self, error: KafkaError | None, message: Message) -> None:
        """As in `DirectReceipt`; and the journal's row may go."""
        owner = self._owner
        if error is None and self in owner._open:
            topic, partition, offset = self._fields[0], message.partition(), message.offset()  # type: ignore[index]
            if offset is None and not owner._known.believes(topic, partition):
                owner._came_back(self, NOT_BELIEVED)
                return
            self._outcome = topic, partition, offset, message.timestamp()  # type: ignore[assignment]
            self._fields = None
            drain, seq, size = self._drain, self._seq, self._size
            drain.done[seq] = size
            if drain.open.pop(seq, None) is not None:
                drain.open_bytes -= size
            if self._callbacks is not None:
                owner._resolved.append(self)
                owner._watched.discard(self)
            del owner._open[self]
            owner._delivered += 1
        else:
            owner._came_back(self, error)


class SpooledDelivery(DirectDelivery):
    """Owns the lane. `close` ends it for good; what is left stays on the disk."""

    endless = True
    _held: Any

    def __init__(
        self,
        make_client: Callable[[bool], tuple[Producer, ClusterWatch]],
        spool: Spool,
        *,
        bootstrap: str,
        partitioner: str,
        queue: tuple[int, int],
        one_at_a_time: bool,
        make_admin: Callable[[], AdminClient],
        max_block: float,
        linger: float,
        on_undelivered: OnUndelivered | None,
    ) -> None:
        super().__init__(  # first: bad settings must not leave a folder behind
            make_client,
            max_records=2 * WINDOW,
            max_bytes=1 << 40,  # the window has bounds of its own
            delivery_timeout=float("inf"),
            max_block=max_block,
            linger=linger,
            partitioner=partitioner,
            one_at_a_time=one_at_a_time,
            on_undelivered=on_undelivered,
            resend_after_fatal=True,
        )
        self._stall_seconds = float("inf")  # nothing expires, so nothing has to be held back for that
        self.linger = linger
        self.make_admin = make_admin
        self.record_ids = spool.record_ids
        self._spool = spool
        self._where = str(spool.folder)
        unusable = Unusable()
        lane = own_lane(spool, Identity(spool.name, normal_bootstrap(bootstrap), None), unusable)
        self._sender = Sender(self, spool, lane, partitioner, queue, unusable)
        self._own = self._sender.own
        self._journal = lane.journal
        self._writer: Writer[SpooledReceipt] = Writer(
            lane.journal, self._own.accepted, self._wait_for_room, lambda: self._refusal
        )
        # Receipts that somebody waits for, or with a callback: kept until they are resolved, though nobody else does.
        self._watched: set[Receipt] = set()
        self._free_looked_at = 0.0
        self._disk_has_room = True
        self._told_full = False
        self._flushed_at = 0.0
        self._sent_at = 0.0  # of the last record handed over
        self._journals_closed = False
        self._gone: dict[LaneDrain, str] = {}  # at the end: those whose journals were deleted, and what that means
        self._rejected = 0
        if lane.journal.count:
            emit(
                Event.SPOOL_RECOVERED,
                spool=str(spool.folder),
                lane=lane.folder.name,
                records=lane.journal.count,
                bytes=lane.journal.bytes,
            )

    # ---- callers

    def send(self, fields: Fields, receipt: DirectReceipt | None = None) -> Receipt:
        return self.send_many((fields,))[0]

    def send_many(self, many: Sequence[Fields]) -> list[Receipt]:
        """All of them or none, in one write to the disk."""
        if self._refusal is not None:
            self._raise_refusal()
        if self._writer.interrupted():
            raise SafeKafkaError(
                "send() from a signal handler that interrupted a send() of the same thread. "
                "Remedy: let the handler set a flag, and send from the program."
            )
        receipts, rows = self._prepared(many)
        if receipts:
            # A callback must not wait for room that only its own thread can make.
            patience = 0.0 if self.on_own_thread() else self._max_block
            self._writer.append(receipts, rows, time.monotonic() + patience)
            if self._parked:
                self.ring()
        return receipts  # type: ignore[return-value]

    async def asend(self, fields: Fields) -> Receipt:
        """`send()` for an event loop: the disk is waited for off the loop, in the order of the calls."""
        await self._raise_refusal_async()
        receipts, rows = self._prepared((fields,))
        await self._writer.append_later(receipts, rows, time.monotonic() + self._max_block)
        if self._parked:
            self.ring()
        return receipts[0]

    def produce(self, fields: Fields, on_delivery: Callable[..., Any]) -> None:
        self.send(fields)._add(lambda receipt: tell_raw(on_delivery, receipt, fields, None))

    def flush(self, timeout: float | None) -> int:
        """Wait until Kafka has every record accepted before, and callbacks have run. Returns how many of them are still
        in the spool."""
        self.check_may_wait("flush()")
        targets = [(drain, drain.journal.last_seq) for drain in self._sender.drains]

        def through() -> bool:
            settled = all(drain.settled > target or not drain.journal.count for drain, target in targets)
            return (settled and not self._resolved) or self._ended

        with self._progressing:
            self._flushing += 1
            try:
                self._wait_at_bell(through, timeout)
            finally:
                self._flushing -= 1
        self._polled = self._reports()
        if self._ended:
            return sum(drain.journal.count for drain, _ in targets)
        return sum(
            drain.journal.count_up_to(target)
            for drain, target in targets
            if drain.journal.count and drain.settled <= target
        )

    def __len__(self) -> int:
        self.check_owned()
        return self._sender.pending

    def stats(self) -> ProducerStats:
        pending = len(self)
        drains = list(self._sender.drains)
        oldest_at = self._sender.oldest_at
        return (
            super()
            .stats()
            ._replace(
                pending=pending,
                held=max(0, pending - sum(len(drain.open) for drain in drains)),
                bytes=sum(drain.journal.bytes for drain in drains),
                rejected=self._count_rejected(),
                lanes=len(drains),
                oldest_pending_seconds=None if oldest_at is None or not pending else max(0.0, time.time() - oldest_at),
            )
        )

    def _count_rejected(self) -> int:
        """As last known, where the disk refuses or the journals are closed: a figure for a dashboard raises nothing."""
        with contextlib.suppress(SpoolUnusableError, SpoolCorruptError):
            if not self._journals_closed:
                self._rejected = sum(drain.journal.rejected_count() for drain in list(self._sender.drains))
        return self._rejected

    def problems(self) -> list[str]:
        found = super().problems()
        if not self._disk_has_room or self._journal.bytes >= self._spool.max_bytes:
            found.append(f"the spool {str(self._spool.folder)!r} is full")
        if self._sender.failing:
            found.append(f"the disk of the spool {str(self._spool.folder)!r} refuses")
        found += self._sender.unusable.problems
        if not self._ended:
            try:
                self._journal.free_bytes()
            except SpoolUnusableError as error:
                found.append(str(error))
        return found

    def rejected(self) -> list[RejectedRecord]:
        self.check_owned()
        if self._ended and self._refusal is not None:
            raise self._refusal
        return rejected_in(self._spool.folder, self._spool.name)

    # ---- what receipts ask of their owner

    def watched(self, receipt: Receipt) -> None:
        self._watched.add(receipt)
        if receipt.done():
            self._watched.discard(receipt)

    # ---- inside, callers' threads

    def _prepared(self, many: Sequence[Fields]) -> tuple[list[SpooledReceipt], list[bytes]]:
        now = int(time.time() * 1000)  # the time of send(), not of the drain after an outage
        drain = self._own
        receipts, rows = [], []
        for topic, value, key, headers, partition, timestamp in many:
            fields = topic, value, key, headers, partition, timestamp or now
            receipt = _new(SpooledReceipt)  # not by __init__: a call for each record
            receipt._owner = self
            receipt._fields = fields
            receipt._outcome = receipt._callbacks = None
            receipt._sent_at = 0.0
            receipt._drain = drain
            receipts.append(receipt)
            rows.append(encode(fields))
        return receipts, rows

    def _interrupted_send(self) -> bool:
        return self._writer.interrupted() or super()._interrupted_send()

    def _wait_for_room(self, deadline: float) -> None:
        if self._has_room():
            return
        if self.on_own_thread():
            raise SpoolFullError("the spool is full, and this callback runs on the thread that makes room in it")
        if not self._told_full:
            self._told_full = True
            emit(Event.SPOOL_FULL, spool=str(self._spool.folder), why=self._what_is_full())
        self._wait_at_bell(lambda: self._has_room() or self._refusal is not None, max(0.0, deadline - time.monotonic()))
        if self._refusal is not None:
            self._raise_refusal()
        if not self._has_room():
            raise SpoolFullError(
                f"the spool {str(self._spool.folder)!r} was full for max_block={self._max_block} s: "
                f"{self._what_is_full()}; the record was not accepted, nothing was dropped.{self._watch.diagnosis()} "
                "Remedy: send again later, raise Spool(max_bytes=...), or free some room on the disk."
            )
        self._told_full = False

    def _has_room(self) -> bool:
        now = time.monotonic()
        if now - self._free_looked_at > _FREE_LOOK_SECONDS:
            self._disk_has_room = self._journal.free_bytes() >= self._spool.min_free_bytes
            self._free_looked_at = now  # last: where the file is gone the next call is told as well
        return self._disk_has_room and self._journal.bytes < self._spool.max_bytes

    def _what_is_full(self) -> str:
        if not self._disk_has_room:
            return f"its disk has less than min_free_bytes={self._spool.min_free_bytes} left"
        return f"it holds max_bytes={self._spool.max_bytes}"

    # ---- the delivery thread: what the sender asks for

    @property
    def accepts_feeding(self) -> bool:
        """Not while records wait on our side that could go: with more behind them the straight way would never open."""
        return self._fatal is None and (self._gate is not None or self._held.first() is None)

    @property
    def unreachable(self) -> bool:
        return bool(self._watch.unreachable_since)

    @property
    def blocked(self) -> dict[str, BlockedTopic]:
        return self._held.blocked  # type: ignore[no-any-return]

    @property
    def waiting(self) -> tuple[int, int]:
        """Records of blocked topics that are on their way, and about how many bytes they are."""
        return (self._held.waiting(), self._held.bytes) if self._held.blocked else (0, 0)

    def restored(self, drain: LaneDrain, seq: int, fields: Fields, size: int) -> SpooledReceipt:
        """The receipt of a record that only the disk knew."""
        receipt = _new(SpooledReceipt)  # not by __init__: a call for each record of a backlog
        receipt._owner = self
        receipt._fields = fields
        receipt._outcome = receipt._callbacks = None
        receipt._sent_at = 0.0
        receipt._drain, receipt._seq, receipt._size = drain, seq, size
        return receipt

    def hand_over(self, drain: LaneDrain, receipts: Sequence[SpooledReceipt]) -> None:
        """To the client, in this order; or, while it is being replaced or a topic refuses, to `_held`."""
        open_, ids, lane = self._open, self.record_ids, drain.id
        sent_at = max(time.monotonic(), self._sent_at)
        for receipt in receipts:
            receipt._sent_at = sent_at = sent_at + _INSTANT  # what comes back is sorted by it
            open_[receipt] = _STRAIGHT
            produce = self._gate
            topic, value, key, headers, partition, timestamp = receipt._fields  # type: ignore[misc]
            if produce is not None and topic in self._known.topics:
                if ids:  # as in `to_send`
                    mine = ID_HEADER, b"%b-%d" % (lane, receipt._seq)
                    headers = [mine] if headers is None else [*headers, mine]
                try:
                    produce(topic, value, key, partition, receipt._report, None, timestamp, headers)
                    continue
                except (BufferError, KafkaException):
                    pass  # `feed` of `recovery.py` will come to the same, and deal with it
            with self._handing_over:
                self._gate = None
                self._held.add(receipt)
        self._sent_at = sent_at

    def acknowledged(self) -> None:
        if self._waiting:
            self._notify()

    def tell_rejected(self, rejected: Iterable[tuple[SpooledReceipt, DeliveryError, str]]) -> None:
        for receipt, failure, reason in rejected:
            emit(Event.RECORD_REJECTED, topic=receipt.fields()[0], seq=receipt._seq, reason=reason)
            self._watched.discard(receipt)
            super()._end([(receipt, failure)])

    def reject_held(self, topic: str, reason: str, error: KafkaError) -> None:
        """The records of a topic that are on their way, but not with the client."""
        with self._handing_over:
            held = [one for one in self._open if one in self._held and one.fields()[0] == topic]
            tried = {one: self._held.tried(one) for one in held}
            for one in held:
                self._held.remove(one)
        for receipt in self._take_out(held):
            self.reject(receipt, reason, error, tried[receipt])

    # ---- the delivery thread: what is different

    def _turn(self, seconds: float) -> None:
        if self._flushing:
            now = time.monotonic()
            if now - self._flushed_at > _FLUSH_SECONDS:
                self._flushed_at = now
                self._sender.settle(now)
        super()._turn(0.0 if self._sender.turn() else seconds)

    def _take_reports(self, seconds: float) -> None:
        if seconds and not self._open and self._sender.idle and self._drain_until is None:
            self._parked = True
            if self._sender.idle:  # once more: who appends now rings
                self._bell.acquire(timeout=min(seconds, _IDLE_SECONDS))
            self._parked = False
            seconds = 0.0
        if self._gate is not None and not self._sender.full:
            seconds = min(seconds, _POLL_SECONDS)
        super()._take_reports(seconds)

    def _end(self, failures: Iterable[tuple[DirectReceipt, DeliveryError]]) -> None:
        """What Kafka can never take goes to `rejected` first; its receipt is told when it is there."""
        for receipt, failure in failures:
            if isinstance(failure, DeliveryFailed):
                assert failure.error is not None
                self.reject(receipt, refusal_of(failure.error), failure.error)
            else:  # it is on the disk: nobody has to handle it by hand
                receipt._resolve(failure)
                self._ending.pop(receipt, None)

    def reject(self, receipt: DirectReceipt, reason: str, error: KafkaError, tried: bool = False) -> None:
        assert isinstance(receipt, SpooledReceipt)
        receipt._drain.refused(receipt, rejection(receipt, reason, error, tried), reason)

    def _work(self) -> None:
        super()._work()
        self._sender.settle(time.monotonic())

    def _settle(self) -> None:
        try:
            if not self._journals_closed:
                self._count_rejected()
                self._journals_closed = True
                try:
                    self._writer.end(self._close_journals)
                finally:
                    self._tell_what_is_left()
        finally:  # though the disk refuses
            super()._settle()
            self._abandon_receipts()

    def _close_journals(self) -> None:
        """With the writer's lock held."""
        for drain in self._sender.drains:
            try:
                drain.journal.free_bytes()
            except SpoolUnusableError as error:
                self._gone[drain] = str(error)
        self._sender.close()

    def _tell_what_is_left(self) -> None:
        """After the writer's lock, under which nothing of the user's may run."""
        left = 0
        for drain in self._sender.drains:
            if drain not in self._gone:
                left += drain.journal.count
            elif lost := drain.journal.count - len(drain.done):  # Kafka has those
                tell_loss(drain.lane.folder, Loss(self._gone[drain], lost, None))
        if left:
            emit(
                Event.SPOOL_LEFT,
                spool=str(self._spool.folder),
                records=left,
                remedy="they are sent by the next start of a producer with this spool",
            )

    def _abandon_receipts(self) -> None:
        left = {*self._own.receipts.all(), *self._own.fresh, *self._own.rows, *self._watched}
        for receipt in left:
            if not receipt.done() and receipt._fields is not None:
                receipt._resolve(self._on_disk(receipt))
        self._watched.clear()

    def _given_up(self, receipt: DirectReceipt, if_held: str, if_with_client: str) -> DeliveryError:
        return self._on_disk(receipt)

    def _on_disk(self, receipt: Receipt) -> DeliveryUnknown:
        assert isinstance(receipt, SpooledReceipt)
        fields = receipt.fields()
        if receipt._drain in self._gone:
            fate = (
                "may or may not be in Kafka: the producer ended first, and the journal in "
                f"{str(receipt._drain.lane.folder)!r}, which had it, was deleted. Remedy: send it again, unless a "
                "duplicate is worse than a loss."
            )
        else:
            fate = (
                f"is on the disk in {self._where!r}, not known to be in Kafka: the producer ended first. "
                "The next start sends it."
            )
        return DeliveryUnknown(f"record for topic {fields[0]!r} {fate}", as_record(fields))


def rejection(receipt: SpooledReceipt, reason: str, error: KafkaError, tried: bool = False) -> DeliveryError:
    """What the receipt of a record is told that was moved aside."""
    fields = receipt.fields()
    kind = DeliveryUnknown if tried else DeliveryFailed
    where = "may or may not be in Kafka" if tried else "is not in Kafka"
    return kind(
        f"record {receipt._seq} for topic {fields[0]!r} {where}: {reason}. It is kept in rejected().",
        as_record(fields),
        error,
    )


def normal_bootstrap(bootstrap: str) -> str:
    """The same list in another order is the same."""
    return ",".join(sorted(part.strip() for part in bootstrap.split(",") if part.strip()))
