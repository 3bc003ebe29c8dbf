"""What goes from the journals to Kafka, and in which order. All of it runs on the delivery thread (`direct.py`), which
calls `turn` between two looks at the client; that one deals with everything that goes wrong on the way.

Order (P3): the records of a lane are handed over by ascending number. Some wait meanwhile: those of a topic that
refuses records, and of a partition that is stuck (without a leader, say) while others flow. They are passed over, left
on the disk, and where the first of them stands is remembered; when the reason is gone, reading starts there again, and
passes over what is with the client or done. So a topic, or a partition, is always sent in the order of its numbers.

Window: `_WINDOW` records are with the client at most, which bounds memory and the duplicates of a crash. A partition
is stuck when its oldest record has been with the client for `_STUCK_SECONDS` and nothing moves; of the window such
partitions get half.

Records come from memory (`fresh`, filled by those who append) while the sender keeps up, else from the disk. A gap in
`fresh` is read from the disk: nothing but the numbers is trusted.

Acks: what Kafka has is deleted in batches, whatever is still open below it.

Lanes: the own one first, then those of dead processes, one by one; each is given back when it is empty.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from time import monotonic, time
from typing import TYPE_CHECKING, TypeAlias

from confluent_kafka import KafkaError, KafkaException

from safekafka.errors import (
    DeliveryError,
    SafeKafkaError,
    SpoolCorruptError,
    SpoolFullError,
    SpoolUnusableError,
)
from safekafka.observe import Event, emit
from safekafka.record import Fields
from safekafka.spool.config import Spool
from safekafka.spool.crashpoint import passing
from safekafka.spool.journal import shown
from safekafka.spool.lane import Identity, Lane, orphans, tell_loss
from safekafka.spool.partitioner import partition_of
from safekafka.spool.retention import RetentionWatch

if TYPE_CHECKING:
    from safekafka.spool.spooled import SpooledDelivery, SpooledReceipt

# A topic that refuses records, or one of its partitions that is stuck (None: where no key decides)
Group: TypeAlias = "str | tuple[str, int | None]"

WINDOW = 20_000
_WINDOW_BYTES = 64 << 20
_FRESH_BYTES = 16 << 20
_FRESH_RECORDS = 20_000
_PORTION = 1_000
_READ_BYTES = 4 << 20
_ACK_ROWS = 5_000
_ACK_SECONDS = 0.1
_PAUSE_SECONDS = 0.5  # after the disk refused
_STUCK_SECONDS = 2.0
_STUCK_LOOK_SECONDS = 0.25
_KEEP_HOUSE_SECONDS = 0.1
_ADOPT_AFTER_SECONDS = 5.0  # siblings that start together take their own lanes first
_ADOPT_SECONDS = 10.0
_AGE_SECONDS = 5.0
_ASK_SECONDS = 5.0


class _Ref(weakref.ref["SpooledReceipt"]):
    __slots__ = ("seq",)
    seq: int


class _Receipts:
    """Receipts of records that are only on the disk, by number: weak, so a program that keeps none pays no memory in an
    outage. As `weakref.WeakValueDictionary`, at a third of its cost. Each step is atomic."""

    def __init__(self) -> None:
        refs: dict[int, _Ref] = {}
        self._refs = refs

        def forget(ref: _Ref) -> None:
            if refs.get(ref.seq) is ref:
                del refs[ref.seq]

        self._forget = forget

    def __len__(self) -> int:
        return len(self._refs)

    def add(self, receipt: SpooledReceipt) -> None:
        ref = _Ref(receipt, self._forget)
        ref.seq = receipt._seq
        self._refs[ref.seq] = ref

    def pop(self, seq: int) -> SpooledReceipt | None:
        ref = self._refs.pop(seq, None)
        return None if ref is None else ref()

    def all(self) -> list[SpooledReceipt]:
        return [receipt for ref in list(self._refs.values()) if (receipt := ref()) is not None]


class LaneDrain:
    """One lane's way to Kafka."""

    def __init__(self, sender: Sender, lane: Lane, *, own: bool) -> None:
        self.sender = sender
        self.lane = lane
        self.journal = lane.journal
        self.id = lane.id.encode()
        self.own = own
        self.cursor = 1  # the next number to hand over
        self.announced = lane.journal.last_seq  # read up to here: what comes behind may not have its receipt yet
        self.rows: deque[SpooledReceipt] = deque()  # read from the disk
        self.fresh: deque[SpooledReceipt] = deque()  # from memory; filled by those who append, under the writer's lock
        self.fresh_in = self.fresh_out = 0  # bytes; the one is the appenders', the other ours
        self.open: dict[int, SpooledReceipt] = {}  # with the client, or held back on its way
        self.open_bytes = 0
        self.done: dict[int, int] = {}  # Kafka has them; number and size, not yet deleted
        # Kafka can never take them; the disk has not moved them yet. With what the receipt is told, and the reason.
        self.rejecting: dict[int, tuple[SpooledReceipt, DeliveryError, str]] = {}
        self.skipped: dict[Group, int] = {}  # where to start again for each
        self.settled = 0  # `settled_below`, for those who wait
        self.receipts = _Receipts()

    @property
    def settled_below(self) -> int:
        """Every number below is delivered, rejected or set aside."""
        lowest = [self.cursor, *self.skipped.values()]
        for some in (self.open, self.rejecting, self.done):
            if some:
                lowest.append(min(some))
        return min(lowest)

    def accepted(self, first: int, receipts: Sequence[SpooledReceipt], rows: Sequence[bytes]) -> None:
        """They are in the journal. By those who append, under the writer's lock."""
        room = len(self.fresh) < _FRESH_RECORDS and self.fresh_in - self.fresh_out < _FRESH_BYTES
        for seq, (receipt, row) in enumerate(zip(receipts, rows, strict=True), first):
            receipt._seq = seq
            receipt._size = size = len(row)
            if room:
                self.fresh_in += size
                self.fresh.append(receipt)
            else:
                self.receipts.add(receipt)
        self.announced = first + len(receipts) - 1

    def ready(self) -> deque[SpooledReceipt] | None:
        """The line whose first is the record to hand over next."""
        rows, fresh = self.rows, self.fresh
        while True:
            cursor = self.cursor
            while rows and rows[0]._seq < cursor:
                rows.popleft()
            if rows:
                return rows
            while fresh and fresh[0]._seq < cursor:
                self.fresh_out += fresh.popleft()._size
            if fresh and fresh[0]._seq == cursor:
                return fresh
            last = fresh[0]._seq - 1 if fresh else self.announced
            if cursor > last:
                return None
            if not self._read(last):
                self.cursor = last + 1

    def take(self, count: int, size: int, wait_with: Callable[[Fields], Group | None] | None) -> list[SpooledReceipt]:
        """The next records, at most so many and so large; they count as open. Those that have to wait are passed
        over."""
        line = self.ready()
        taken: list[SpooledReceipt] = []
        if line is None:
            return taken
        in_order = line is self.fresh  # what is missing between two of them is on the disk
        cursor = self.cursor
        while line and len(taken) < count:
            receipt = line[0]
            seq = receipt._seq
            if in_order and seq != cursor:
                break
            group = None if wait_with is None else wait_with(receipt.fields())
            if group is None:
                size -= receipt._size
                if size < 0 and (taken or self.open):
                    break
                self.open[seq] = receipt
                self.open_bytes += receipt._size
                taken.append(receipt)
            else:
                self.skipped.setdefault(group, seq)
                self.receipts.add(receipt)
            self.cursor = cursor = seq + 1
            line.popleft()
            if in_order:
                self.fresh_out += receipt._size
        return taken

    def refused(self, receipt: SpooledReceipt, failure: DeliveryError, reason: str) -> None:
        """For good."""
        if self.open.pop(receipt._seq, None) is not None:
            self.open_bytes -= receipt._size
        self.rejecting[receipt._seq] = receipt, failure, reason

    def start_again(self, groups: Iterable[Group]) -> None:
        seqs = [self.skipped.pop(group) for group in groups]
        if seqs and min(seqs) < self.cursor:
            self.cursor = min(seqs)
            self.rows.clear()

    def _read(self, last: int) -> bool:
        """Rows from the disk, except those that are on their way or done. False if there are none up to `last`."""
        stored, damaged = self.journal.read(self.cursor, last, _PORTION, _READ_BYTES)
        if damaged:
            self.journal.set_aside(damaged)
            emit(Event.RECORD_DAMAGED, lane=str(self.lane.folder), seqs=shown(damaged), records=len(damaged))
        open_, done, rejecting = self.open, self.done, self.rejecting
        known = self.receipts if len(self.receipts) else None
        restored = self.sender.delivery.restored
        for seq, fields, size in stored:
            if seq not in open_ and seq not in done and seq not in rejecting:
                receipt = known.pop(seq) if known is not None else None
                self.rows.append(restored(self, seq, fields, size) if receipt is None else receipt)
        if stored:
            if not self.rows:
                self.cursor = stored[-1][0] + 1
            return True
        return bool(damaged)

    def acknowledge(self) -> None:
        """Delete what Kafka has, move aside what it refused."""
        if self.done:
            passing("after_deliver_before_ack")
            done = self.done.copy()
            self.journal.delete(done, sum(done.values()))
            for seq in done:
                del self.done[seq]
        if self.rejecting:
            rejected = list(self.rejecting.values())
            self.journal.reject([(receipt._seq, receipt._size, reason) for receipt, _, reason in rejected])
            self.rejecting.clear()
            self.sender.delivery.tell_rejected(rejected)


