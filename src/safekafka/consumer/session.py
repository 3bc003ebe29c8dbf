"""The poll thread's part: takes messages, holds them back, commits, and lives through rebalances. It knows nothing of
handlers; messages go to a `Pool`.

Threads: all of it on the poll thread (the rebalance and commit callbacks come inside `poll()` and `close()`), except
`seek`, `pause`, `resume` and reading `stats`. Helper threads run the last commit (synchronous), and behind it leave the
group and close the client: while one call of the client hangs, every other one waits for it. They take turns, and the
poll thread waits for them for a bounded time only. Another one asks for the topics' ids.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, TopicPartition

from safekafka.client import ClusterWatch, call_isolated, isolated
from safekafka.consumer.assignment_watch import AssignmentWatch
from safekafka.consumer.lanes import PartitionLanes
from safekafka.consumer.offset_map import decode
from safekafka.consumer.pool import REFILL, Pool, Refill
from safekafka.consumer.positions import Policy, Positions
from safekafka.consumer.progress import FEW, PartitionProgress, Position
from safekafka.consumer.stats import ConsumerStats, Unfinished
from safekafka.consumer.topic_ids import TopicIds
from safekafka.consumer.topic_watch import TopicWatch
from safekafka.consumer.verdict import Verdict, failure_of, is_final, judge
from safekafka.deadletter.marks import is_for
from safekafka.message import with_headers
from safekafka.observe import Event, emit

Key: TypeAlias = "tuple[str, int]"

POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 0.5  # before a pause, which throws away what the client has fetched
_FEW = 100  # messages
_LOOK_SECONDS = 1.0
_ASK_AGAIN_SECONDS = 30.0
_ID_SECONDS = 1.0
_ANSWER_SECONDS = 0.01  # between two looks for one that is on its way
_END_SECONDS = 5.0
_STANDS_SECONDS = 5.0
_SILENT_SECONDS = 10.0  # without an answer to a fetch since a partition was assigned; then twice as long, and so on
_UNANSWERED_SECONDS = 20.0  # at most, until leaders are asked again where one did not answer: that takes seconds
CLOSE_SECONDS = 5.0  # what the end keeps of shutdown_timeout at most, for leaving the group
# What refuses a commit while the group or its coordinator moves.
_COMMIT_AGAIN = frozenset(
    {
        KafkaError.REBALANCE_IN_PROGRESS,
        KafkaError.ILLEGAL_GENERATION,
        KafkaError.STALE_MEMBER_EPOCH,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.NOT_COORDINATOR,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError._TRANSPORT,
        KafkaError._WAIT_COORD,
    }
)


@dataclass(frozen=True)
class Limits:
    """Seconds, messages, bytes."""

    commit_interval: float
    commit_records: int
    drain_timeout: float
    shutdown_timeout: float
    max_in_flight: int
    max_in_flight_bytes: int
    stuck_after: float
    poll_interval: float  # without a poll for so long, the client leaves the group

    @property
    def leaving(self) -> float:
        """What the end keeps for the last commit and for leaving the group, however long handlers take."""
        return min(CLOSE_SECONDS, self.shutdown_timeout / 4)

    @property
    def finishing(self) -> float:
        """What handlers get at the end."""
        return min(self.drain_timeout, self.shutdown_timeout - self.leaving)


class Session:
    """`maps`: whether messages may finish out of order, so that what is finished beyond the frontier is told in the
    commit. `told_once`: whether the group's protocol is one in which an assignment may be missed
    (`assignment_watch.py`). `static`: whether the group keeps the member's place when it ends."""

    def __init__(
        self,
        client: Consumer,
        watch: ClusterWatch,
        group: str,
        topic_ids: TopicIds,
        limits: Limits,
        *,
        start: Policy,
        stop_on_expired: bool,
        maps: bool,
        told_once: bool,
        static: bool,
        on_commit_of_user: Callable[..., None] | None,
    ) -> None:
        self.client = client
        self._watch = watch
        self._group = group
        self._topic_ids = topic_ids
        self._limits = limits
        self._maps = maps
        self._static = static
        self._on_commit_of_user = on_commit_of_user
        self._positions = Positions(
            client,
            start,
            stop_on_expired,
            next_offset=self._next_offset,
            began_again=self._began_again,
            on_committed=self._take_over,
        )
        self.pool: Pool | None = None
        self.stop_requested = threading.Event()
        self.stopped_at: float | None = None  # when that was (monotonic)
        self.stats = ConsumerStats()
        self._paused_by_user: set[Key] = set()
        self.callbacks: dict[str, Callable[[list[TopicPartition]], None]] = {}  # the program's, of rebalances
        self._partitions: dict[Key, PartitionLanes] = {}
        self._taking = False  # inside `take`
        self._finished = self._skipped = self._commits = 0
        self._full_since: float | None = None
        self._standing: set[Key] = set()  # partitions whose frontier has not moved for `_STANDS_SECONDS`
        self._crowded = False  # so much is in flight that each partition has its share only
        self._holds = False  # some partition, by `_hold_standing`
        self._most = 0  # messages of one partition that are in flight
        self._paused = False
        self._pauses_changed = False  # since the last `balance`
        self._commit_sent: dict[Key, tuple[PartitionProgress, Position]] = {}
        self._commit_due = 0.0
        self._finished_at_commit = 0
        self._looked_at = 0.0
        self._frontiers: dict[Key, tuple[int, float]] = {}  # since when it stands there
        self._ends: dict[Key, int] = {}  # of paused partitions, as told by the brokers
        self._ends_at = 0.0
        # No answer to a fetch yet: since when, and how long it may be
        self._silent: dict[Key, tuple[float, float]] = {}
        self._silence_asked_at = -math.inf
        self._silence_pause = 0.0
        self._seen: dict[int, tuple[Message, int, float]] = {}  # what each worker handles, and since when
        self._told_stuck: set[int] = set()
        self._answered = self._looking_for_brokers = False  # a broker did, while none was to be reached
        self._subscribed: list[str] = []
        self._topic_watch = TopicWatch(topic_ids.withheld)
        self._assignment_watch = AssignmentWatch() if told_once else None
        self._read: set[str | None] = set()  # topics that were fetched of; None: partitions came of the group
        # Those that we have no right to any more: since when, and by which partition that was told, if by one
        self._denied: dict[str | None, tuple[float, int | None]] = {}
        self._ids: dict[str, str] = {}  # of topics, as last told
        self._asking: threading.Thread | None = None
        self._ask_at = 0.0
        self._thread: int | None = None  # the poll thread
        self._polled_at = math.inf  # when the last poll ended
        self._missed_polls = False  # before the present one, for so long that the client has left the group
        self._seeks: deque[TopicPartition] = deque()  # asked for by other threads
        self._drained = 0.0  # seconds behind the stop in which handlers were waited for
        self._end = math.inf  # monotonic; set when the end begins
        self._rebalances = 0  # callbacks
        self._closing = False  # leaving the group, and inside the client's close()
        self.helper: threading.Thread | None = None

    def stop(self) -> None:
        """Any thread, and signal handlers."""
        self.stopped_at = self.stopped_at or time.monotonic()
        self.stop_requested.set()

    def subscribe(self, topics: list[str]) -> None:
        self._subscribed = topics
        self.client.subscribe(topics, on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost)

    def unsubscribe(self) -> None:
        self._subscribed = []
        self.client.unsubscribe()

    def position(self, partitions: Iterable[TopicPartition]) -> list[TopicPartition]:
        """The client's own is gone with each assignment."""
        known = {(one.topic, one.partition): self._positions.of((one.topic, one.partition)) for one in partitions}
        return [TopicPartition(*key, OFFSET_INVALID if offset is None else offset) for key, offset in known.items()]

    # ---- taking

    def turn(self) -> None:
        """One step of a consumer whose messages go to the pool."""
        assert self.pool is not None
        self.pool.tend()
        records, size = self.settle()
        stand, stand_size, flow, flow_size = self._hold_standing(records, size)
        limits = self._limits
        # What the others may have is all there is for them: full, and half of it, as it is without any that stand.
        records = flow * limits.max_in_flight // (limits.max_in_flight - stand)
        size = flow_size * limits.max_in_flight_bytes // (limits.max_in_flight_bytes - stand_size)
        refill = self.pool.refill
        if self._waits_for_room(records, size, refill):
            return
        self.balance(records, size)
        runs: list[tuple[PartitionLanes, Sequence[Message]]] = []
        room, size = int(min(limits.max_in_flight - stand, refill.enough)) - flow, stand_size + flow_size
        if self._crowded:
            share, share_of_bytes = self._share()
            room, size = min(room, share), max(size, limits.max_in_flight_bytes - share_of_bytes)
        self.take(lambda *run: runs.append(run), room, size, POLL_SECONDS, refill)
        if runs:
            self.pool.add(runs)
        self.after_take()

    def after_take(self) -> None:
        if self._positions.place():
            self._pauses_changed = True
        self.commit_if_due()
        self._look()
        if not self.stop_requested.is_set():
            self._positions.ask()

    def take(
        self,
        to: Callable[[PartitionLanes, Sequence[Message]], None],
        room: int,
        size: int,
        seconds: float,
        refill: Refill = REFILL,
    ) -> None:
        """At most `room` messages; `size`: the bytes that are in flight."""
        self._thread = threading.get_ident()
        while self._seeks:
            self._seek(self._seeks.popleft())
        if self._taking:
            self._go_back()
        self._taking = True
        self._note_missed_polls()
        message = self.client.poll(seconds)
        self._polled_at = time.monotonic()
        if message is not None:
            messages, lanes = [message], self.lanes_of(message)
            # consume(n) alone would wait for all n; behind a poll() it takes what is there.
            # As if all were as large: there may be as many bytes ready as the client has fetched.
            room_of_bytes = (self._limits.max_in_flight_bytes - size) // max(1, len(message))
            little = 2 * room >= min(self._limits.max_in_flight, refill.enough)
            most = refill.to_fill if little else refill.messages
            more = min(most, room, room_of_bytes) - 1
            if more > 0:
                messages += self.client.consume(more, 0)
                if self.lanes_of(message) is not lanes:  # of an assignment that has ended in there
                    del messages[0]
            self.accept(messages, to)
        self._taking = False

    def _go_back(self) -> None:
        """A signal handler has raised in the middle of taking, in a loop of the program's own, and that goes on: what
        was taken from the client may never have been noted, so it is asked for again. The client has made an end of a
        rebalance whose callback did not get to it, and tells no more of a commit whose answer was not noted."""
        self._commit_sent = {}
        assigned = {(one.topic, one.partition) for one in self.client.assignment()}
        gone = [key for key in self._partitions if key not in assigned and not self._positions.is_out(key)]
        self._give_up([self._partitions[key] for key in gone])
        self._forget([TopicPartition(*key) for key in gone])
        for key in assigned:
            if key not in self._partitions:
                self._partitions[key] = PartitionLanes(PartitionProgress(*key))
                self._pauses_changed = True
            position = self._positions.position(key)
            self._positions.wanted(key, position)
            self._go_to(key, position)

    def _go_to(self, key: Key, offset: int | None) -> None:
        """The client can't seek in a partition that it reads nothing of: that one is assigned anew."""
        if offset is not None:
            with contextlib.suppress(KafkaException):
                self.client.seek(TopicPartition(*key, offset))
                self._positions.moved(key)

    def _note_missed_polls(self) -> None:
        self._missed_polls = time.monotonic() - self._polled_at >= self._limits.poll_interval

    def accept(self, messages: Sequence[Message], to: Callable[[PartitionLanes, Sequence[Message]], None]) -> None:
        errors = list(map(Message.error, messages))
        start = 0
        if any(errors):
            for at, error in enumerate(errors):
                if error is not None:
                    self._accept(messages[start:at], to)
                    self.on_message_error(messages[at], error)
                    start = at + 1
        self._accept(messages[start:], to)

    def _accept(self, messages: Sequence[Message], to: Callable[[PartitionLanes, Sequence[Message]], None]) -> None:
        """Many in few steps: what is done here for each message alone bounds the rate."""
        if not messages:
            return
        places = zip(map(Message.topic, messages), map(Message.partition, messages), strict=True)
        start = 0
        for place, same in itertools.groupby(places):
            end = start + len(list(same))
            lanes = self._partitions.get(place)  # type: ignore[arg-type]
            self._read.add(place[0])
            if self._denied:
                self._has_right(place[0])
            # None: taken together with the revocation of its partition; it is the next owner's, untouched here.
            if lanes is not None and place not in self._positions.astray:
                mine = messages[start:end]
                # Found out first: what is tracked has to be handed on before a signal handler raises.
                others = {one.offset() for one in with_headers(mine) if not is_for(one, self._group)}
                run = lanes.progress.track_run(mine, epochs=self._maps)
                self._skipped += len(mine) - len(run)
                to(lanes, self._without(others, lanes, run) if others else run)
            start = end
        self._watch.alive()

    def _without(
        self, others: Collection[int | None], lanes: PartitionLanes, messages: Sequence[Message]
    ) -> Sequence[Message]:
        """Without those that were replayed for another group."""
        ours = []
        for message in messages:
            if message.offset() in others:
                lanes.progress.done(message.offset())  # type: ignore[arg-type]
            else:
                ours.append(message)
        self._skipped += len(messages) - len(ours)
        return ours

    def on_message_error(self, message: Message, error: KafkaError) -> None:
        verdict = judge(error)
        topic = message.topic()
        if verdict is Verdict.POSITION:
            self._positions.lost((topic, message.partition()), message.offset(), error)  # type: ignore[arg-type]
        elif verdict is Verdict.RIGHTS and topic in self._read and not is_final(error):
            self._lose_right(topic, error, message.partition())
        elif verdict is Verdict.TELL:
            emit(Event.CLIENT_ERROR, error=error.name(), detail=error.str(), topic=topic)
        elif verdict not in (Verdict.AWAITED, Verdict.EXPECTED):
            raise failure_of(error, verdict, (topic, message.partition(), message.offset())) from KafkaException(error)

    def _lose_right(self, topic: str | None, error: KafkaError, partition: int | None = None) -> None:
        """`topic`: None for the group. Told once."""
        if topic not in self._denied:
            self._denied[topic] = time.monotonic(), partition
            emit(
                Event.AUTHORIZATION_LOST,
                topic=topic,
                group=self._group,
                error=error.str(),
                remedy="grant READ on the topic and on the group; it goes on where it was, nothing is lost by waiting",
            )

    def _has_right(self, topic: str | None) -> None:
        denied = self._denied.pop(topic, None)
        if denied is not None:
            emit(
                Event.AUTHORIZATION_REGAINED,
                topic=topic,
                group=self._group,
                seconds=round(time.monotonic() - denied[0], 1),
            )

    @property
    def problems(self) -> list[str]:
        """For `health()`. Any thread."""
        found = [f"the handler has not come back from {message}" for message in self.stuck]
        if diagnosis := self._watch.diagnosis():
            found.append(diagnosis.strip())
        for topic in list(self._denied):
            found.append(f"no right to read {'the group' if topic is None else f'topic {topic!r}'} any more")
        for topic, what in list(self._positions.awaited.items()):
            found.append(f"topic {topic!r} is not read yet: waits for {what}")
        return found + [f"topic {topic!r} is not there" for topic in list(self._topic_watch.unknown)]

    # ---- holding back

    def settle(self) -> tuple[int, int]:
        """See what the workers have finished. Returns what is in flight: messages, bytes."""
        records = size = most = 0
        for lanes in self._partitions.values():
            progress = lanes.progress
            if progress.finished:
                self._finished += progress.settle()
            unfinished = progress.unfinished
            records += unfinished
            size += progress.bytes
            if unfinished > most:
                most = unfinished
        self._most = most
        return records, size

    @property
    def held_back(self) -> bool:
        """No messages are taken until some of those that are in flight are finished."""
        return self._paused

    def _hold_standing(self, records: int, size: int) -> tuple[int, int, int, int]:
        """All partitions that stand still have half of what may be in flight: behind a head that waits for its retry,
        or a handler that does not come back, they would have all of it in the end, and nothing else would flow. Returns
        how many messages and bytes of theirs count, and those of the others."""
        limits, records_of, size_of = self._limits, 0, 0
        # What those that stand have beyond their half counts nowhere else. One that moves once in a while takes anew
        # each time, and there may be many.
        times = 1.5 if self._crowded else 2.0
        many = records >= times * limits.max_in_flight or size >= times * limits.max_in_flight_bytes
        self._crowded = many and len(self._partitions) > 1
        if not (self._standing or self._crowded or self._holds or (self._maps and self._most >= FEW)):
            return 0, 0, records, size
        half, half_of_bytes = limits.max_in_flight // 2, limits.max_in_flight_bytes // 2
        standing = self._standing if len(self._partitions) > 1 else ()
        for key in standing:
            if key in self._partitions:
                records_of += self._partitions[key].progress.unfinished
                size_of += self._partitions[key].progress.bytes
        much = records_of >= half or size_of >= half_of_bytes
        little = records_of <= half // 2 and size_of <= half_of_bytes // 2
        share, share_of_bytes = self._share()
        self._holds = False
        for key, lanes in self._partitions.items():
            held = key in standing and (much or (lanes.held and not little))
            held = held or (self._maps and lanes.progress.may_outgrow(lanes.held))
            if self._crowded:
                part = 2 if lanes.held else 1
                progress = lanes.progress
                held = held or progress.unfinished * part > share or progress.bytes * part > share_of_bytes
            self._holds = self._holds or held
            if lanes.held != held:
                lanes.held = held
                self._pauses_changed = True
        return min(records_of, half), min(size_of, half_of_bytes), records - records_of, size - size_of

    def _share(self) -> tuple[int, int]:
        """What each partition may have where too much is in flight: messages, bytes."""
        limits, partitions = self._limits, 2 * max(1, len(self._partitions))
        return max(1, limits.max_in_flight // partitions), max(1, limits.max_in_flight_bytes // partitions)

    def is_full(self, records: int, size: int) -> bool:
        return records >= self._limits.max_in_flight or size >= self._limits.max_in_flight_bytes

    def _is_low(self, records: int, size: int) -> bool:
        return records <= self._limits.max_in_flight // 2 and size <= self._limits.max_in_flight_bytes // 2

    def _waits_for_room(self, records: int, size: int, refill: Refill) -> bool:
        """Once full, until there is room for many messages, for a bounded time: to take a few at each turn would keep
        the workers from the interpreter."""
        limits = self._limits
        most = min(limits.max_in_flight, refill.enough)
        full = records >= most or self.is_full(records, size)
        room = most - records >= min(most // 2, refill.messages)
        room_of_bytes = size <= limits.max_in_flight_bytes // 2
        if self._paused or not (full or self._full_since) or (room and room_of_bytes):
            self._full_since = None
            return False
        assert self.pool is not None
        now = time.monotonic()
        self._full_since = self._full_since or now
        if now - self._full_since >= _PATIENCE_SECONDS:
            self._full_since = None
            return False
        if self._limits.max_in_flight < _FEW:  # they may be through at once
            self.pool.wait_for_progress(POLL_SECONDS / 2)
        else:
            time.sleep(refill.pause)
        return True

    def balance(self, records: int, size: int) -> None:
        """Hold the flow back while too much is in flight; hysteresis, since a pause throws away what the client has
        fetched. And the partitions whose offset map grows too large, and those that the program paused."""
        pause = self.is_full(records, size) or (self._paused and not self._is_low(records, size))
        if pause == self._paused and not self._pauses_changed:
            return
        # After an assignment too: the client keeps the pause of a partition that comes back, and knows none for a new
        # one.
        self._paused, self._pauses_changed = pause, False
        assignment = self.client.assignment()
        held = [one for one in assignment if pause or self._is_held((one.topic, one.partition))]
        free = [one for one in assignment if not pause and not self._is_held((one.topic, one.partition))]
        if held:
            self.client.pause(held)
        if free:
            self.client.resume(free)

    def _hold_what_is_paused(self, partitions: Iterable[TopicPartition]) -> None:
        """By the program, which is to get nothing of them: the next `balance` is behind the messages that come with
        the assignment."""
        held = [one for one in partitions if (one.topic, one.partition) in self._paused_by_user]
        if held:
            with contextlib.suppress(KafkaException):  # a rebalance goes on: the next `balance` does it
                self.client.pause(held)

    def _is_held(self, key: Key) -> bool:
        lanes = self._partitions.get(key)
        return key in self._paused_by_user or (lanes is not None and (lanes.held or lanes.progress.held_back))

    def pause(self, partitions: Iterable[TopicPartition]) -> None:
        """For the program, until it resumes them; also across rebalances."""
        self._paused_by_user.update((one.topic, one.partition) for one in partitions)
        self._pauses_changed = True

    def resume(self, partitions: Iterable[TopicPartition]) -> None:
        self._paused_by_user.difference_update((one.topic, one.partition) for one in partitions)
        self._pauses_changed = True

    def seek(self, partition: TopicPartition) -> None:
        """Go on at another offset. What was taken before does not count any more. From another
        thread: at the next turn of the poll thread, so that no message of the one position comes behind those of the
        other."""
        key = partition.topic, partition.partition
        if partition.offset < 0:
            raise ValueError(
                f"offset={partition.offset}: give an offset of the log (get_watermark_offsets() tells them)"
            )
        if key not in self._partitions:
            raise ValueError(f"{key[0]}[{key[1]}] is not assigned to this consumer: seek() in on_assign, or afterwards")
        if self._thread == threading.get_ident():
            self._seek(partition)
        else:
            self._seeks.append(partition)

    def _seek(self, partition: TopicPartition) -> None:
        key = partition.topic, partition.partition
        if key in self._partitions:  # else it was taken away meanwhile
            # In this order: a signal handler may raise in between, and then all of it is done later, or nothing.
            self._positions.wanted(key, partition.offset)
            self._began_again(key)
            self._go_to(key, partition.offset)

    # ---- looking

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = now
        self._look_for_stuck(now)
        self._look_for_ends(now)
        self._look_for_brokers(now)
        self._topic_watch.look(now, self._without_partitions())
        self._look_for_rights()
        self._look_for_silence(now)
        if self._assignment_watch is not None and self._assignment_watch.look(now, self._watch.heartbeat_timed_out_at):
            self._join_anew()
        self.stats = self._stats(now)
        if self._maps and now >= self._ask_at:
            self._ask_for_ids()

    def _without_partitions(self) -> list[str]:
        """The topics that we are to read and have no partition of. What a pattern stands for is known of those only
        whose right was lost."""
        assigned = {topic for topic, _ in self._partitions}
        topics = {one for one in self._subscribed if one[0] != "^"}
        if self._has_patterns:
            topics.update(name for name in self._denied if name is not None)
        return sorted(topics - assigned)

    @property
    def _has_patterns(self) -> bool:
        return any(one[0] == "^" for one in self._subscribed)

    def _look_for_rights(self) -> None:
        """Of an idle topic, no message tells of them. The client forgets the end of a log with an answer that denies
        the right to fetch, and knows it with any other."""
        for topic, partition in self._partitions:
            denied = self._denied.get(topic)
            if (topic not in self._read or denied is not None) and self._fetched_end((topic, partition)) is not None:
                self._read.add(topic)
                told_by = None if denied is None else denied[1]
                if told_by in (None, partition) or (topic, told_by) not in self._partitions:
                    self._has_right(topic)
        for topic, error in self._topic_watch.denied.items():
            self._lose_right(topic, error)
        here = {topic for topic, _ in self._partitions}
        for name, (_, told_by) in list(self._denied.items()):
            if name is None or name in self._topic_watch.denied:
                continue
            forgotten = not self._has_patterns or name in self._topic_watch.unknown
            if forgotten and name not in here and name not in self._subscribed:
                del self._denied[name]  # nothing of it is to be read any more, or is there
                continue
            # Of one without partitions here, the brokers have been asked meanwhile.
            if told_by is None or (name not in here and name in self._topic_watch.there):
                self._has_right(name)

    def _look_for_silence(self, now: float) -> None:
        """The client may not fetch from a partition that it has (librdkafka 2.16: now and then of one that was assigned
        before it knew of it, as one added to a topic). If its leader answers us, it is assigned anew."""
        silent = {}
        for key in self._partitions:
            if self._paused or self._is_held(key) or key[0] in self._denied or self._fetched_end(key) is not None:
                continue
            if self._positions.of(key) is not None:  # else it is being looked for
                silent[key] = self._silent.get(key, (now, _SILENT_SECONDS))
        self._silent = silent
        due = [(patience, key) for key, (since, patience) in silent.items() if now - since >= patience]
        if not silent:
            self._silence_pause = 0.0
        if not due or now - self._silence_asked_at < self._silence_pause or self.stop_requested.is_set():
            return
        patience, key = min(due)  # one at a time: its leader may take seconds not to answer
        self._silent[key] = now, 2 * patience
        if self._positions.ends([key]):
            emit(
                Event.CLIENT_ERROR,
                error="no answer",
                detail=f"nothing was fetched of {key[0]}[{key[1]}] for {patience:.0f} s; it is assigned anew",
            )
            self._positions.wanted(key, self._positions.position(key))
            self._silence_pause = 0.0
        else:
            self._silence_pause = min(_UNANSWERED_SECONDS, max(_SILENT_SECONDS, 2 * self._silence_pause))
        self._silence_asked_at = time.monotonic()

    def _join_anew(self) -> None:
        """The revocation that this brings is one in order: what is finished is committed."""
        if self._subscribed:
            emit(Event.ASSIGNMENT_DOUBTFUL, group=self._group)
            self.client.unsubscribe()
            self.subscribe(self._subscribed)

    def _look_for_stuck(self, now: float) -> None:
        if self.pool is None:
            return
        seen = {}
        for handling in list(self.pool.handlings):
            message = handling.message
            if message is None:
                continue
            before, attempt, since = self._seen.get(id(handling), (None, 0, now))
            if before is not message or attempt != handling.attempt:
                since = now
                self._told_stuck.discard(id(handling))
            seen[id(handling)] = message, handling.attempt, since
            if now - since >= self._limits.stuck_after and id(handling) not in self._told_stuck:
                self._told_stuck.add(id(handling))
                emit(
                    Event.HANDLER_STUCK,
                    topic=message.topic(),
                    partition=message.partition(),
                    offset=message.offset(),
                    seconds=round(now - since, 1),
                    revoked=handling.revoked,
                )
        self._seen = seen
        self._told_stuck &= seen.keys()

    def _look_for_ends(self, now: float) -> None:
        """Of logs whose partitions stay paused: the client learns from what it fetches, and fetches nothing there."""
        paused = [key for key in self._partitions if self._paused or self._is_held(key)]
        if not paused:
            self._ends = {}
            self._ends_at = now + _END_SECONDS
        elif now >= self._ends_at and not self.stop_requested.is_set():
            self._ends = self._positions.ends(paused)
            answered = len(self._ends) == len(paused)
            self._ends_at = time.monotonic() + (_END_SECONDS if answered else _UNANSWERED_SECONDS)

    def _look_for_brokers(self, now: float) -> None:
        """The client tells when the last one goes, and not when one is back: on an idle topic nobody would know."""
        if self._answered:
            self._answered = False
            self._watch.alive()
        if not self._watch.unreachable_since or self._looking_for_brokers or not self._subscribed:
            return
        self._looking_for_brokers = True
        topic = next((topic for topic, _ in self._partitions), self._subscribed[0])

        def look() -> None:
            self._answered = self._topic_ids.answer_for(topic)
            self._looking_for_brokers = False

        threading.Thread(target=look, name="safekafka-ask", daemon=True).start()

    @property
    def stuck(self) -> list[str]:
        """The messages whose handlers don't come back."""
        found = []
        for number in list(self._told_stuck):
            entry = self._seen.get(number)
            if entry is not None:
                message = entry[0]
                found.append(f"{message.topic()}[{message.partition()}]@{message.offset()}")
        return found

    def _stats(self, now: float) -> ConsumerStats:
        records = size = 0
        lag: int | None = 0 if self._partitions else None
        oldest: Unfinished | None = None
        frontiers: dict[Key, tuple[int, float]] = {}
        for key, lanes in self._partitions.items():
            progress = lanes.progress
            records += progress.unfinished
            size += progress.bytes
            frontier = progress.frontier
            high = self._high_watermark(key)
            to = frontier if frontier is not None else self._positions.position(key)  # nothing was delivered yet
            lag = None if lag is None or high is None or to is None else lag + max(0, high - to)
            if frontier is not None and progress.unfinished:
                known, since = self._frontiers.get(key, (None, now))
                frontiers[key] = frontier, since if known == frontier else now
                seconds = now - frontiers[key][1]
                if oldest is None or seconds > oldest.seconds:
                    oldest = Unfinished(*key, frontier, seconds)
        self._frontiers = frontiers
        self._standing = {key for key, (_, since) in frontiers.items() if now - since >= _STANDS_SECONDS}
        return ConsumerStats(
            assigned=len(self._partitions),
            in_flight=records,
            in_flight_bytes=size,
            lag=lag,
            oldest_unfinished=oldest,
            finished=self._finished,
            retries=0 if self.pool is None else self.pool.retries,
            dead_lettered=0 if self.pool is None else self.pool.dead_lettered,
            skipped=self._skipped,
            commits=self._commits,
            paused=self._paused or any(lanes.held for lanes in self._partitions.values()),
        )

    def _high_watermark(self, key: Key) -> int | None:
        """As it was told last: no question to the brokers."""
        fetched = self._fetched_end(key)
        return self._ends.get(key) if fetched is None else max(fetched, self._ends.get(key, fetched))

    def _fetched_end(self, key: Key) -> int | None:
        """Of the log, as the last answer told that the client had to fetching."""
        try:
            high: int = self.client.get_watermark_offsets(TopicPartition(*key), cached=True)[1]
        except KafkaException:
            return None
        return high if high >= 0 else None

    # ---- committing

    def commit_if_due(self) -> None:
        now = time.monotonic()
        enough = self._finished - self._finished_at_commit >= self._limits.commit_records
        if (now >= self._commit_due or enough) and not self._commit_sent and not self._missed_polls:
            self._commit_due = now + self._limits.commit_interval
            self._finished_at_commit = self._finished
            self._send_commit(list(self._partitions.values()))

    def _send_commit(self, of: Collection[PartitionLanes]) -> None:
        """Ask for a commit of what is finished; the broker's word comes to `on_commit`, inside a later `poll()`."""
        positions = self._to_commit(of)
        if positions:
            try:
                self.client.commit(offsets=_offsets(positions), asynchronous=True)
                self._commit_sent = positions
            except KafkaException as error:
                emit(Event.COMMIT_FAILED, error=error.args[0].name(), detail=error.args[0].str(), again=True)

    def _to_commit(self, of: Iterable[PartitionLanes]) -> dict[Key, tuple[PartitionProgress, Position]]:
        positions = {}
        for lanes in of:
            progress = lanes.progress
            if progress.finished:
                self._finished += progress.settle()
            held_back = progress.held_back
            position = progress.to_commit()
            if position is not None:
                positions[lanes.place] = progress, position
            if held_back != progress.held_back:
                self._pauses_changed = True
        return positions

    def on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """A failed commit moves nothing: the position is still to be committed, and is at the next interval."""
        sent = self._commit_sent
        asked = {(key, position) for key, (_, position) in sent.items()}
        # Else it answers another one: a start position's, or one that a revocation's has overtaken.
        if asked == {((one.topic, one.partition), Position(one.offset, one.metadata or "")) for one in partitions}:
            self._commit_sent = {}
            self._note_committed(sent, partitions, error)
        if self._on_commit_of_user is not None:
            isolated(self._on_commit_of_user, "on_commit")(error, partitions)

    def _note_committed(
        self,
        sent: dict[Key, tuple[PartitionProgress, Position]],
        partitions: Iterable[TopicPartition],
        error: KafkaError | None = None,
    ) -> None:
        for partition in partitions:
            failure = error or partition.error
            if failure is None:
                self._commits += 1
                progress, position = sent.get((partition.topic, partition.partition), (None, None))
                if progress is not None and position is not None:
                    progress.committed(position)
                continue
            if failure.code() == KafkaError.OFFSET_METADATA_TOO_LARGE:
                self._do_without_maps()
            emit(
                Event.COMMIT_FAILED,
                topic=partition.topic,
                partition=partition.partition,
                error=failure.name(),
                again=True,
            )

    def _do_without_maps(self) -> None:
        """A broker takes less metadata than others do."""
        self._maps = False
        for lanes in self._partitions.values():
            lanes.progress.topic_id = None

    def _commit_at_end(self, until: float) -> None:
        """Commit what is finished and wait for the broker's word, until `until` (monotonic). Without it: redelivery, no
        loss.

        A group in the middle of a rebalance refuses commits until we have rejoined, which takes polling.
        """
        self._wait_for_answer((time.monotonic() + until) / 2)
        told = False
        while positions := self._to_commit(self._partitions.values()):
            refusal = self._commit_sync(positions, until)
            if refusal is None:
                return
            if refusal.code() == KafkaError.OFFSET_METADATA_TOO_LARGE and self._maps:
                self._do_without_maps()
                continue
            again = refusal.code() in _COMMIT_AGAIN and time.monotonic() < until
            if not (again and told):
                emit(Event.COMMIT_FAILED, error=refusal.name(), detail=refusal.str(), again=again)
            told = True
            if not again:
                return
            pause = time.monotonic() + POLL_SECONDS
            try:
                while (left := pause - time.monotonic()) > 0:
                    self.client.poll(left)  # a message that comes now is not tracked: the next owner's
            except KafkaException as error:
                emit(Event.COMMIT_FAILED, error=error.args[0].name(), detail=error.args[0].str(), again=False)
                return

    def _wait_for_answer(self, until: float) -> None:
        """To the commit that is on its way. If its coordinator dies, the client sends it again, behind whatever was
        committed meanwhile, and the group would stand where that one said."""
        with contextlib.suppress(KafkaException):
            while self._commit_sent and time.monotonic() < until:
                self.client.poll(_ANSWER_SECONDS)  # a message that comes now is not tracked: the next owner's

    def _commit_sync(self, positions: dict[Key, tuple[PartitionProgress, Position]], until: float) -> KafkaError | None:
        refusal: KafkaError | None = KafkaError(KafkaError._TIMED_OUT, "no answer in time")

        def commit() -> None:
            nonlocal refusal
            try:
                answer = self.client.commit(offsets=_offsets(positions), asynchronous=False) or []
                refusal = next((partition.error for partition in answer if partition.error), None)
                self._note_committed(positions, [partition for partition in answer if not partition.error])
                if self._on_commit_of_user is not None:
                    call_isolated("on_commit", self._on_commit_of_user, None, answer)
            except KafkaException as error:
                refusal = error.args[0]

        self._bounded(commit, until)
        return refusal

    def _bounded(self, work: Callable[[], None], until: float) -> bool:
        """Run `work` on a helper thread, behind an earlier one that still hangs; False if it has not ended at
        `until`."""
        before = self.helper

        def in_turn() -> None:
            if before is not None:
                before.join()
            work()

        self.helper = threading.Thread(target=in_turn, name="safekafka-commit", daemon=True)
        self.helper.start()
        self.helper.join(max(0.0, until - time.monotonic()))
        return not self.helper.is_alive()

    # ---- what an earlier owner had finished

    def _take_over(self, committed: Sequence[TopicPartition]) -> None:
        """What the metadata of the committed offsets tells; nothing has been taken of these partitions."""
        maps = {(one.topic, one.partition): decode(one.metadata) for one in committed}
        topics = {key[0] for key, map_ in maps.items() if map_ is not None}
        ids = self._topic_ids.ask(topics) if topics else {}
        for key, map_ in maps.items():
            lanes = self._partitions.get(key)
            if map_ is not None and lanes is not None and map_.topic_id == ids.get(key[0]):
                lanes.progress.before = map_
                self._ids[key[0]] = map_.topic_id

    def _next_offset(self, key: Key) -> int | None:
        lanes = self._partitions.get(key)
        return None if lanes is None else lanes.progress.next_offset

    def _began_again(self, key: Key) -> None:
        """Of the partition's messages of before, none counts any more."""
        self._give_up([self._partitions[key]])
        self._partitions[key] = PartitionLanes(PartitionProgress(*key))
        self._pauses_changed = True  # the new one is not held back
        self._ask_at = 0.0

    def _ask_for_ids(self) -> None:
        """For the maps that we write, on a thread of its own. Those of an earlier answer serve until then: a map with
        the id of a topic that is gone is believed by nobody."""
        self._ask_at = time.monotonic() + _ASK_AGAIN_SECONDS
        topics = {topic for topic, _ in self._partitions}
        for (topic, _), lanes in self._partitions.items():
            lanes.progress.topic_id = self._ids.get(topic)
        if not topics or (self._asking is not None and self._asking.is_alive()):
            return
        asked = dict(self._partitions)

        def ask() -> None:
            self._ids.update(self._topic_ids.ask(topics))
            if self._maps:
                for (topic, _), lanes in asked.items():
                    lanes.progress.topic_id = self._ids.get(topic)

        self._asking = threading.Thread(target=ask, name="safekafka-ask", daemon=True)
        self._asking.start()

    # ---- rebalance: librdkafka calls these inside poll() and close()

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._rebalances += 1
        there = self._lanes_of(partitions)
        if there:  # nobody has told that they were taken away: what waits would be handled beside what comes again
            self._give_up(there)
            self._forget(partitions)
        for partition in partitions:
            key = partition.topic, partition.partition
            self._partitions[key] = PartitionLanes(PartitionProgress(*key))
        if self._end == math.inf:  # else nothing is read any more, and there is no time to ask brokers
            self._positions.assign(partitions)
        self._pauses_changed = True
        if self._maps:
            self._ask_for_ids()
        self._call_back("on_assign", partitions)
        self._hold_what_is_paused(partitions)  # in the callback too
        self._read.add(None)
        self._has_right(None)
        if partitions:
            emit(Event.PARTITIONS_ASSIGNED, partitions=_names(partitions))

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """Still ours: let running handlers finish within the deadline, commit what is finished, forget the partitions.

        The commit is sent, not waited for: it is on its way to the coordinator before the rejoin that follows this
        callback. A synchronous one has no timeout, and could not be moved to another thread either: while a callback
        runs, the client lets no other thread in. If the commit fails, the next owner handles some messages again.

        The client says "revoked" too where a rebalance was under way when it left the group for want of polls
        (librdkafka's PR 5604): such partitions are lost.
        """
        self._rebalances += 1
        if self._closing:
            return  # all this was done before the group was left
        if self._missed_polls:
            self._on_lost(_, partitions)
            return
        try:
            self._call_back("on_revoke", partitions)
            lanes = self._lanes_of(partitions)
            if self._end == math.inf:  # else they had their time, and what is left of it is for leaving the group
                self._drain(lanes, time.monotonic() + self._limits.drain_timeout)
            self._send_commit(lanes)
        finally:  # a signal handler may raise in a loop that goes on, and the client gives them away all the same
            self._give_up(self._lanes_of(partitions))
            self._forget(partitions)
        if partitions:
            emit(Event.PARTITIONS_REVOKED, partitions=_names(partitions))

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        """No longer ours: somebody else may have them already. Nothing is committed; late marks fall on objects nobody
        reads."""
        self._rebalances += 1
        self._call_back("on_lost" if "on_lost" in self.callbacks else "on_revoke", partitions)
        lanes = self._lanes_of(partitions)
        self._give_up(lanes)
        self._forget(partitions)
        if partitions:
            emit(
                Event.PARTITIONS_LOST,
                partitions=_names(partitions),
                still_handled=[_name(one) for one in lanes if one.running],
            )

    def _give_up(self, lanes: Collection[PartitionLanes]) -> None:
        if self.pool is not None:
            self.pool.give_up(lanes, time.monotonic())
        for one in lanes:
            one.progress.revoked = True

    def _call_back(self, name: str, partitions: list[TopicPartition]) -> None:
        if self._assignment_watch is not None:
            self._assignment_watch.rebalanced(time.monotonic())
        if name in self.callbacks and not self._closing:
            call_isolated(name, self.callbacks[name], partitions)

    def _drain(self, lanes: Collection[PartitionLanes], until: float) -> None:
        if self.pool is None:
            for one in lanes:  # what is done by now counts
                self._finished += one.progress.settle()
                one.progress.revoked = True
            return

        began, limit = time.monotonic(), self.pool.limit

        def end() -> float:
            """A stop that comes meanwhile counts from its own moment; handlers are told."""
            if self.stopped_at is None or self._end < math.inf:
                return until
            limit.deadline = min(until, max(began, self.stopped_at) + self._limits.finishing - self._drained)
            return limit.deadline

        self.pool.give_up(lanes, until)
        if not self.pool.wait_until_free(lanes, end):
            emit(
                Event.HANDLER_ABANDONED,
                drain_timeout=self._limits.drain_timeout,
                partitions=[_name(one) for one in lanes if one.running],
                consequence="its message comes again",
            )
        if (
            self._asking is not None
        ):  # the commit that follows wants the topic's id, and this may have been a short time
            self._asking.join(max(0.0, min(_ID_SECONDS, end() - time.monotonic())))
        if self.stopped_at is not None:
            self._drained += time.monotonic() - max(began, self.stopped_at)

    def _lanes_of(self, partitions: Iterable[TopicPartition]) -> list[PartitionLanes]:
        found = (self._partitions.get((partition.topic, partition.partition)) for partition in partitions)
        return [lanes for lanes in found if lanes is not None]

    def lanes_of(self, message: Message) -> PartitionLanes | None:
        return self._partitions.get((message.topic(), message.partition()))  # type: ignore[arg-type]

    def _forget(self, partitions: Collection[TopicPartition]) -> None:
        self._positions.forget((partition.topic, partition.partition) for partition in partitions)
        for partition in partitions:
            self._partitions.pop((partition.topic, partition.partition), None)

    # ---- the end

    @property
    def spent(self) -> float:
        """Seconds of `shutdown_timeout`: the stop came during a revocation, whose drain counts for it too. Of what else
        the poll thread did until it saw the stop the first 5 s do not: handlers were not told of it, and went on."""
        late = 0.0 if self.stopped_at is None else time.monotonic() - self.stopped_at - CLOSE_SECONDS
        return min(max(self._drained, late), self._limits.finishing)

    def shut_down(self, began: float) -> float:
        """Drain, commit, leave the group; within `shutdown_timeout` since it `began`. Returns until when what remains
        may take. Both monotonic."""
        end = self._end = began + self._limits.shutdown_timeout
        self._note_missed_polls()
        leaving = self._limits.leaving
        self._drain(list(self._partitions.values()), began + self._limits.finishing)
        self.settle()
        stats = self._stats(time.monotonic())  # before the commit: while that one hangs, the client answers nobody
        if not self._missed_polls:
            self._commit_at_end(max(time.monotonic() + leaving / 5, end - leaving))
        self.stats = stats._replace(commits=self._commits)
        if self.pool is not None:
            self.pool.end()
        self._closing = True

        def leave_and_close() -> None:  # behind a commit that hangs, this may begin when `end` has passed
            self._leave(max(end, time.monotonic() + leaving))
            self.client.close()

        if not self._bounded(leave_and_close, end):
            emit(Event.CLOSE_TIMED_OUT, shutdown_timeout=self._limits.shutdown_timeout)
        return end

    def _leave(self, until: float) -> None:
        """Leave the group while the client still runs, so that no rebalance is answered inside its `close()`.

        There the answer may wait for ever, with the interpreter's lock held, and the process would have to be killed: a
        question to the group that is under way as it ends is thrown away (librdkafka 2.16: `rd_kafka_cgrp_op_serve`
        destroys it without a reply, once `rkcg_terminated`). A static member must not leave; it takes the rebalance
        that is announced by now.
        """
        with contextlib.suppress(KafkaException):
            if self._static:
                self.client.poll(0)
                return
            self.client.unsubscribe()
            quiet = False  # what had been announced by then comes first, and the revocation behind it
            while not quiet and time.monotonic() < until:
                before = self._rebalances
                message = self.client.poll(POLL_SECONDS)  # not tracked: the next owner's
                quiet = message is None and before == self._rebalances and not self.client.assignment()


def _offsets(positions: dict[Key, tuple[PartitionProgress, Position]]) -> list[TopicPartition]:
    return [
        TopicPartition(*key, position.offset, metadata=position.metadata)
        if position.metadata
        else TopicPartition(*key, position.offset)
        for key, (_, position) in positions.items()
    ]


def _name(lanes: PartitionLanes) -> str:
    return f"{lanes.place[0]}[{lanes.place[1]}]"


def _names(partitions: Iterable[TopicPartition]) -> list[str]:
    return [f"{partition.topic}[{partition.partition}]" for partition in partitions]
