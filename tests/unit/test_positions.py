"""How positions are found and assigned, against a client that only notes what it is told."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, KafkaError, KafkaException, TopicPartition

from safekafka import RecordsExpired, SafeKafkaError
from safekafka.consumer.positions import Key, Policy, Positions

TOPIC, PARTITIONS = "orders", 4
GONE = KafkaError(KafkaError._AUTO_OFFSET_RESET, "fetch failed due to requested offset not available on the broker")
CUT = KafkaError(KafkaError._AUTO_OFFSET_RESET, "Partition log truncation detected at offset 10")
NONE = KafkaError(KafkaError._AUTO_OFFSET_RESET, "no previously committed offset available")


class Client:
    def __init__(self, eager: bool) -> None:
        self.eager = eager
        self.low = dict.fromkeys(range(PARTITIONS), 0)
        self.high = dict.fromkeys(range(PARTITIONS), 1_000)
        self.offsets: dict[int, int] = {}  # committed
        self.without_leader: set[int] = set()
        self.refused: set[int] = set()  # by the coordinator
        self.unreachable = False
        self.asked = 0
        self.assigned: dict[int, int] = {}
        self.commits: list[dict[int, int]] = []
        self.rebalancing = False

    def committed(self, partitions: list[TopicPartition], timeout: float) -> list[Any]:
        self._answer()
        return [
            SimpleNamespace(
                topic=TOPIC,
                partition=one.partition,
                offset=self.offsets.get(one.partition, OFFSET_INVALID),
                error=KafkaError(KafkaError._FAIL) if one.partition in self.refused else None,
            )
            for one in partitions
        ]

    def offsets_for_times(self, partitions: list[TopicPartition], timeout: float) -> list[TopicPartition]:
        self._answer(*(one.partition for one in partitions))
        logs = {OFFSET_BEGINNING: self.low, OFFSET_END: self.high}
        known = [one for one in partitions if one.partition in self.low]
        return [TopicPartition(TOPIC, one.partition, logs[one.offset][one.partition]) for one in known]

    def get_watermark_offsets(self, partition: TopicPartition, timeout: float) -> tuple[int, int]:
        self._answer(partition.partition)
        return self.low[partition.partition], self.high[partition.partition]

    def list_topics(self, topic: str, timeout: float) -> Any:
        self._answer()
        return SimpleNamespace(topics={topic: SimpleNamespace(partitions=dict.fromkeys(self.low))})

    def commit(self, offsets: list[TopicPartition], asynchronous: bool) -> None:
        assert asynchronous
        self.commits.append({one.partition: one.offset for one in offsets})

    def arrive(self) -> None:
        """The commits, at the brokers."""
        for commit in self.commits:
            self.offsets.update(commit)

    def incremental_unassign(self, partitions: list[TopicPartition]) -> None:
        self._allow(not self.eager)
        for one in partitions:
            del self.assigned[one.partition]

    def incremental_assign(self, partitions: list[TopicPartition]) -> None:
        self._allow(not self.eager)
        assert not {one.partition for one in partitions} & set(self.assigned)
        if self.rebalancing:
            raise KafkaException(KafkaError(KafkaError._CONFLICT))
        self.assigned.update({one.partition: one.offset for one in partitions})

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._allow(self.eager)
        if self.rebalancing:
            raise KafkaException(KafkaError(KafkaError._CONFLICT))
        self.assigned = {one.partition: one.offset for one in partitions}

    def _answer(self, *partitions: int) -> None:
        self.asked += 1
        if self.unreachable or self.without_leader & set(partitions):
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))

    def _allow(self, allowed: bool) -> None:
        if not allowed:
            raise KafkaException(KafkaError(KafkaError._STATE))


class World:
    def __init__(self, eager: bool, policy: Policy = "earliest", stop_on_expired: bool = False) -> None:
        self.client: Any = Client(eager)
        self.taken: dict[Key, int] = {}
        self.began_again: list[Key] = []
        self.committed: list[int] = []
        self.now = 0.0
        self.positions = Positions(
            self.client,
            policy,
            stop_on_expired,
            next_offset=self.taken.get,
            began_again=self._began_again,
            on_committed=lambda found: self.committed.extend(one.partition for one in found),
            clock=lambda: self.now,
        )

    def _began_again(self, key: Key) -> None:
        self.taken.pop(key, None)
        self.began_again.append(key)

    def assign(self, *partitions: int) -> None:
        self.positions.assign([TopicPartition(TOPIC, number) for number in partitions])

    def lost(self, partition: int, offset: int | None, error: KafkaError = GONE) -> None:
        self.positions.lost((TOPIC, partition), offset, error)

    def find(self, seconds: float = 0.0) -> bool:
        self.now += seconds
        self.positions.ask()
        return self.positions.place()


@pytest.fixture(params=[True, False], ids=["eager", "incremental"])
def eager(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture) -> bool:
    caplog.set_level("INFO", logger="safekafka")
    return bool(request.param)


@pytest.fixture
def world(eager: bool) -> World:
    return World(eager)


# ---- what is known when partitions are assigned


def test_partitions_start_at_their_committed_offset_or_at_the_start_of_the_log(world: World) -> None:
    world.client.offsets = {1: 42}
    world.client.low[2] = 7
    world.assign(0, 1, 2)
    assert world.client.assigned == {0: 0, 1: 42, 2: 7}
    assert world.committed == [1]
    assert not world.find()


def test_B_C21_what_expired_while_nobody_read_is_told_once_and_committed(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.client.offsets = {1: 10}
    world.client.low[1] = 25
    for _ in range(2):
        world.assign(0, 1)
        assert world.client.assigned == {0: 0, 1: 25}
        world.client.arrive()
        world.positions.forget([(TOPIC, 0), (TOPIC, 1)])
        world.client.assigned = {}
    assert world.client.commits == [{1: 25}]
    assert caplog.text.count("records_expired") == 1
    assert "partition=1 from_offset=10 to_offset=25 count=15" in caplog.text


def test_brokers_that_do_not_answer_at_the_assignment_are_asked_later(world: World) -> None:
    world.client.offsets = {1: 42}
    world.client.unreachable = True
    world.assign(0, 1)
    assert world.client.assigned == {0: OFFSET_INVALID, 1: OFFSET_INVALID}
    assert not world.find()
    world.client.unreachable = False
    assert world.find(5)
    assert world.client.assigned == {0: 0, 1: 42}
    assert world.committed == [1]


def test_a_partition_that_the_client_found_by_itself_meanwhile_goes_on_where_it_is(world: World) -> None:
    world.client.unreachable = True
    world.assign(0, 1)
    world.client.unreachable = False
    world.client.offsets = {1: 42}
    world.taken[TOPIC, 1] = 45
    assert world.find()
    assert world.client.assigned == {0: 0, 1: 45}


def test_committed_offsets_are_used_although_the_logs_can_not_be_asked(world: World) -> None:
    world.client.offsets = {0: 5, 1: 42}
    world.client.without_leader = {0}
    world.assign(0, 1, 2)
    assert world.client.assigned == {0: 5, 1: 42, 2: OFFSET_INVALID}
    assert world.find(5)
    assert world.client.assigned == {0: 5, 1: 42, 2: 0}


def test_a_partition_that_the_coordinator_answers_nothing_about_holds_up_no_other(world: World) -> None:
    world.client.offsets = {1: 42}
    world.client.refused = {1}
    world.client.without_leader = {0}
    world.assign(0, 1)
    assert world.client.assigned == {0: OFFSET_INVALID, 1: OFFSET_INVALID}
    world.client.without_leader = set()
    assert world.find()
    assert world.client.assigned == {0: 0, 1: OFFSET_INVALID}
    world.client.refused = set()
    assert world.find(5)
    assert world.client.assigned == {0: 0, 1: 42}
    assert world.committed == [1]


# ---- what the client tells later


def test_the_others_stay_where_they_are(world: World) -> None:
    world.client.offsets = {0: 40, 1: 10, 2: 20}
    world.assign(0, 1, 2, 3)
    world.taken[TOPIC, 0] = 42
    world.client.low[1] = 25
    world.lost(1, 10)
    assert world.find()
    untouched = 42 if world.client.eager else 40
    assert world.client.assigned == {0: untouched, 1: 25, 2: 20, 3: 0}


def test_expired_records_are_told_with_their_number_and_once(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.assign(0, 1)
    world.taken[TOPIC, 1] = 10
    world.client.low[1] = 25
    for told in (12, 10, 10):  # the client's offset lies behind a transaction's marker; then late
        world.lost(1, told)
        assert world.find()
        assert world.client.assigned == {0: 0, 1: 25}
    assert caplog.text.count("records_expired") == 1
    assert "from_offset=10 to_offset=25 count=15" in caplog.text
    assert world.began_again == []
    assert world.client.commits == []  # messages below may still be with their handler


@pytest.mark.parametrize("high", [300, 900], ids=["shorter", "grown past it since"])
def test_a_position_that_the_leader_refuses_begins_again(
    world: World, high: int, caplog: pytest.LogCaptureFixture
) -> None:
    world.client.offsets = {1: 500}
    world.client.high[1] = high
    world.assign(0, 1)
    assert world.client.assigned == {0: 0, 1: 500}  # an end that we ask for proves nothing
    world.lost(1, 500)
    assert world.find()
    assert world.client.assigned == {0: 0, 1: 0}
    world.taken[TOPIC, 1] = 3
    world.lost(1, 500)  # late
    assert world.find()
    assert world.client.assigned == {0: 0, 1: 3}
    assert world.began_again == [(TOPIC, 1)]
    assert caplog.text.count("position_beyond_end") == 1
    assert "offset=500 start=0" in caplog.text


def test_a_log_that_lost_its_end_is_read_from_its_start(world: World) -> None:
    world.assign(1)
    world.taken[TOPIC, 1] = 10
    world.lost(1, None, CUT)
    assert world.find()
    assert world.client.assigned == {1: 0}
    assert world.began_again == [(TOPIC, 1)]


def test_no_committed_offset_told_late_of_a_partition_that_was_placed_since_changes_nothing(world: World) -> None:
    world.assign(1)
    world.taken[TOPIC, 1] = 10
    world.lost(1, None, NONE)
    assert world.find()
    assert world.client.assigned == {1: 10}
    assert world.began_again == []


def test_partitions_without_a_leader_do_not_hold_up_the_others(world: World) -> None:
    world.client.offsets = {0: 5, 1: 6, 2: 7}
    world.assign(0, 1, 2)
    world.client.low = dict.fromkeys(range(PARTITIONS), 10)
    world.client.without_leader = {0, 1}
    for number in range(3):
        world.lost(number, 5 + number)
    assert world.find()
    assert world.client.assigned == {0: 5, 1: 6, 2: 10}
    world.client.without_leader = set()
    assert world.find(5)
    assert world.client.assigned == {0: 10, 1: 10, 2: 10}


def test_brokers_that_do_not_answer_are_asked_ever_more_seldom(world: World) -> None:
    world.client.unreachable = True
    world.assign(0)
    world.client.asked = 0
    for _ in range(1_000):
        assert not world.find(0.1)
    assert world.client.asked < 30


def test_an_assignment_that_fails_in_a_rebalance_is_made_later(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.client.offsets = {1: 10}
    world.assign(0, 1)
    world.client.low[1] = 25
    world.lost(1, 10)
    world.client.rebalancing = True
    assert not world.find()
    assert not world.find(1)
    assert "records_expired" not in caplog.text
    world.client.rebalancing = False
    assert world.find(5)
    assert world.client.assigned == {0: 0, 1: 25}
    assert caplog.text.count("records_expired") == 1


def test_partitions_that_went_are_forgotten(world: World) -> None:
    world.assign(0, 1)
    world.lost(1, 0)
    world.positions.forget([(TOPIC, 0), (TOPIC, 1)])
    assert not world.find()
    world.lost(1, 0)
    assert not world.find()


# ---- stopping instead


def test_expired_records_stop_the_consumer_if_it_is_to(eager: bool, caplog: pytest.LogCaptureFixture) -> None:
    world = World(eager, stop_on_expired=True)
    world.client.offsets = {1: 10}
    world.client.low[1] = 25
    world.assign(0, 1)
    with pytest.raises(RecordsExpired, match=r"orders\[1\] 10 to 24") as raised:
        world.find()
    assert raised.value.gaps == ((TOPIC, 1, 10, 25),)
    assert world.client.assigned[1] == 10  # nothing behind the gap is read
    assert world.client.commits == []
    assert "records_expired" in caplog.text


def test_records_that_expire_later_stop_the_consumer_if_it_is_to(eager: bool) -> None:
    world = World(eager, stop_on_expired=True)
    world.assign(0, 1)
    world.taken[TOPIC, 1] = 10
    world.client.low[1] = 25
    world.lost(1, 10)
    with pytest.raises(RecordsExpired):
        world.find()
    assert world.client.assigned == {0: 0, 1: 0}


@pytest.mark.parametrize("offsets", [{}, {1: 500}], ids=["none committed", "beyond the end"])
def test_without_a_position_the_consumer_stops_if_it_is_to(eager: bool, offsets: dict[int, int]) -> None:
    world = World(eager, "error")
    world.client.offsets = offsets
    world.assign(1)
    if offsets:
        world.lost(1, 500)
    with pytest.raises(SafeKafkaError, match=r"orders\[1\]"):
        world.find()
    assert world.client.commits == []


# ---- latest


def test_B_C22_the_first_of_a_group_commits_the_end_of_all_partitions_before_it_reads_one(eager: bool) -> None:
    world = World(eager, "latest")
    world.assign(0, 1)
    assert world.client.assigned == {0: OFFSET_INVALID, 1: OFFSET_INVALID}
    assert not world.find()
    assert world.client.commits == [dict.fromkeys(range(PARTITIONS), 1_000)]
    world.client.high = dict.fromkeys(range(PARTITIONS), 2_000)  # records come while the commit is on its way
    world.client.arrive()
    assert world.find(1)
    assert world.client.assigned == {0: 1_000, 1: 1_000}


def test_B_C22_a_slow_coordinator_gets_the_same_end_again(eager: bool) -> None:
    """It may take the second commit when messages behind the first one are already with their handler."""
    world = World(eager, "latest")
    world.assign(0, 1)
    for end in (1_000, 2_000, 3_000):
        world.client.high = dict.fromkeys(range(PARTITIONS), end)
        assert not world.find(10)
    assert world.client.commits == [dict.fromkeys(range(PARTITIONS), 1_000)] * 3
    world.positions.forget([(TOPIC, 0), (TOPIC, 1)])
    world.client.assigned = {}
    world.assign(0, 1)
    assert not world.find()
    assert world.client.commits[-1] == dict.fromkeys(range(PARTITIONS), 3_000)


def test_with_latest_a_topic_that_the_brokers_do_not_know_yet_is_asked_for_again(eager: bool) -> None:
    world = World(eager, "latest")
    low, world.client.low = world.client.low, {}
    world.assign(0)
    assert not world.find()
    assert world.client.commits == []
    world.client.low = low
    assert not world.find(10)
    world.client.arrive()
    assert world.find(10)
    assert world.client.assigned == {0: 1_000}


def test_B_C22_with_latest_what_comes_while_a_leader_is_away_is_not_skipped_and_the_wait_is_told(
    eager: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(eager, "latest")
    world.client.without_leader = {2}
    world.assign(0, 1)
    assert not world.find()
    world.client.high = dict.fromkeys(range(PARTITIONS), 2_000)
    for _ in range(8):
        assert not world.find(5)
    assert world.client.commits == []
    waits = "waits_for='the leaders of partitions [2] to tell their ends'"
    assert f"start_awaited topic='orders' partitions=2 {waits}" in caplog.text
    world.client.without_leader = set()
    assert not world.find(5)
    assert world.client.commits == [{0: 1_000, 1: 1_000, 2: 2_000, 3: 1_000}]
    world.client.arrive()
    assert world.find(5)
    assert world.client.assigned == {0: 1_000, 1: 1_000}
    assert not world.positions.awaited


def test_B_C22_with_latest_a_partition_that_is_added_meanwhile_starts_at_its_beginning(eager: bool) -> None:
    world = World(eager, "latest")
    del world.client.low[3]
    world.client.without_leader = {2}
    world.assign(0)
    assert not world.find()
    world.client.low[3] = 0  # added, and records came in
    world.client.without_leader = set()
    assert not world.find(5)
    assert world.client.commits == [dict.fromkeys(range(3), 1_000)]


def test_with_latest_no_number_of_leaders_that_are_away_keeps_one_from_being_asked(eager: bool) -> None:
    world = World(eager, "latest")
    world.client.low = world.client.high = dict.fromkeys(range(20), 7)
    world.client.without_leader = set(range(19))
    answer = world.client._answer

    def slow(*partitions: int) -> None:
        if world.client.without_leader & set(partitions):
            world.now += 0.5
        answer(*partitions)

    world.client._answer = slow
    world.assign(0)
    for _ in range(8):
        assert not world.find(5)
    world.client.high = dict.fromkeys(range(20), 8)
    world.client.without_leader = set()
    assert not world.find(5)
    assert world.client.commits == [{**dict.fromkeys(range(19), 8), 19: 7}]


def test_the_other_members_wait_for_the_one_that_has_partition_0(eager: bool, caplog: pytest.LogCaptureFixture) -> None:
    world = World(eager, "latest")
    world.assign(2, 3)
    for _ in range(10):
        assert not world.find(5)
    assert world.client.commits == []
    assert "start_awaited topic='orders' partitions=2 waits_for='the member that has partition 0" in caplog.text
    assert list(world.positions.awaited) == [TOPIC]
    world.client.offsets = dict.fromkeys(range(PARTITIONS), 800)
    assert world.find(5)
    assert world.client.assigned == {2: 800, 3: 800}
    assert not world.positions.awaited


def test_B_C22_with_latest_a_partition_that_was_added_starts_at_its_beginning(eager: bool) -> None:
    world = World(eager, "latest")
    world.client.offsets = {0: 900, 1: 900}
    world.client.low[3] = 5
    world.assign(0, 3)
    assert world.find()
    assert world.client.assigned == {0: 900, 3: 5}
    assert world.client.commits == []
    assert world.committed == [0]


def test_with_latest_an_incomplete_answer_about_the_topic_is_no_sign_of_a_new_group(eager: bool) -> None:
    world = World(eager, "latest")
    world.client.offsets = {1: 900}
    world.client.refused = {1}
    world.assign(0)
    assert not world.find()
    assert world.client.commits == []
    world.client.refused = set()
    assert world.find(5)
    assert world.client.assigned == {0: 0}


def test_B_C22_with_latest_what_expired_is_told_and_the_rest_is_read(
    eager: bool, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(eager, "latest")
    world.client.offsets = {0: 10, 1: 10}
    world.client.low[1] = 25
    world.assign(0, 1)
    world.client.low[0] = 30
    world.lost(0, 10)
    assert world.find()
    assert world.client.assigned == {0: 30, 1: 25}
    assert caplog.text.count("records_expired") == 2


def test_B_C22_with_latest_a_silent_coordinator_is_no_sign_of_a_new_group(eager: bool) -> None:
    world = World(eager, "latest")
    world.client.offsets = {0: 10}
    world.client.unreachable = True
    world.assign(0)
    assert not world.find()
    world.client.unreachable = False
    assert world.find(5)
    assert world.client.assigned == {0: 10}
    assert world.client.commits == []


@pytest.mark.parametrize("steps", sorted(set(itertools.permutations("aabbbc"))), ids="".join)
def test_B_C22_members_of_a_new_group_agree_on_its_start_in_whatever_order_they_come(steps: tuple[str, ...]) -> None:
    """a, b: the members look; c: what was committed arrives."""
    a, b = World(True, "latest"), World(True, "latest")
    b.client.offsets = a.client.offsets  # of one group
    a.assign(0, 1)
    b.assign(2, 3)
    for step in (*steps, "a", "c", "a", "b", "b"):
        if step == "c":
            a.client.arrive()
            a.client.commits.clear()
        else:
            (a if step == "a" else b).find(10)
    assert a.client.assigned == {0: 1_000, 1: 1_000}
    assert b.client.assigned == {2: 1_000, 3: 1_000}
    assert b.client.commits == []
