"""The poll thread's part, against a client that only notes what it is told, and calls back when it is polled."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from safekafka.consumer import session as session_module
from safekafka.consumer.current import Limit
from safekafka.consumer.lanes import PartitionLanes
from safekafka.consumer.pool import REFILL, Refill
from safekafka.consumer.session import Limits, Session

TOPIC = "orders"
GONE = KafkaError(KafkaError._AUTO_OFFSET_RESET, "fetch failed due to requested offset not available on the broker")


def at(partition: int, offset: int, *, metadata: str = "") -> TopicPartition:
    return TopicPartition(TOPIC, partition, offset, metadata=metadata)


def of(*partitions: int) -> list[TopicPartition]:
    return [TopicPartition(TOPIC, number) for number in partitions]


def message(partition: int, offset: int, error: KafkaError | None = None) -> Message:
    return Message(TOPIC, partition, offset, None, b"1", error=error, leader_epoch=0)


class Client:
    """Of the incremental kind. `polls`, `consumes`: what the next calls do; they return messages."""

    def __init__(self) -> None:
        self.low = dict.fromkeys(range(3), 0)
        self.offsets: dict[int, int] = {}  # committed
        self.assigned: dict[int, int] = {}
        self.commits: list[list[TopicPartition]] = []
        self.polls: list[Callable[[], Message | None]] = []
        self.consumes: list[Callable[[], list[Message]]] = []
        self.asked: Callable[[], None] = lambda: None
        self.unseekable: set[int] = set()
        self.paused: set[int] = set()
        self.refusals: list[KafkaError] = []  # of the next synchronous commits
        self.announced = False  # a rebalance, whose callback has not run
        self.silent: set[int] = set()  # nothing is fetched of them
        self.without_leader: set[int] = set()

    def subscribe(self, topics: list[str], **callbacks: Any) -> None:
        self.callbacks = callbacks

    def poll(self, seconds: float) -> Message | None:
        return self.polls.pop(0)() if self.polls else None

    def consume(self, count: int, seconds: float) -> list[Message]:
        return self.consumes.pop(0)() if self.consumes else []

    def call_back(self, name: str, *partitions: int) -> None:
        """If it raises, or makes no end of the rebalance, confluent-kafka does."""
        self.announced = False
        try:
            self.callbacks[name](self, of(*partitions))
        finally:
            if name == "on_assign":
                self.assigned = {**dict.fromkeys(partitions, -1001), **self.assigned}
            else:
                for number in partitions:
                    self.assigned.pop(number, None)

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked()
        return [at(one.partition, self.offsets.get(one.partition, -1001)) for one in partitions]

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self.asked()
        known = [one for one in partitions if one.partition not in self.without_leader]
        return [
            at(one.partition, self.low[one.partition] if one.offset == OFFSET_BEGINNING else 1_000) for one in known
        ]

    def get_watermark_offsets(self, partition: TopicPartition, **_: Any) -> tuple[int, int]:
        return (-1001, -1001) if partition.partition in self.silent else (0, 1_000)

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        assert not self.announced, "taken for the answer to a rebalance"
        self.assigned.update({one.partition: one.offset for one in partitions})
        self.unseekable.difference_update(one.partition for one in partitions)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        assert not self.announced, "taken for the answer to a rebalance"
        for one in partitions:
            del self.assigned[one.partition]
            self.silent.discard(one.partition)

    def assignment(self) -> list[TopicPartition]:
        return of(*self.assigned)

    def pause(self, partitions: list[TopicPartition]) -> None:
        self.paused.update(one.partition for one in partitions)

    def resume(self, partitions: list[TopicPartition]) -> None:
        self.paused.difference_update(one.partition for one in partitions)

    def seek(self, partition: TopicPartition) -> None:
        if partition.partition in self.unseekable or partition.partition not in self.assigned:
            raise KafkaException(KafkaError(KafkaError._STATE))
        self.assigned[partition.partition] = partition.offset

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> list[TopicPartition]:
        if not asynchronous and self.refusals:
            raise KafkaException(self.refusals.pop(0))
        self.commits.append(offsets)
        return offsets

    def unsubscribe(self) -> None: ...

    close = unsubscribe


class Quiet:
    """Of what the session asks besides its client."""

    unreachable_since = None

    def alive(self) -> None: ...

    def diagnosis(self) -> str:
        return ""

    def ask(self, topics: object) -> dict[str, str]:
        return {}

    def withheld(self, topics: object) -> dict[str, KafkaError | None]:
        return {}


class World:
    def __init__(self, client: Client | None = None, max_in_flight: int = 100) -> None:
        self.client = client or Client()
        quiet: Any = Quiet()
        raw: Any = self.client
        self.session = Session(
            raw,
            quiet,
            "billing",
            quiet,
            Limits(0.0, 1, 1.0, 5.0, max_in_flight, 1 << 20, 300.0, 300.0),
            start="earliest",
            stop_on_expired=False,
            maps=False,
            told_once=False,
            static=False,
            on_commit_of_user=None,
        )
        self.session.subscribe([TOPIC])
        self.taken: list[tuple[PartitionLanes, Message]] = []

    def turn(self, *polls: Callable[[], Message | None]) -> None:
        """As a loop of the program's own does it, once for each of the polls."""
        self.client.polls += polls
        for _ in polls:
            self.session.take(self.keep, 100, 0, 0.0)
            self.session.after_take()

    def keep(self, lanes: PartitionLanes, messages: Sequence[Message]) -> None:
        self.taken += [(lanes, message) for message in messages]

    def assign(self, *partitions: int) -> None:
        self.turn(lambda: self.client.call_back("on_assign", *partitions))

    @property
    def offsets(self) -> list[int | None]:
        """Of those whose assignment is still there."""
        return [message.offset() for lanes, message in self.taken if not lanes.progress.revoked]

    def done(self, *offsets: int) -> None:
        for lanes, message in self.taken:
            if message.offset() in offsets and not lanes.progress.revoked:
                lanes.progress.finished.append(message)
        self.session.settle()

    def commit(self) -> list[int]:
        self.client.commits.clear()
        self.session._commit_due = 0.0
        self.session.commit_if_due()
        return [one.offset for commit in self.client.commits for one in commit]


