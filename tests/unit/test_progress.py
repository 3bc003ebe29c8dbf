"""The frontier: never past an unfinished message, and reached when all are finished."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from safekafka.consumer.offset_map import OffsetMap
from safekafka.consumer.progress import PartitionProgress, Position

progress_file = PartitionProgress.track.__code__.co_filename


def progress_of(*offsets: int) -> PartitionProgress:
    progress = PartitionProgress("orders", 0)
    for offset in offsets:
        progress.track(offset, 1)
    return progress


def to_commit(progress: PartitionProgress) -> int | None:
    position = progress.to_commit()
    return None if position is None else position.offset


def test_nothing_finished_commits_nothing() -> None:
    assert to_commit(progress_of(5, 6)) is None


def test_B_C06_a_log_that_starts_at_5_commits_last_plus_one() -> None:
    progress = progress_of(5, 6, 7)
    for offset in (5, 6, 7):
        progress.done(offset)
    assert to_commit(progress) == 8


def test_B_C06_gaps_of_compaction_and_transaction_markers_do_not_stop_the_frontier() -> None:
    progress = progress_of(3, 9, 20)
    progress.done(3)
    assert to_commit(progress) == 9
    progress.done(9)
    progress.done(20)
    assert to_commit(progress) == 21


def test_C1_a_later_message_finished_first_moves_nothing() -> None:
    progress = progress_of(0, 1, 2)
    progress.done(2)
    progress.done(1)
    assert to_commit(progress) is None
    assert progress.unfinished == 1
    progress.done(0)
    assert to_commit(progress) == 3


def test_what_was_committed_is_not_committed_again() -> None:
    progress = progress_of(0, 1)
    progress.done(0)
    progress.committed(Position(1, ""))
    assert to_commit(progress) is None
    progress.done(1)
    assert to_commit(progress) == 2


def test_a_failed_commit_is_still_to_be_made() -> None:
    progress = progress_of(0)
    progress.done(0)
    assert to_commit(progress) == 1
    assert to_commit(progress) == 1


def test_an_offset_delivered_out_of_order_is_refused_instead_of_tracked() -> None:
    progress = progress_of(5, 7)
    for offset in (4, 6):
        with pytest.raises(ValueError, match="delivered after 7"):
            progress.track(offset, 1)
    assert progress.unfinished == 2


def test_C1_C2_a_message_that_the_client_hands_out_twice_is_not_handled_twice() -> None:
    """Seen around rebalances of other partitions. What is new behind it is handled; what may never have come is
    refused."""
    progress = progress_of(3, 7, 8)
    assert len(progress.track_run([delivered(9), delivered(10)], epochs=False)) == 2
    progress.done(7)
    again = progress.track_run([delivered(offset) for offset in range(7, 13)], epochs=False)
    assert [message.offset() for message in again] == [11, 12]
    assert progress.unfinished == 6  # 3, 8 to 12
    assert not progress.track(12, 1)
    assert not progress.track(3, 1)
    with pytest.raises(ValueError, match="delivered after 12"):
        progress.track(6, 1)


@given(
    st.lists(st.integers(0, 60), min_size=1, unique=True).map(sorted),
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 20))),
)
def test_C1_C2_a_log_with_gaps_may_be_handed_out_twice_too(log: list[int], runs: list[tuple[int, int]]) -> None:
    """Compaction and transactions leave them. Some of the last run, or of those before, comes again with the next."""
    progress = PartitionProgress("orders", 0)
    tracked: list[int | None] = []
    at = 0
    for length, back in [*runs, (len(log), 0)]:
        start = max(0, at - back)
        run = [delivered(offset) for offset in log[start : at + length]]
        if run:
            tracked += [message.offset() for message in progress.track_run(run, epochs=False)]
        at = min(len(log), at + length)
    assert tracked == log
    for never in set(range(log[0], log[-1])) - set(log):
        with pytest.raises(ValueError, match="delivered after"):
            progress.track(never, 1)


@given(st.sets(st.integers(0, 200), min_size=1), st.data())
def test_C1_the_frontier_is_what_a_naive_model_says_after_every_step(offsets: set[int], data: st.DataObject) -> None:
    delivered = sorted(offsets)
    progress = progress_of(*delivered)
    finished: set[int] = set()
    for offset in data.draw(st.permutations(delivered)):
        progress.done(offset)
        finished.add(offset)
        open_offsets = [o for o in delivered if o not in finished]
        expected = min(open_offsets) if open_offsets else delivered[-1] + 1
        below = [o for o in delivered if o < expected]
        assert to_commit(progress) == (expected if below else None)
        assert all(o in finished for o in below)
        if data.draw(st.booleans()) and to_commit(progress) is not None:
            progress.committed(Position(expected, ""))
            assert to_commit(progress) is None
            progress._committed = None  # as if the commit had been for another assignment


def delivered(offset: int, size: int = 1, epoch: int | None = 0) -> Message:
    return Message(
        topic="orders", partition=0, offset=offset, value=bytes(size), leader_epoch=-1 if epoch is None else epoch
    )


RUNS = st.lists(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9), st.sampled_from([None, 0, 1])), min_size=1, max_size=8),
    max_size=5,
)


@given(RUNS, st.booleans(), st.one_of(st.none(), st.sets(st.integers(10, 30), min_size=1)))
def test_C1_many_at_once_are_tracked_as_one_by_one(
    runs: list[list[tuple[int, int, int | None]]], epochs: bool, finished_before: set[int] | None
) -> None:
    """`runs`: of each message the step to its offset, its size, its leader's epoch."""
    before = None
    if finished_before is not None:
        unfinished = [offset for offset in range(10, 31) if offset not in finished_before]
        before = OffsetMap("id", 10, 31, unfinished, [(10, 0)])
    one, many = (PartitionProgress("orders", 0, topic_id="id", before=before) for _ in range(2))
    offset = 5
    for steps in runs:
        messages, expected = [], []
        for step, size, epoch in steps:
            offset += step
            messages.append(delivered(offset, size, epoch))
            if one.track(offset, size, epoch if epochs and epoch is not None else -1):
                expected.append(messages[-1])
        assert list(many.track_run(messages, epochs=epochs)) == expected
        for message in expected[::2]:
            one.done(message.offset())  # type: ignore[arg-type]
            many.done(message.offset())  # type: ignore[arg-type]
        for name in PartitionProgress.__slots__:
            if name != "finished":
                assert getattr(one, name) == getattr(many, name), name


