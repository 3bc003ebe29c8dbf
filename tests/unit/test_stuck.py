"""Which partitions are stuck, on a clock of its own."""

from __future__ import annotations

from typing import Any, cast

from safekafka.producer.partitioner import partition_of
from safekafka.record import Fields
from safekafka.spool.spooled import SpooledDelivery, SpooledReceipt
from safekafka.spool.stuck import Stuck

TOPIC, PARTITIONS = "orders", 4
CROWD = 10, 10_000


def record(key: bytes | None = None, partition: int = -1, topic: str = TOPIC) -> Fields:
    return topic, b"", key, None, partition, 1


def sent(at: float, size: int = 100, **options: Any) -> SpooledReceipt:
    receipt = SpooledReceipt(cast(SpooledDelivery, None), record(**options))
    receipt._sent_at = at
    receipt._size = size
    return receipt


def watch() -> Stuck:
    return Stuck("consistent_random", lambda _: PARTITIONS, linger=0.0)


def looked(
    watch: Stuck, line: list[SpooledReceipt], *, until: float, start: float = 0.0, blocked: tuple[str, ...] = ()
) -> set[Any]:
    now = start
    while now <= until:
        if watch.due(now):
            watch.look(now, [line], blocked, CROWD)
        now += 0.1
    return watch.groups


def test_a_partition_whose_oldest_record_stays_is_stuck_and_the_others_are_not() -> None:
    one = watch()
    line = [sent(0, partition=1), sent(0, partition=1), sent(3.5, partition=2)]
    assert looked(one, line, until=1.9) == set()
    assert looked(one, line, until=4.0) == {(TOPIC, 1)}
    assert (one.records, one.bytes) == (2, 200)
    assert one.group_of(record(partition=1)) == (TOPIC, 1)
    assert one.group_of(record(partition=2)) is None
    assert one.group_of(record(partition=1, topic="payments")) is None


def test_keys_are_told_by_the_partition_they_go_to() -> None:
    one = watch()
    key = b"customer-42"
    at = partition_of("consistent_random", key, PARTITIONS)
    looked(one, [sent(0, key=key)], until=4.0)
    others = [b"customer-%d" % n for n in range(50)]
    for other in others:
        same = partition_of("consistent_random", other, PARTITIONS) == at
        assert one.group_of(record(other)) == ((TOPIC, at) if same else None)


def test_a_slow_partition_that_moves_is_not_stuck() -> None:
    one = watch()
    line = [sent(-10, partition=1) for _ in range(100)]
    now = 0.0
    while line:
        one.look(now, [line], (), CROWD)
        assert one.groups == set()
        line.pop(0)
        now += 0.3


def test_what_was_stuck_is_free_when_its_records_are_gone() -> None:
    one = watch()
    line = [sent(0, partition=1)]
    assert looked(one, line, until=4.0)
    line.clear()
    one.look(5.0, [line], (), CROWD)
    assert one.groups == set()
    assert (one.records, one.bytes) == (0, 0)


def test_records_that_chance_gave_a_partition_wait_only_when_they_are_many_or_large() -> None:
    one = watch()
    line = [sent(0) for _ in range(10)]
    assert looked(one, line, until=4.0) == set()
    line.append(sent(0))
    assert looked(one, line, start=4.1, until=5.0) == {(TOPIC, None)}
    assert one.group_of(record()) == (TOPIC, None)
    assert one.group_of(record(b"key")) is None
    assert looked(watch(), [sent(0, size=10_001)], until=4.0) == {(TOPIC, None)}


def test_a_topic_that_refuses_records_is_another_matter() -> None:
    assert looked(watch(), [sent(0, partition=1)], until=10, blocked=(TOPIC,)) == set()


def test_brokers_that_do_not_answer_are_asked_one_question_a_look() -> None:
    """It is asked on the delivery thread, where reports wait meanwhile."""
    asked: list[str] = []
    one = Stuck("consistent_random", lambda topic: asked.append(topic) or 0, linger=0.0)  # type: ignore[func-returns-value]
    line = [sent(0, topic=f"topic-{n}", key=b"1") for n in range(3)]
    for looks in range(1, 6):
        looked(one, line, start=2.1 + looks, until=2.15 + looks)
        assert len(asked) == min(looks, 3)
    assert sorted(asked) == ["topic-0", "topic-1", "topic-2"]