@pytest.fixture
def world() -> World:
    return World()


class Interrupt(BaseException):
    """As a signal handler raises it."""


# ---- rebalances


def test_C3_brokers_that_take_long_to_tell_a_position_let_no_rebalance_be_answered_before_its_callback(
    world: World,
) -> None:
    """The client would take the new assignment of the one partition for the answer that both are given away."""
    world.assign(0, 1)

    def rebalance_begins() -> None:
        world.client.announced = True

    world.client.asked = rebalance_begins
    world.turn(lambda: message(0, 500, GONE))
    assert world.client.announced
    world.turn(lambda: world.client.call_back("on_revoke", 0, 1))
    assert world.client.assigned == {}


def test_C1_a_message_taken_together_with_the_end_and_the_return_of_its_partition_moves_no_commit(world: World) -> None:
    world.client.offsets = {0: 8}
    world.assign(0)
    world.client.consumes = [lambda: [message(0, 9)]]
    world.turn(lambda: message(0, 8))

    def moves() -> list[Message]:
        world.client.call_back("on_revoke", 0)
        world.client.call_back("on_assign", 0)
        return []

    world.client.consumes = [moves]
    world.turn(lambda: message(0, 10))
    assert world.offsets == []
    assert world.commit() == []
    assert world.client.assigned == {0: 8}


def test_C3_partitions_that_are_assigned_again_without_having_been_taken_away_begin_anew(world: World) -> None:
    world.client.offsets = {0: 8}
    world.assign(0)
    world.turn(lambda: message(0, 8))
    world.assign(0)
    assert world.offsets == []
    world.turn(lambda: message(0, 8), lambda: message(0, 9))
    world.done(8)
    assert world.commit() == [9]


class Pool:
    """Handlers that don't come back."""

    handlings = ()
    retries = dead_lettered = 0

    def __init__(self) -> None:
        self.drains: list[list[tuple[str, int]]] = []
        self.limit = Limit()

    def give_up(self, partitions: Collection[PartitionLanes], deadline: float | None) -> None:
        self.limit.deadline = deadline

    def wait_until_free(self, partitions: Collection[PartitionLanes], until: object) -> bool:
        self.drains.append([one.place for one in partitions])
        return False

    def end(self) -> None: ...