class Interrupt(BaseException):
    """As a signal handler raises it."""


def interrupted(step: int, call: Callable[[], object]) -> bool:
    """Run it until the given line of progress.py. False: it ended before."""
    left = step

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename != progress_file:
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except Interrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("what", ["track_run", "track", "settle"])
@pytest.mark.parametrize("before", [None, OffsetMap("id", 0, 5, [3], [(0, 0)])], ids=["", "with what was finished"])
def test_C1_a_signal_handler_that_raises_anywhere_moves_no_frontier_past_an_unhandled_message(
    what: str, before: OffsetMap | None
) -> None:
    for step in itertools.count(1):
        progress = PartitionProgress("orders", 0, topic_id="id")
        for offset in (0, 1, 2):
            progress.track(offset, 1)
        progress.before = before
        for offset in (0, 2) if what == "settle" else (0, 1, 2):
            progress.finished.append(delivered(offset))
        lowest = 1 if what == "settle" else 3
        more = [delivered(offset) for offset in (3, 4, 5)]
        calls: dict[str, Callable[[], object]] = {
            "track_run": lambda progress=progress, more=more: progress.track_run(more, epochs=True),
            "track": lambda progress=progress: progress.track(3, 1, 0),
            "settle": lambda progress=progress: progress.settle(),
        }
        if what != "settle":
            progress.settle()
        again = interrupted(step, calls[what])
        progress.settle()
        position = progress.to_commit()
        assert position is None or position.offset <= lowest, f"interrupted at line {step}"
        if not again:
            assert step > 5
            break


@pytest.mark.parametrize("offsets", [[6], [9, 8], [11, 9]])
def test_a_run_delivered_out_of_order_is_refused_instead_of_tracked(offsets: list[int]) -> None:
    progress = progress_of(7)
    with pytest.raises(ValueError, match="delivered after"):
        progress.track_run([delivered(offset) for offset in offsets], epochs=False)