class Sender:
    def __init__(self, delivery: SpooledDelivery, spool: Spool, lane: Lane, partitioner: str) -> None:
        self.delivery = delivery
        self._spool = spool
        self._partitioner = partitioner
        self.own = LaneDrain(self, lane, own=True)
        self.drains = [self.own]
        self._cluster: str | None = None  # once the brokers told
        self._asking: threading.Thread | None = None
        self._blocked_since: dict[str, float] = {}
        self._stuck: set[tuple[str, int | None]] = set()
        self._stuck_seconds = _STUCK_SECONDS + delivery.linger
        self._heads: dict[tuple[str, int | None], tuple[SpooledReceipt, float]] = {}  # the oldest, and since when
        self._stuck_records = 0
        self._partitions: dict[str, int] = {}  # of topics with a stuck partition
        self._looked_at = self._kept_house_at = self._acked_at = 0.0
        self._adopt_at = monotonic() + _ADOPT_AFTER_SECONDS
        self._aged_at = 0.0
        self._too_old = False
        self._not_before = 0.0
        self.failing = False  # the disk refuses
        self.oldest_at: float | None = None  # the time of the oldest record, in s since the epoch
        self.retention = RetentionWatch(delivery.make_admin)

    # ---- called by the delivery thread

    def turn(self) -> int:
        """Delete, feed, keep house. Returns how many records were handed over."""
        now = monotonic()
        if now < self._not_before:
            return 0
        fed = 0
        try:
            self.acknowledge(now)
            self._start_again()
            if self.delivery.accepts_feeding:
                self._look_for_stuck(now)
                fed = self._feed()
            if now - self._kept_house_at > _KEEP_HOUSE_SECONDS:
                self._kept_house_at = now
                self._keep_house(now)
            self.failing = False
        except (SpoolUnusableError, SpoolFullError) as error:  # the disk refused: again later
            if not self.failing:
                emit(Event.SPOOL_SENDER_FAILING, error=str(error))
            self.failing = True
            self._not_before = now + _PAUSE_SECONDS
        except SpoolCorruptError:
            if not self._mend():
                raise
        return fed

    def acknowledge(self, now: float, at_once: bool = False) -> None:
        due = at_once or now - self._acked_at >= _ACK_SECONDS
        acked = False
        for drain in self.drains:
            if drain.rejecting or (drain.done and (due or len(drain.done) >= _ACK_ROWS)):
                drain.acknowledge()
                acked = True
        if acked:
            self._acked_at = now
            self.delivery.acknowledged()

    def settle(self, now: float) -> None:
        """Somebody waits for all to be settled: tell how far it is."""
        with contextlib.suppress(SpoolUnusableError, SpoolFullError):  # `turn` will come to it and tell
            self.acknowledge(now, at_once=True)
        for drain in self.drains:
            drain.settled = drain.settled_below

    @property
    def idle(self) -> bool:
        """Nothing to do before somebody appends: nothing open, nothing to be handed over now."""
        return all(
            not drain.open and not drain.done and not drain.rejecting and drain.cursor > drain.announced
            for drain in self.drains
        )

    @property
    def pending(self) -> int:
        return sum(drain.journal.count for drain in self.drains)

    def close(self) -> None:
        """At the end, with the writer's lock held."""
        for drain in self.drains:
            with contextlib.suppress(SafeKafkaError, sqlite3.Error):
                drain.lane.close()

    # ---- feeding

    def _feed(self) -> int:
        fed = 0
        for drain in list(self.drains):
            if not self._is_ours(drain):
                continue
            while fed < _PORTION:
                count, size = self._room()
                waits = self._group_to_wait_with if self._stuck or self.delivery.blocked else None
                before = drain.cursor
                taken = drain.take(min(count, _PORTION), size, waits) if count > 0 else []
                if taken:
                    self.delivery.hand_over(drain, taken)
                    passing("after_hand_over")
                    fed += len(taken)
                elif drain.cursor == before:
                    break
        return fed

    def _room(self) -> tuple[int, int]:
        """How many records and bytes may be handed over now."""
        count = size = done = 0
        for drain in self.drains:
            count += len(drain.open)
            size += drain.open_bytes
            done += len(drain.done)
        if done > WINDOW:  # the disk can't delete as fast
            return 0, 0
        return min(WINDOW - count, WINDOW // 2 - count + self._stuck_records), _WINDOW_BYTES - size

    def _group_to_wait_with(self, fields: Fields) -> Group | None:
        topic, _, key, _, partition, _ = fields
        if topic in self.delivery.blocked:
            return topic
        if self._stuck and topic in self._partitions:
            group = topic, self._partition(topic, key, partition)
            return group if group in self._stuck else None
        return None

    def _start_again(self) -> None:
        """For what waited, and need not wait any longer."""
        for drain in self.drains:
            if drain.skipped:
                free = [
                    group
                    for group in drain.skipped
                    if (group not in self.delivery.blocked if isinstance(group, str) else group not in self._stuck)
                ]
                drain.start_again(free)

    # ---- stuck partitions

    def _look_for_stuck(self, now: float) -> None:
        """A partition is stuck while its oldest record with the client stays the same for `_STUCK_SECONDS`. Looked for
        when half of what may be with the client is there; and not when no broker answers: all stand still then."""
        if now - self._looked_at < _STUCK_LOOK_SECONDS:
            return
        self._looked_at = now
        count = sum(len(drain.open) for drain in self.drains)
        if (count < WINDOW // 4 and not self._stuck) or self.delivery.unreachable:
            self._heads.clear()
            self._set_stuck({})
            return
        heads: dict[tuple[str, int | None], SpooledReceipt] = {}
        counts: Counter[tuple[str, int | None]] = Counter()
        for drain in self.drains:
            for receipt in drain.open.values():
                topic, _, key, _, partition, _ = receipt.fields()
                if topic in self.delivery.blocked:
                    continue
                if topic not in self._partitions:
                    self._partitions[topic] = self._count_partitions(topic)
                group = topic, self._partition(topic, key, partition)
                heads.setdefault(group, receipt)
                counts[group] += 1
        before, self._heads = self._heads, {}
        stuck = {}
        for group, receipt in heads.items():
            known, since = before.get(group, (None, now))
            self._heads[group] = receipt, since if known is receipt else now
            long = known is receipt and now - since > self._stuck_seconds
            if long and (group[1] is not None or counts[group] > WINDOW // 4):
                stuck[group] = counts[group]
        self._set_stuck(stuck)

    def _set_stuck(self, stuck: dict[tuple[str, int | None], int]) -> None:
        for (topic, partition), count in stuck.items():
            if (topic, partition) not in self._stuck:
                emit(Event.PARTITION_STUCK, topic=topic, partition=partition, records=count)
        self._stuck = set(stuck)
        self._stuck_records = sum(stuck.values())
        if not stuck:
            self._partitions.clear()  # their number may change

    def _partition(self, topic: str, key: bytes | None, partition: int) -> int | None:
        if partition >= 0:
            return partition
        count = self._partitions[topic]
        return partition_of(self._partitioner, key, count) if count else None

    def _count_partitions(self, topic: str) -> int:
        with contextlib.suppress(KafkaException, KeyError):
            return len(self.delivery.client.list_topics(topic, 1.0).topics[topic].partitions)
        return 0

    # ---- whose records these are

    def _is_ours(self, drain: LaneDrain) -> bool:
        """Whether the lane is for the cluster that the client is connected to. Records of an earlier process wait until
        that is known, where the lane knows its own."""
        known = drain.lane.identity.cluster
        if self._cluster is None:
            self._ask(drain)
            return known is None
        if known is None:
            drain.lane.belongs_to(drain.lane.identity._replace(cluster=self._cluster))
        elif known != self._cluster:
            self._found_foreign(drain)
            return False
        return True

    def _found_foreign(self, drain: LaneDrain) -> None:
        if drain.own and drain.journal.count:
            raise SafeKafkaError(
                f"spool {str(self._spool.folder)!r} holds {drain.journal.count} records for the cluster "
                f"{drain.lane.identity.cluster}, and the brokers are those of the cluster {self._cluster}. Nothing of "
                "it was sent. Remedy: give this producer a folder of its own, or Spool(name=...); see what is there "
                "with: safekafka spool status"
            )
        if drain.own:
            drain.lane.belongs_to(drain.lane.identity._replace(cluster=self._cluster))
        else:
            emit(Event.LANE_FOREIGN, lane=str(drain.lane.folder), why=f"it is for {drain.lane.identity.cluster}")
            self._give_back(drain)

    def _ask(self, drain: LaneDrain) -> None:
        """The brokers for the cluster's id, on a thread of its own: they may not answer."""
        if self._asking is not None and self._asking.is_alive():
            return
        line = drain.ready()
        if line is None:
            return
        topic, client = line[0].fields()[0], self.delivery.client

        def ask() -> None:
            with contextlib.suppress(Exception):  # no answer: asked again
                cluster = client.list_topics(topic, _ASK_SECONDS).cluster_id
                if cluster:
                    self._cluster = cluster
                self.delivery.ring()

        with contextlib.suppress(RuntimeError):  # no thread to be had, as at the interpreter's exit
            self._asking = threading.Thread(target=ask, name="safekafka-ask", daemon=True)
            self._asking.start()

    # ---- the house

    def _keep_house(self, now: float) -> None:
        for drain in list(self.drains):
            if not drain.own and not drain.journal.count:
                passing("after_adopted_lane_emptied")
                self._give_back(drain)
                continue
            if drain.journal.losses:
                for loss in drain.journal.losses:
                    tell_loss(drain.lane.folder, loss)
                drain.journal.losses.clear()
            drain.journal.give_back_room()
        self._reject_blocked_for_too_long(now)
        if now >= self._adopt_at and self._cluster is not None and len(self.drains) == 1:
            self._adopt_at = now + _ADOPT_SECONDS
            self._adopt()
        if now - self._aged_at > _AGE_SECONDS:
            self._aged_at = now
            self._look_at_age()

    def _adopt(self) -> None:
        lane_identity = self.own.lane.identity
        ours = Identity(lane_identity.spool, lane_identity.bootstrap, self._cluster)
        for lane in orphans(self._spool, ours):
            if lane.journal.count:
                emit(Event.LANE_ADOPTED, lane=str(lane.folder), records=lane.journal.count, bytes=lane.journal.bytes)
                self.drains.append(LaneDrain(self, lane, own=False))
                return  # the next one when this is done
            lane.close()

    def _give_back(self, drain: LaneDrain) -> None:
        self.drains.remove(drain)
        drain.lane.close()

    def _look_at_age(self) -> None:
        first = self._oldest()
        self.oldest_at = None if first is None else first[1]
        if first is None:
            self._too_old = False
            return
        topic, at = first
        age = time() - at
        limit = self._spool.max_age
        if limit is not None and age > limit:
            if not self._too_old:
                emit(Event.SPOOL_OLD, spool=str(self._spool.folder), age_seconds=round(age), max_age=limit)
            self._too_old = True
        else:
            self._too_old = False
        self.retention.look(topic, age)

    def _oldest(self) -> tuple[str, float] | None:
        found = []
        for drain in self.drains:
            stored, _ = drain.journal.read(1, drain.journal.last_seq, 1, 1)
            found += [(fields[0], fields[5] / 1000) for _, fields, _ in stored]
        return min(found, key=lambda one: one[1], default=None)

    def _reject_blocked_for_too_long(self, now: float) -> None:
        limit = self._spool.reject_blocked_after
        if limit is None:
            return
        blocked = self.delivery.blocked
        self._blocked_since = {topic: self._blocked_since.get(topic, now) for topic in blocked}
        for topic, since in list(self._blocked_since.items()):
            if now - since > limit and topic in blocked:
                self._reject_all(topic, blocked[topic].error, limit)

    def _reject_all(self, topic: str, error: KafkaError, seconds: float) -> None:
        reason = f"its topic refused records for more than {seconds:.0f} s: {error.str()} ({error.name()})"
        self.delivery.reject_held(topic, reason, error)
        for drain in self.drains:
            first = drain.skipped.get(topic)
            if first is None:
                continue
            last = drain.cursor - 1
            while first <= last:
                stored, _ = drain.journal.read(first, last, _PORTION, _READ_BYTES)
                if not stored:
                    break
                first = stored[-1][0] + 1
                for seq, fields, size in stored:
                    if fields[0] == topic and seq not in drain.open and seq not in drain.rejecting:
                        receipt = drain.receipts.pop(seq) or self.delivery.restored(drain, seq, fields, size)
                        self.delivery.reject(receipt, reason, error)
                drain.acknowledge()

    def _mend(self) -> bool:
        """Where SQLite calls a file damaged. Raises where damage is to be refused."""
        damaged = [drain for drain in self.drains if drain.journal.is_damaged()]
        for drain in damaged:
            drain.rows.clear()
            drain.journal.mend()
            emit(Event.SPOOL_MENDED, lane=str(drain.lane.folder), records=drain.journal.count)
        return bool(damaged)