def test_C6_a_partition_that_is_taken_away_during_the_last_commit_is_not_waited_for_a_second_time(
    world: World,
) -> None:
    """That would use up the time that is kept for leaving the group."""
    world.assign(0)
    world.turn(lambda: message(0, 0))
    world.done(0)
    pool: Any = Pool()
    world.session.pool = pool
    world.client.refusals = [KafkaError(KafkaError.REBALANCE_IN_PROGRESS)]
    world.client.polls = [lambda: world.client.call_back("on_revoke", 0)]
    world.session.shut_down(time.monotonic())
    assert pool.drains == [[(TOPIC, 0)]]
    assert world.client.assigned == {}
    assert [one.offset for commit in world.client.commits for one in commit] == [1]


class Waits(Pool):
    """Handlers that run for as long as they may."""

    def __init__(self, clock: Clock, stop_in: float, session: Session) -> None:
        super().__init__()
        self.clock, self.stop_in, self.session = clock, stop_in, session
        self.waited: list[float] = []
        self.told: list[float] = []  # until when, from the begin of the drain

    def wait_until_free(self, partitions: Collection[PartitionLanes], until: Any) -> bool:
        began = self.clock.now
        while self.clock.now < until():
            self.told.append((self.limit.deadline or 0.0) - began)
            self.clock.now += 0.125
            if self.clock.now - began == self.stop_in:
                self.session.stop()
        self.waited.append(self.clock.now - began)
        return False


def test_C6_only_what_handlers_were_waited_for_counts_as_the_time_of_the_stop(world: World, clock: Clock) -> None:
    """drain_timeout is 1 s here. What else the poll thread did until it saw the stop is no time that they had."""
    world.assign(0)
    pool: Any = Waits(clock, 0.25, world.session)
    world.session.pool = pool
    world.client.call_back("on_revoke", 0)  # the stop comes behind 0.25 s
    clock.now += 3.0
    assert world.session.spent == 0.75
    world.session.shut_down(clock.now - world.session.spent)
    assert pool.waited == [1.0, 0.25]


def test_C6_handlers_are_told_of_the_time_that_a_stop_during_a_revocation_leaves_them(
    world: World, clock: Clock
) -> None:
    world.assign(0)
    world.session._limits = dataclasses.replace(world.session._limits, drain_timeout=8.0)
    pool: Any = Waits(clock, 0.25, world.session)
    world.session.pool = pool
    world.client.call_back("on_revoke", 0)
    assert pool.told[:3] == [8.0, 8.0, 4.0]  # of shutdown_timeout, 5 s, 1.25 s are kept for leaving
    assert pool.waited == [4.0]


@pytest.mark.parametrize("seconds", [0.0, 2.0])
def test_C6_a_stop_that_is_seen_late_leaves_handlers_their_time(world: World, clock: Clock, seconds: float) -> None:
    world.assign(0)
    pool: Any = Waits(clock, -1.0, world.session)
    world.session.pool = pool
    world.session.stop()
    clock.now += seconds  # inside a question to the brokers, or a callback of the program's
    world.session.shut_down(clock.now - world.session.spent)
    assert pool.waited == [1.0]


def test_C6_a_stop_that_is_seen_very_late_is_bounded_all_the_same(world: World, clock: Clock) -> None:
    world.session.stop()
    clock.now += 5.5
    assert world.session.spent == 0.5
    clock.now += 20.0
    assert world.session.spent == 1.0


def test_C6_behind_a_stop_no_broker_is_asked_any_more(world: World, clock: Clock) -> None:
    world.client.offsets = {0: 5, 1: 5}
    world.client.silent = {1}
    world.assign(0, 1)
    world.turn(lambda: message(0, 5, GONE))
    world.session.pause(of(0))
    asked: list[float] = []
    world.client.asked = lambda: asked.append(clock.now)
    world.session.stop()
    for _ in range(60):
        clock.now += 1.0
        world.session.after_take()
    assert asked == []


# ---- answers to commits


@pytest.mark.parametrize("answered", [at(0, 5), at(0, 6, metadata="another map"), at(1, 6)])
def test_C1_the_answer_to_another_commit_lets_no_position_count_as_committed(
    world: World, answered: TopicPartition
) -> None:
    world.assign(0, 1)
    world.turn(lambda: message(0, 5))
    world.done(5)
    assert world.commit() == [6]
    world.session.on_commit(None, [answered])
    world.session.on_commit(KafkaError(KafkaError.REQUEST_TIMED_OUT), [at(0, 6)])
    assert world.commit() == [6]
    world.session.on_commit(None, [at(0, 6)])
    assert world.commit() == []


