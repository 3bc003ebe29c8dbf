"""Progress and lanes against a naive model: whatever finishes when, fails, is taken away, comes back or crashes,
nothing unfinished is committed, nothing is left out, and no two messages of a lane are handled at once or out of order.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, ClassVar

import pytest
from confluent_kafka import Message
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from safekafka.consumer.lanes import Lane, Lanes, Order, PartitionLanes
from safekafka.consumer.offset_map import decode
from safekafka.consumer.progress import PartitionProgress, Position

TOPIC_ID, PARTITIONS = "topic-id", 2
NUMBERS = st.integers(0, 1 << 20)


def message(partition: int, offset: int, key: bytes | None) -> Message:
    return Message(topic="orders", partition=partition, offset=offset, key=key, value=b"1", leader_epoch=offset // 10)


class ConsumerModel(RuleBasedStateMachine):
    """One process at a time; `work` holds what its workers have."""

    order: ClassVar[Order]
    seen: ClassVar[Counter[str]] = Counter()

    @initialize()
    def begin(self) -> None:
        self.logs: dict[int, list[Message]] = {partition: [] for partition in range(PARTITIONS)}
        self.ends = dict.fromkeys(range(PARTITIONS), 5)
        self.committed: dict[int, Position] = {}
        self.handled: Counter[tuple[int, int]] = Counter()
        self.finished_before_clean_end: set[tuple[int, int]] = set()
        self.finished_by: dict[PartitionLanes, set[tuple[int, int]]] = {}
        self.now = 0.0
        self.start()

    def start(self) -> None:
        """A process."""
        self.lanes = Lanes(self.order)
        self.assigned: dict[int, PartitionLanes] = {}
        self.work: list[tuple[Lane, Message]] = []
        self.started: dict[int, dict[Any, int]] = {}  # the last offset handled of each lane in this assignment

    def lane_key(self, message: Message) -> Any:
        return {"partition": None, "key": message.key(), "none": message.offset()}[self.order]

    # ---- the log

    @rule(
        partition=st.integers(0, PARTITIONS - 1), keys=st.lists(st.sampled_from([None, b"a", b"b", b"c"]), max_size=6)
    )
    def produce(self, partition: int, keys: list[bytes | None]) -> None:
        for key in keys:
            self.ends[partition] += 1 + (self.ends[partition] % 3 == 0)  # with gaps
            self.logs[partition].append(message(partition, self.ends[partition], key))

    # ---- the group

    @precondition(lambda self: len(self.assigned) < PARTITIONS)
    @rule(number=NUMBERS)
    def assign(self, number: int) -> None:
        free = [partition for partition in range(PARTITIONS) if partition not in self.assigned]
        partition = free[number % len(free)]
        position = self.committed.get(partition)
        before = None if position is None else decode(position.metadata)
        progress = PartitionProgress("orders", partition, topic_id=TOPIC_ID, before=before)
        self.assigned[partition] = PartitionLanes(progress)
        self.started[partition] = {}

    @precondition(lambda self: self.assigned)
    @rule(number=NUMBERS, lost=st.booleans(), late=st.booleans())
    def take_away(self, number: int, lost: bool, late: bool) -> None:
        """`late`: handlers that run are not through at the deadline."""
        partition = sorted(self.assigned)[number % len(self.assigned)]
        lanes = self.assigned[partition]
        self.lanes.give_up([lanes])
        if not lost:
            if not late:
                self.finish_all(partition)
                assert self.lanes.are_free([lanes])
            self.commit_one(partition)
            if not late:
                self.note_clean(partition)
        del self.assigned[partition]
        self.seen["lost" if lost else "revoked late" if late else "revoked"] += 1

    @rule(really=st.integers(0, 5))
    def crash(self, really: int) -> None:
        if not really:
            self.seen["crash"] += 1
            self.start()

    @rule(really=st.integers(0, 2))
    def stop(self, really: int) -> None:
        if really:
            return
        for partition in list(self.assigned):
            self.lanes.give_up([self.assigned[partition]])
            self.finish_all(partition)
            self.commit_one(partition)
            self.note_clean(partition)
        self.start()

    def note_clean(self, partition: int) -> None:
        self.finished_before_clean_end |= self.finished_by.get(self.assigned[partition], set())

    def finish_all(self, partition: int) -> None:
        for lane, message in [one for one in self.work if one[1].partition() == partition]:
            self.finish(lane, message)

    # ---- taking and handling

    @precondition(lambda self: self.assigned)
    @rule(number=NUMBERS, count=st.integers(1, 6))
    def poll(self, number: int, count: int) -> None:
        self.poll_one(sorted(self.assigned)[number % len(self.assigned)], count)

    def poll_one(self, partition: int, count: int) -> None:
        lanes = self.assigned[partition]
        position = self.committed.get(partition)
        start = lanes.progress.next_offset
        if start is None:
            start = 0 if position is None else position.offset
        messages = [message for message in self.logs[partition] if message.offset() >= start][:count]
        if not messages:
            return
        fresh: Any = lanes.progress.track_run(messages, epochs=True)  # type: ignore[arg-type]
        self.seen["skipped"] += len(messages) - len(fresh)
        self.lanes.add(lanes, fresh)

    @rule(most=st.integers(1, 3))
    def take(self, most: int) -> None:
        self.lanes.wake(self.now)
        for lane in self.lanes.take(most):
            message: Any = lane.head
            lane.head = None
            partition = message.partition()
            others = [(one.of.place[1], self.lane_key(m)) for one, m in self.work]
            assert (partition, self.lane_key(message)) not in others, "two of a lane at once"
            assert not any(one.of is not lane.of and one.of.place == lane.of.place for one, _ in self.work), (
                "a handler of an earlier assignment still runs"
            )
            last = self.started[partition].get(self.lane_key(message), -1)
            assert message.offset() >= last, "out of order"
            self.started[partition][self.lane_key(message)] = message.offset()
            self.work.append((lane, message))

    @precondition(lambda self: self.work)
    @rule(number=NUMBERS)
    def succeeds(self, number: int) -> None:
        self.finish(*self.work[number % len(self.work)])

    def finish(self, lane: Lane, message: Message) -> None:
        self.work.remove((lane, message))
        done = message.partition(), message.offset()
        if not lane.of.progress.revoked:
            assert done not in self.finished_before_clean_end, "handled again although it was told to be finished"
        self.handled[done] += 1
        self.finished_by.setdefault(lane.of, set()).add(done)
        lane.of.progress.finished.append(message)  # type: ignore[arg-type]
        self.lanes.give_back_all([lane])

    @precondition(lambda self: self.work)
    @rule(number=NUMBERS, wait=st.integers(0, 3))
    def fails(self, number: int, wait: int) -> None:
        lane, message = self.work.pop(number % len(self.work))
        lane.head = message
        self.lanes.give_back(lane, self.now + wait)
        self.seen["retry"] += 1

    @rule(
        keys=st.lists(st.sampled_from([None, b"a", b"b", b"c"]), min_size=2, max_size=8),
        steps=st.lists(st.tuples(st.sampled_from(["take", "succeeds", "succeeds", "fails"]), NUMBERS), max_size=8),
    )
    def goes_on(self, keys: list[bytes | None], steps: list[tuple[str, int]]) -> None:
        self.produce(keys.count(b"a") % PARTITIONS, keys)
        for partition in self.assigned:
            self.poll_one(partition, 5)
        self.take(3)
        for step, number in steps:
            if step == "take":
                self.take(1 + number % 3)
            elif self.work and step == "succeeds":
                self.succeeds(number)
            elif self.work:
                self.fails(number, number % 3)
        for partition in self.assigned:
            self.commit_one(partition)

    @rule(seconds=st.integers(1, 3))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    # ---- committing

    @precondition(lambda self: self.assigned)
    @rule(number=NUMBERS, fails=st.booleans())
    def commit(self, number: int, fails: bool) -> None:
        partition = sorted(self.assigned)[number % len(self.assigned)]
        if fails:
            self.assigned[partition].progress.settle()
            self.assigned[partition].progress.to_commit()
        else:
            self.commit_one(partition)

    def commit_one(self, partition: int) -> None:
        progress = self.assigned[partition].progress
        progress.settle()
        position = progress.to_commit()
        if position is None:
            return
        before = self.committed.get(partition)
        assert before is None or position.offset >= before.offset, "rewound"
        for message in self.logs[partition]:
            if message.offset() < position.offset:
                assert self.handled[partition, message.offset()], (
                    f"{message.offset()} is committed, and was not handled"
                )
        self.committed[partition] = position
        progress.committed(position)

    # ---- always

    @invariant()
    def counts_agree(self) -> None:
        if hasattr(self, "lanes"):
            assert self.lanes.ready == sum(len(of.ready) for of in self.assigned.values())
            for of in self.assigned.values():
                assert all(len(lane) or of.running for lane in of.lanes.values()), "an empty lane is kept"

    def teardown(self) -> None:
        """In the end, with time and no further trouble, everything is handled."""
        if not hasattr(self, "logs"):
            return
        for _ in range(10_000):
            while self.work:
                self.succeeds(0)
            while len(self.assigned) < PARTITIONS:
                self.assign(0)
            for partition in range(PARTITIONS):
                self.poll_one(partition, 10)
            self.now += 10
            self.take(3)
            if not self.work and all(
                not log or log[-1].offset() < (self.assigned[partition].progress.next_offset or 0)
                for partition, log in self.logs.items()
            ):
                break
        missing = [(p, m.offset()) for p, log in self.logs.items() for m in log if not self.handled[p, m.offset()]]
        assert not missing, f"never handled: {missing}"
        for partition, log in self.logs.items():
            self.commit_one(partition)
            if log:
                assert self.committed[partition] == (log[-1].offset() + 1, "")


@pytest.mark.parametrize("order", ["partition", "key", "none"])
def test_C1_C2_C3_against_a_naive_model(order: Order, scale: int) -> None:
    model: Any = type(f"Model_{order}", (ConsumerModel,), {"order": order, "seen": Counter()})
    wanted = {"retry", "revoked", "revoked late", "lost", "crash"} | (
        {"skipped"} if order != "partition" else set()
    )  # skipped: by an offset map
    for _ in range(10):  # chance decides what a run comes to
        run_state_machine_as_test(
            model,
            settings=settings(
                max_examples=80 * scale,
                stateful_step_count=60,
                deadline=None,
                suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
            ),
        )
        if all(model.seen[what] for what in wanted):
            break
    print(order, dict(model.seen))
    assert all(model.seen[what] for what in wanted)
