"""Which record of a new client goes alone, and which need not."""

from __future__ import annotations

from collections import Counter

import pytest

from safekafka.producer.known import Known, Place
from safekafka.producer.partitioner import partition_of
from safekafka.record import Fields

TOPIC, PARTITIONER = "orders", "consistent_random"


def record(key: bytes | None = None, partition: int = -1, topic: str = TOPIC) -> Fields:
    return topic, b"", key, None, partition, 0


@pytest.fixture
def known() -> Known:
    return Known(PARTITIONER, 0.0)


def acknowledge(known: Known, place: Place, partition: int) -> list[Place]:
    known.first[place] = True
    known.reported(place, partition)
    return known.settle()


def know(known: Known, *partitions: int, count: int = 4) -> None:
    known.learned(TOPIC, range(count), range(count), 0.0)
    for partition in partitions:
        acknowledge(known, (TOPIC, partition), partition)


def test_the_topic_stands_for_its_partitions_until_they_are_known(known: Known) -> None:
    assert known.way(record(b"key")) == (-1, (TOPIC, None))
    assert known.way(record(partition=3)) == (3, (TOPIC, None))
    assert acknowledge(known, (TOPIC, None), 3) == [(TOPIC, None)]
    assert known.way(record(partition=3)) == (3, None)
    assert known.way(record(partition=2)) == (2, (TOPIC, None))
    assert known.to_ask([TOPIC], 0.0) == [TOPIC]
    know(known)
    assert known.to_ask([TOPIC], 0.0) == []
    assert known.way(record(partition=2)) == (2, (TOPIC, 2))


def test_each_partition_is_known_by_its_own_first_record_and_then_the_topic_is(known: Known) -> None:
    know(known, 0, 1, 2)
    keys = {partition_of(PARTITIONER, b"%d" % n, 4): b"%d" % n for n in range(50)}
    assert [known.way(record(keys[partition]))[1] for partition in range(4)] == [None, None, None, (TOPIC, 3)]
    assert TOPIC not in known.topics
    know(known, 3)
    assert TOPIC in known.topics
    assert known.way(record()) == (-1, None)


def test_a_refused_first_record_makes_nothing_known(known: Known) -> None:
    know(known)
    known.first[TOPIC, 1] = True
    known.reported((TOPIC, 1), None)
    assert known.settle() == [(TOPIC, 1)]
    assert known.first == {}
    assert known.way(record(partition=1)) == (1, (TOPIC, 1))


def test_records_without_a_key_go_to_partitions_that_are_new_and_free_and_else_to_known_ones(known: Known) -> None:
    know(known, 0)
    known.first.update({(TOPIC, 1): True, (TOPIC, 2): True})
    assert known.way(record()) == (3, (TOPIC, 3))
    known.first[TOPIC, 3] = True
    assert {known.way(record()) for _ in range(20)} == {(0, None)}


def test_without_a_known_partition_a_record_without_a_key_waits(known: Known) -> None:
    know(known)
    known.first.update({(TOPIC, partition): True for partition in range(4)})
    for _ in range(20):
        partition, place = known.way(record())
        assert place == (TOPIC, partition)
        assert place in known.first


def test_partitions_without_a_leader_are_left_to_records_that_must_go_there(known: Known) -> None:
    known.learned(TOPIC, range(3), [0, 2], 0.0)
    chosen = Counter(known.way(record())[0] for _ in range(200))
    assert set(chosen) == {0, 2}
    assert known.way(record(partition=1)) == (1, (TOPIC, 1))
    assert known.to_ask([TOPIC], 1.0) == []
    assert known.to_ask([TOPIC], 100.0) == [TOPIC]
    known.learned(TOPIC, range(3), [], 100.0)
    assert known.way(record()) == (-1, (TOPIC, None))


def test_a_partition_that_is_not_there_is_for_the_client_to_refuse(known: Known) -> None:
    know(known, 0)
    assert known.way(record(partition=9)) == (9, None)


def test_a_topic_that_has_more_partitions_than_it_had_is_asked_for_again(known: Known) -> None:
    know(known)
    acknowledge(known, (TOPIC, 1), 5)
    assert known.to_ask([TOPIC], 0.0) == [TOPIC]
    assert known.way(record(partition=5)) == (5, None)


def test_with_one_request_at_a_time_nothing_is_overtaken(known: Known) -> None:
    one_at_a_time = Known(PARTITIONER, 0.0, alone=True)
    assert TOPIC in one_at_a_time.topics
    assert one_at_a_time.way(record()) == (-1, None)
    assert one_at_a_time.believes(TOPIC, 0)
    assert not known.believes(TOPIC, 0)
    know(known, 0)
    assert known.believes(TOPIC, 0)