def with_a_commit_on_its_way(world: World) -> None:
    """Of 6; the message there is finished since."""
    world.assign(0)
    world.turn(lambda: message(0, 5), lambda: message(0, 6))
    world.done(5)
    assert world.commit() == [6]
    world.done(6)


def test_C1_the_last_commit_waits_for_the_answer_to_the_one_that_is_on_its_way(world: World) -> None:
    """The client repeats a commit whose coordinator dies, also behind a later one."""
    with_a_commit_on_its_way(world)
    order: list[list[int]] = []

    def answer() -> None:
        order.append([one.offset for commit in world.client.commits for one in commit])
        world.session.on_commit(None, [at(0, 6)])

    world.client.polls = [lambda: None, answer]
    world.session._commit_at_end(time.monotonic() + 60)
    assert order == [[6]]
    assert [one.offset for commit in world.client.commits for one in commit] == [6, 7]


def test_C6_a_commit_that_nobody_answers_leaves_time_for_the_last_one(world: World) -> None:
    with_a_commit_on_its_way(world)
    world.session._commit_at_end(time.monotonic() + 0.2)
    assert [one.offset for commit in world.client.commits for one in commit] == [6, 7]


# ---- a signal handler that raises in a loop that goes on


@pytest.mark.parametrize("step", ["_drain", "_send_commit"])
def test_C3_a_signal_handler_that_raises_while_partitions_are_taken_away_leaves_none_of_them(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    world.assign(0, 1)
    world.client.consumes = [lambda: [message(1, 0)]]
    world.turn(lambda: message(0, 0))

    def interrupted(*_: Any) -> None:
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(world.session, step, interrupted)
        with pytest.raises(Interrupt):
            world.turn(lambda: world.client.call_back("on_revoke", 0))
    assert [lanes.progress.revoked for lanes, _ in world.taken] == [True, False]
    assert list(world.session._partitions) == [(TOPIC, 1)]
    world.turn(lambda: message(1, 1))
    world.done(0)
    assert world.commit() == [1]


@pytest.mark.parametrize("step", ["_lanes_of", "_hold_what_is_paused"])
def test_C1_a_signal_handler_that_raises_while_partitions_are_assigned_leaves_none_of_them_unread(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    world.client.offsets = {0: 8, 1: 3}

    def interrupted(*_: Any) -> None:
        raise Interrupt

    with monkeypatch.context() as patched:
        patched.setattr(world.session, step, interrupted)
        with pytest.raises(Interrupt):
            world.turn(lambda: world.client.call_back("on_assign", 0, 1))
    world.turn(lambda: None, lambda: None)
    assert world.client.assigned == {0: 8, 1: 3}
    world.turn(lambda: message(0, 8), lambda: message(1, 3))
    assert world.offsets == [8, 3]


def test_C1_what_was_taken_when_a_signal_handler_raised_comes_again_although_the_client_can_not_seek(
    world: World,
) -> None:
    world.assign(0, 1)
    world.turn(lambda: message(0, 0))

    def interrupted() -> Message:
        raise Interrupt

    with pytest.raises(Interrupt):
        world.turn(interrupted)  # with message 1 of both
    world.client.unseekable = {0, 1}
    world.client.assigned[2] = 0  # and one that was just assigned
    world.turn(lambda: message(0, 2), lambda: message(1, 2))
    assert world.offsets == [0], "what is behind the messages that nobody noted"
    world.turn(lambda: None)
    assert world.client.assigned == {0: 1, 1: 0, 2: 0}
    world.turn(lambda: message(0, 1), lambda: message(1, 0), lambda: message(2, 0))
    assert world.offsets == [0, 1, 0, 0]


def test_C1_a_commit_whose_answer_was_lost_by_a_signal_handler_that_raised_is_made_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.assign(0)
    world.turn(lambda: message(0, 0))
    world.done(0)
    assert world.commit() == [1]

    def interrupted() -> Message:
        raise Interrupt

    with pytest.raises(Interrupt):
        world.turn(interrupted)
    world.client.commits.clear()
    world.turn(lambda: None)
    assert [one.offset for commit in world.client.commits for one in commit] == [1]


# ---- what is told, and held back


def test_C3_a_lost_partition_that_a_handler_still_works_on_is_named(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.assign(0, 1)
    lanes = world.session._lanes_of(of(0))[0]
    lanes.running = 1
    world.turn(lambda: world.client.call_back("on_lost", 0, 1))
    assert f"partitions=['{TOPIC}[0]', '{TOPIC}[1]'] still_handled=['{TOPIC}[0]']" in caplog.text


def test_C7_what_was_held_back_flows_again_when_half_of_it_is_finished(world: World) -> None:
    """A pause throws away what the client has fetched, so it must not change with each message."""
    world.assign(0)
    world.client.consumes.append(lambda: [message(0, offset) for offset in range(1, 100)])
    world.turn(lambda: message(0, 0))
    held = []
    for offset in range(100):
        world.session.balance(*world.session.settle())
        held.append(world.session.held_back)
        world.done(offset)
    assert held == [True] * 50 + [False] * 50


class Slow(Pool):
    """One message of each partition is through every `EVERY` seconds."""

    EVERY = 30.0
    handlings = ()
    refill = REFILL

    def __init__(self) -> None:
        super().__init__()
        self.queues: dict[PartitionLanes, deque[Message]] = {}

    def tend(self) -> None: ...

    def add(self, runs: list[tuple[PartitionLanes, Sequence[Message]]]) -> None:
        for lanes, messages in runs:
            self.queues.setdefault(lanes, deque()).extend(messages)

    def finish_one_of(self, number: int) -> None:
        for lanes, queue in self.queues.items():
            if lanes.place[1] == number and queue:
                lanes.progress.finished.append(queue.popleft())


class Endless(Client):
    """All that is asked for is there, of one partition after the other."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.next: Counter[int] = Counter()

    def poll(self, seconds: float) -> Message | None:
        found = self.consume(1, 0)
        if not found:
            self.clock.now += seconds
        return found[0] if found else None

    def consume(self, count: int, seconds: float) -> list[Message]:
        free = [number for number in self.assigned if number not in self.paused]
        if not free:
            return []
        number = min(free, key=lambda one: self.next[one])
        first = self.next[number]
        self.next[number] += count
        return [message(number, offset) for offset in range(first, first + count)]


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(session_module, "time", clock)
    return clock


@pytest.mark.parametrize("partitions", [2, 20, 60])
def test_C7_many_partitions_that_move_once_in_a_while_do_not_outgrow_the_bound(partitions: int, clock: Clock) -> None:
    """Each stands still for most of the time, and takes anew whenever it moves; what those that stand have beyond their
    half counts nowhere."""
    client = Endless(clock)
    client.low = dict.fromkeys(range(partitions), 0)
    client.offsets = dict.fromkeys(range(partitions), 0)
    world = World(client, max_in_flight=1_000)
    pool: Any = Slow()
    world.session.pool = pool
    client.call_back("on_assign", *range(partitions))
    due = {number: clock.now + Slow.EVERY * number / partitions for number in range(partitions)}
    began, peak = clock.now, 0
    while clock.now < began + 6 * Slow.EVERY:
        for number, moment in due.items():
            if clock.now >= moment:
                due[number] += Slow.EVERY
                pool.finish_one_of(number)
        clock.now += 0.005
        world.session.turn()
        peak = max(peak, world.session.settle()[0])
    assert peak < 4 * 1_000
    assert all(client.next[number] > 3 for number in range(partitions)), "each has something to do"


def test_what_is_in_flight_stays_at_what_is_enough_for_the_handlers(clock: Clock) -> None:
    client = Endless(clock)
    client.offsets = {0: 0}
    world = World(client, max_in_flight=1_000)
    pool: Any = Slow()
    pool.refill = Refill(5_000, 10, 0.001, 100.0)
    world.session.pool = pool
    client.call_back("on_assign", 0)
    peak = 0
    for _ in range(200):
        world.session.turn()
        peak = max(peak, world.session.settle()[0])
        for _ in range(3):
            pool.finish_one_of(0)
    assert 90 <= peak <= 100
    assert client.next[0] >= 600 + 50, "and the handlers have something to do all the time"
    pool.refill = REFILL
    world.session.turn()
    assert world.session.settle()[0] == 1_000


# ---- seek


@pytest.mark.parametrize("wanted", [3, 700])
@pytest.mark.parametrize("told", ["before", "afterwards"])
def test_a_partition_that_the_client_can_not_seek_in_goes_on_where_the_program_wants_it(
    world: World, wanted: int, told: str
) -> None:
    world.client.offsets = {0: 500}
    world.assign(0)
    world.client.unseekable = {0}
    if told == "before":
        world.turn(lambda: message(0, 500, GONE))
    world.session.seek(at(0, wanted))
    if told == "afterwards":
        world.turn(lambda: message(0, 500, GONE))
    world.turn(lambda: message(0, 501), lambda: None)
    assert world.offsets == []
    assert world.client.assigned == {0: wanted}
    world.turn(lambda: message(0, wanted))
    assert world.offsets == [wanted]


def test_C1_a_seek_of_another_thread_counts_none_of_the_messages_in_hand_for_the_new_position(world: World) -> None:
    world.assign(0)

    def sought_meanwhile() -> Message:
        thread = threading.Thread(target=world.session.seek, args=(at(0, 50),))
        thread.start()
        thread.join(10)
        return message(0, 105)

    world.turn(sought_meanwhile, lambda: message(0, 50))
    assert world.offsets == [50]
    world.done(50)
    assert world.commit() == [51]


def test_C7_a_partition_that_was_held_back_for_its_offset_map_flows_again_behind_a_seek(world: World) -> None:
    world.assign(0)
    world.turn(lambda: message(0, 0))
    world.taken[0][0].progress.held_back = True
    world.session._pauses_changed = True
    world.session.balance(*world.session.settle())
    assert world.client.paused == {0}
    world.session.seek(at(0, 50))
    world.session.balance(*world.session.settle())
    assert world.client.paused == set()


def test_C7_a_partition_of_which_nothing_is_fetched_is_assigned_anew_where_it_was(world: World) -> None:
    world.client.offsets = {0: 5, 1: 7, 2: 9}
    world.client.silent = {1, 2}
    world.client.without_leader = {2}
    world.assign(0, 1, 2)
    now = time.monotonic()
    world.session._look_for_silence(now + 9)
    world.turn(lambda: None, lambda: None)
    assert world.client.silent == {1, 2}
    world.session._look_for_silence(now + 11)
    world.turn(lambda: None, lambda: None)
    assert world.client.silent == {2}, "and 2 has nobody to tell"
    assert world.client.assigned == {0: 5, 1: 7, 2: 9}


def test_C7_leaders_that_do_not_answer_are_asked_seldom_however_many_they_are(world: World, clock: Clock) -> None:
    """Each question may keep the poll thread for seconds."""
    world.client.low = world.client.offsets = dict.fromkeys(range(150), 5)
    world.client.silent = world.client.without_leader = set(range(150))
    world.assign(*range(150))
    asked: list[float] = []

    def no_answer() -> None:
        asked.append(clock.now)
        clock.now += 2.0

    world.client.asked = no_answer
    began = clock.now
    while clock.now < began + 1_800:
        world.session._look_for_silence(clock.now)
        clock.now += 1.0
    assert 10 < len(asked) < 100
    world.client.without_leader = set()
    world.client.asked = lambda: None
    clock.now += 3_600
    world.session._look_for_silence(clock.now)
    clock.now += 1
    world.session._look_for_silence(clock.now)
    world.turn(lambda: None, lambda: None)
    assert len(world.client.silent) <= 148, "no pause behind an answer"


def test_a_right_that_was_lost_is_forgotten_with_the_topic_that_is_read_no_more(world: World) -> None:
    world.assign(0)
    world.session._lose_right("refunds", KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED), 3)
    world.session.subscribe([TOPIC, "^ref.*"])
    world.session._look_for_rights()
    assert world.session.problems, "the pattern may stand for it"
    assert world.session._without_partitions() == ["refunds"], "and the brokers are asked"
    world.session.subscribe([TOPIC])
    world.session._look_for_rights()
    assert world.session.problems == []


def test_C7_a_partition_that_is_paused_is_not_silent(world: World) -> None:
    world.client.silent = {0}
    world.assign(0)
    world.session.pause(of(0))
    world.session._look_for_silence(time.monotonic() + 30)
    world.turn(lambda: None, lambda: None)
    assert world.client.silent == {0}
