"""The poll thread's part, against a client that only notes what it is told, and calls back when it is polled."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, KafkaError, KafkaException, Message, TopicPartition

from safekafka.consumer.lanes import PartitionLanes
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
        assert all(one.offset == OFFSET_BEGINNING for one in partitions)
        return [at(one.partition, self.low[one.partition]) for one in partitions]

    def get_watermark_offsets(self, partition: TopicPartition, **_: Any) -> tuple[int, int]:
        return 0, 1_000

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        assert not self.announced, "taken for the answer to a rebalance"
        self.assigned.update({one.partition: one.offset for one in partitions})
        self.unseekable.difference_update(one.partition for one in partitions)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        assert not self.announced, "taken for the answer to a rebalance"
        for one in partitions:
            del self.assigned[one.partition]

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

    def ask(self, topics: object) -> dict[str, str]:
        return {}

    def missing(self, topics: object) -> set[str]:
        return set()


class World:
    def __init__(self) -> None:
        self.client = Client()
        quiet: Any = Quiet()
        client: Any = self.client
        self.session = Session(
            client,
            quiet,
            "billing",
            quiet,
            Limits(0.0, 1, 1.0, 5.0, 100, 1 << 20, 300.0, 300.0),
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

    def give_up(self, partitions: Collection[PartitionLanes], deadline: float | None) -> None: ...

    def wait_until_free(self, partitions: Collection[PartitionLanes], until: float) -> bool:
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
