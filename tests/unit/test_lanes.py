"""Lanes, where `test_consumer_model.py` does not reach: what they hold when there are many."""

from __future__ import annotations

from typing import Any

import pytest

from safekafka.consumer.lanes import Lanes, Order, PartitionLanes
from safekafka.consumer.progress import PartitionProgress


class FakeMessage:
    def __init__(self, offset: int) -> None:
        self._offset = offset

    def offset(self) -> int:
        return self._offset

    def key(self) -> bytes:
        return b"%d" % self._offset


@pytest.mark.parametrize("order", ["key", "none"])
def test_B_C27_a_lane_exists_only_while_it_holds_messages_however_many_keys_there_are(order: Order) -> None:
    lanes = Lanes(order)
    of = PartitionLanes(PartitionProgress("orders", 0))
    moment, offset = 0.0, 0
    for _ in range(1_000):
        messages: Any = [FakeMessage(offset + n) for n in range(100)]
        offset += 100
        lanes.add(of, messages)
        assert len(of.lanes) == 100
        for attempt in range(2):  # each fails once, and waits
            moment += 1
            lanes.wake(moment)
            while taken := lanes.take(7):
                for lane in taken:
                    if attempt:
                        lane.head = None
                    lanes.give_back(lane, None if attempt else moment + 0.5)
        assert (len(of.lanes), lanes.ready, len(lanes._waiting), len(of.ready)) == (0, 0, 0, 0)
    assert not vars(lanes)["_line"]


@pytest.mark.parametrize("most", [1, 5])
def test_partitions_take_turns_and_in_each_its_lanes_do(most: int) -> None:
    """A long backlog of one starves no other: not of a partition, not of a key."""
    lanes = Lanes("key")
    backlog, other = (PartitionLanes(PartitionProgress("orders", partition)) for partition in (0, 1))
    messages: Any = [FakeMessage(offset) for offset in range(1_000)]
    lanes.add(backlog, messages)
    lanes.add(other, messages[:3])
    taken = [lanes.take(most) for _ in range(2 if most > 1 else 4)]
    turns = [{lane.of for lane in turn} for turn in taken]
    assert turns == [{backlog}, {other}] * (len(turns) // 2)
    first = taken[0][0]
    first.head = None
    first.extend(messages[:2])  # the same key goes on
    lanes.give_back(first)
    assert backlog.ready[-1] is first, "it is at once in front of the keys that wait"
