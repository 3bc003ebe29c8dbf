"""What goes from the journals to Kafka, and in which order. All of it runs on the delivery thread (`direct.py`), which
calls `turn` between two looks at the client; that one deals with everything that goes wrong on the way.

Order (P3): the records of a lane are handed over by ascending number. Some wait meanwhile: those of a topic that
refuses records, and of a partition that is stuck (without a leader, say) while others flow. They are passed over, left
on the disk, and where the first of them stands is remembered; when the reason is gone, reading starts there again, and
passes over what is with the client or done. So a topic, or a partition, is always sent in the order of its numbers.

Window: `WINDOW` records are with the client, which bounds memory and the duplicates of a crash. What flows gets half of
what is left by topics that refuse and partitions that are stuck (`stuck.py`): so one of them holds half, the next one a
quarter, and there is always room for the others.

Acks: what Kafka has is deleted in batches, whatever is still open below it.

Lanes: the own one first, then those of dead processes; each of these is given back when it is empty.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from time import monotonic, time
from typing import TYPE_CHECKING

from confluent_kafka import KafkaError, KafkaException

from safekafka.errors import SafeKafkaError, SpoolCorruptError, SpoolFullError, SpoolUnusableError
from safekafka.observe import Event, emit
from safekafka.record import Fields
from safekafka.spool.config import Spool
from safekafka.spool.crashpoint import passing
from safekafka.spool.drain import Group, LaneDrain
from safekafka.spool.lane import Identity, Lane, Unusable, orphans, tell_loss
from safekafka.spool.retention import RetentionWatch
from safekafka.spool.stuck import Stuck

if TYPE_CHECKING:
    from safekafka.spool.spooled import SpooledDelivery

WINDOW = 20_000
_WINDOW_BYTES = 64 << 20
_PORTION = 1_000
_ACK_ROWS = 5_000
_ACK_SECONDS = 0.1
_PAUSE_SECONDS = 0.5  # after the disk refused
_KEEP_HOUSE_SECONDS = 0.1
_REJECT_SECONDS = 0.2  # at a time
_ADOPT_AFTER_SECONDS = 5.0  # siblings that start together take their own lanes first
_ADOPT_SECONDS = 10.0
_LANES = 8  # at once, the own one included
_AGE_SECONDS = 5.0
_AGE_RECORDS, _AGE_BYTES = 1_000, 1 << 20
_ASK_SECONDS = 5.0


class Sender:
    def __init__(
        self,
        delivery: SpooledDelivery,
        spool: Spool,
        lane: Lane,
        partitioner: str,
        queue: tuple[int, int],
        unusable: Unusable,
    ) -> None:
        """`queue`: the records and bytes that the client takes at most. `unusable`: lanes the start passed over."""
        self.delivery = delivery
        self._queue = queue
        self.unusable = unusable
        self._spool = spool
        self.own = LaneDrain(self, lane, own=True)
        self.drains = [self.own]
        self._cluster: str | None = None  # once the brokers told
        self._asking: threading.Thread | None = None
        self._blocked_since: dict[str, float] = {}
        self._stuck = Stuck(partitioner, self._count_partitions, delivery.linger)
        self._kept_house_at = self._acked_at = 0.0
        self._adopt_at = monotonic() + _ADOPT_AFTER_SECONDS
        self._aged_at = 0.0
        self._too_old = False
        self._not_before = 0.0
        self.full = False  # no record may be handed over before others are acknowledged
        self.failing = False  # the disk refuses
        self.oldest_at: float | None = None  # the time of the oldest record, in s since the epoch
        self.retention = RetentionWatch(delivery.make_admin)

    # ---- called by the delivery thread

    def turn(self) -> int:
        """Delete, feed, keep house. Returns how many records were handed over, or passed over: there may be more."""
        now = monotonic()
        if now < self._not_before:
            return 0
        moved = 0
        try:
            try:
                self.acknowledge(now)
                self._mended()  # before anything goes on, or it would be overtaken
                if self.delivery.accepts_feeding:
                    self._look_for_stuck(now)
                    self._start_again()  # after the look: what it freed is first in line, before anything behind it
                    moved = self._feed()
                if now - self._kept_house_at > _KEEP_HOUSE_SECONDS:
                    self._kept_house_at = now
                    self._keep_house(now)
            except SpoolCorruptError:
                if not self._mend():
                    raise
            self.failing = False
        except (SpoolUnusableError, SpoolFullError) as error:  # the disk refused: again later
            if not self.failing:
                emit(Event.SPOOL_SENDER_FAILING, error=str(error))
            self.failing = True
            self._not_before = now + _PAUSE_SECONDS
        return moved

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
        with contextlib.suppress(SpoolUnusableError, SpoolFullError, SpoolCorruptError):  # `turn` comes to it and tells
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
        """A portion of each lane: reports, callbacks and the other lanes wait meanwhile."""
        return sum([self._feed_from(drain) for drain in list(self.drains) if self._is_ours(drain)])

    def _feed_from(self, drain: LaneDrain) -> int:
        moved = 0
        while moved < _PORTION:
            count, size, alone = self._room()
            self.full = count <= 0
            waits = self._group_to_wait_with if self._stuck.groups or self.delivery.blocked else None
            before = drain.cursor
            taken = drain.take(min(count, _PORTION), size, alone, waits) if count > 0 else []
            if taken:
                self.delivery.hand_over(drain, taken)
                passing("after_hand_over")
            elif drain.cursor == before:
                break
            moved += max(len(taken), drain.cursor - before)
        return moved

    def _room(self) -> tuple[int, int, int]:
        """How many records and bytes may be handed over now, and how large one may be that is larger: where nothing
        flows it has nothing to share with, and would never fit while something waits."""
        count = size = done = 0
        for drain in self.drains:
            count += len(drain.open)
            size += drain.open_bytes
            done += len(drain.done)
        if done > WINDOW:  # the disk can't delete as fast
            return 0, 0, 0
        waiting, waiting_bytes = self._waiting(count, size)
        most, most_bytes = self._window
        count_left = min(_share(most, waiting) - (count - waiting), 2 * most - count)
        size_left = min(_share(most_bytes, waiting_bytes) - (size - waiting_bytes), 2 * most_bytes - size)
        alone = 2 * most_bytes - size if count <= waiting else 0
        return count_left, size_left, alone

    @property
    def _window(self) -> tuple[int, int]:
        """Where the client takes less than twice the window: half of that. What waits may not fill its queue."""
        return min(WINDOW, self._queue[0] // 2), min(_WINDOW_BYTES, self._queue[1] // 2)

    def _waiting(self, count: int, size: int) -> tuple[int, int]:
        """Of so many records and bytes that were handed over: those of which nothing comes before their topic takes
        records again, or their partition."""
        held, held_bytes = self.delivery.waiting
        return min(count, self._stuck.records + held), min(size, self._stuck.bytes + held_bytes)

    def _group_to_wait_with(self, fields: Fields) -> Group | None:
        return fields[0] if fields[0] in self.delivery.blocked else self._stuck.group_of(fields)

    def _start_again(self) -> None:
        """For what waited, and need not wait any longer."""
        for drain in self.drains:
            if drain.skipped:
                waiting = (*self.delivery.blocked, *self._stuck.groups)
                free = [group for group in drain.skipped if group not in waiting]
                drain.start_again(free)

    def _look_for_stuck(self, now: float) -> None:
        if self._stuck.due(now):
            open_ = [] if self.delivery.unreachable else [drain.open.values() for drain in self.drains]
            count = sum(len(drain.open) for drain in self.drains)
            waiting, waiting_bytes = self._waiting(count, sum(drain.open_bytes for drain in self.drains))
            most, most_bytes = self._window
            crowd = _share(most, waiting) // 2, _share(most_bytes, waiting_bytes) // 2
            self._stuck.look(now, open_, self.delivery.blocked, crowd)

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
            drain.lane.learned(self._cluster)
        elif known != self._cluster:
            self._found_foreign(drain)
            return False
        return True

    def _found_foreign(self, drain: LaneDrain) -> None:
        if drain.own and (left := drain.journal.count_up_to(drain.inherited)):
            raise SafeKafkaError(
                f"spool {str(self._spool.folder)!r} holds {left} records for the cluster "
                f"{drain.lane.identity.cluster}, and the brokers are those of the cluster {self._cluster}. Nothing of "
                "it was sent. Remedy: give this producer a folder of its own, or Spool(name=...); see what is there "
                "with: safekafka spool status"
            )
        if drain.own:  # all in it was accepted by this process, for these brokers
            drain.lane.belongs_to(drain.lane.identity._replace(cluster=self._cluster))
        else:
            emit(Event.LANE_FOREIGN, lane=str(drain.lane.folder), why=f"it is for {drain.lane.identity.cluster}")
            self._give_back(drain)

    def _ask(self, drain: LaneDrain) -> None:
        """The brokers for the cluster's id, on a thread of its own: they may not answer."""
        if self._asking is not None and self._asking.is_alive():
            return
        line = drain.ready()
        if line is not None:
            self._ask_by(line[0].fields()[0])

    def _ask_by(self, topic: str | None) -> None:
        client = self.delivery.client

        def ask() -> None:
            with contextlib.suppress(Exception):  # no answer: asked again
                about = {} if topic is None else {"topic": topic}
                cluster = client.list_topics(**about, timeout=_ASK_SECONDS).cluster_id
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
        if now >= self._adopt_at:
            self._adopt_at = now + _ADOPT_SECONDS
            if self._cluster is not None:
                self._adopt()
            elif not self.own.journal.count:  # nothing was sent yet by which it would have become known
                self._ask_by(None)
        pending = self.pending
        if not pending:
            self.oldest_at = None  # else the age of the last backlog would be told for the next record
        if now - self._aged_at > _AGE_SECONDS or (pending and self.oldest_at is None):
            self._aged_at = now
            self._look_at_age()

    def _adopt(self) -> None:
        lane_identity = self.own.lane.identity
        ours = Identity(lane_identity.spool, lane_identity.bootstrap, self._cluster)
        found = orphans(self._spool, ours, self.unusable)
        while len(self.drains) < _LANES and (lane := next(found, None)) is not None:
            if lane.journal.count:
                emit(Event.LANE_ADOPTED, lane=str(lane.folder), records=lane.journal.count, bytes=lane.journal.bytes)
                self.drains.append(LaneDrain(self, lane, own=False))
            else:
                lane.close()

    def _give_back(self, drain: LaneDrain) -> None:
        self.drains.remove(drain)
        drain.lane.close()

    def _look_at_age(self) -> None:
        self.oldest_at = at = self._oldest()
        if at is None:
            self._too_old = False
            return
        age = time() - at
        limit = self._spool.max_age
        if limit is not None and age > limit:
            if not self._too_old:
                emit(Event.SPOOL_OLD, spool=str(self._spool.folder), age_seconds=round(age), max_age=limit)
            self._too_old = True
        else:
            self._too_old = False
        self.retention.look(age, self._ages)

    def _oldest(self) -> float | None:
        found = []
        for drain in self.drains:
            stored, _ = drain.journal.read(1, drain.journal.last_seq, 1, 1)
            found += [fields[5] / 1000 for _, fields, _ in stored]
        return min(found, default=None)

    def _ages(self) -> dict[str, float]:
        """Of each topic's oldest record, in seconds, as far as a bounded look goes: what each lane has in front, what
        is on its way (so the first of each topic that refuses), and what goes next."""
        oldest: dict[str, int] = {}
        for drain in self.drains:
            journal = drain.journal
            found = [receipt.fields() for receipt in drain.open.values()]
            for first in (1, drain.cursor):
                stored, _ = journal.read(first, journal.last_seq, _AGE_RECORDS, _AGE_BYTES)
                found += [fields for _, fields, _ in stored]
            for topic, *_, at in found:
                oldest[topic] = min(oldest.get(topic, at), at)
        now = time()
        return {topic: now - at / 1000 for topic, at in oldest.items()}

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
        until = monotonic() + _REJECT_SECONDS
        for drain in self.drains:
            groups = [group for group in drain.skipped if (group if isinstance(group, str) else group[0]) == topic]
            first = min([drain.skipped[group] for group in groups], default=drain.cursor)
            last = drain.cursor - 1
            while first <= last and monotonic() < until:
                stored = drain.read(first, last, _PORTION)
                first = stored[-1][0] + 1 if stored else last + 1
                for seq, fields, size in stored:
                    waits = seq not in drain.open and seq not in drain.rejecting and seq not in drain.done
                    if fields[0] == topic and waits:
                        receipt = drain.receipts.pop(seq) or self.delivery.restored(drain, seq, fields, size)
                        self.delivery.reject(receipt, reason, error)
                drain.acknowledge()
                for group in groups:  # where to go on, here at the next look
                    drain.skipped[group] = max(first, drain.skipped[group])

    def _mend(self) -> bool:
        """Where SQLite calls a file damaged. Raises where damage is to be refused."""
        damaged = [drain for drain in self.drains if drain.journal.is_damaged()]
        for drain in damaged:
            drain.journal.mend()
            drain.mended = True
            emit(Event.SPOOL_MENDED, lane=str(drain.lane.folder), records=drain.journal.count)
        self._mended()
        return bool(damaged)

    def _mended(self) -> None:
        for drain in self.drains:
            if drain.mended:
                drain.put_back()


def _share(whole: int, waiting: int) -> int:
    """Of the window, for what flows. Never nothing: of many that wait, none may hold up the others."""
    return max((whole - waiting) // 2, whole // 32, 1)
