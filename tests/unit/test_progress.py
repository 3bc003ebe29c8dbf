"""The frontier: never past an unfinished message, and reached when all are finished."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekafka.consumer.progress import PartitionProgress


def progress_of(*offsets: int) -> PartitionProgress:
    progress = PartitionProgress("orders", 0)
    for offset in offsets:
        progress.track(offset)
    return progress


def test_nothing_finished_commits_nothing() -> None:
    assert progress_of(5, 6).to_commit() is None


def test_B_C06_a_log_that_starts_at_5_commits_last_plus_one() -> None:
    progress = progress_of(5, 6, 7)
    for offset in (5, 6, 7):
        progress.done(offset)
    assert progress.to_commit() == 8


def test_B_C06_gaps_of_compaction_and_transaction_markers_do_not_stop_the_frontier() -> None:
    progress = progress_of(3, 9, 20)
    progress.done(3)
    assert progress.to_commit() == 9
    progress.done(9)
    progress.done(20)
    assert progress.to_commit() == 21


def test_C1_a_later_message_finished_first_moves_nothing() -> None:
    progress = progress_of(0, 1, 2)
    progress.done(2)
    progress.done(1)
    assert progress.to_commit() is None
    assert progress.unfinished() == 1
    progress.done(0)
    assert progress.to_commit() == 3


def test_what_was_committed_is_not_committed_again() -> None:
    progress = progress_of(0, 1)
    progress.done(0)
    progress.committed(1)
    assert progress.to_commit() is None
    progress.done(1)
    assert progress.to_commit() == 2


def test_a_failed_commit_is_still_to_be_made() -> None:
    progress = progress_of(0)
    progress.done(0)
    assert progress.to_commit() == 1
    assert progress.to_commit() == 1


def test_an_offset_delivered_out_of_order_is_refused_instead_of_tracked() -> None:
    progress = progress_of(7)
    with pytest.raises(ValueError, match="delivered after 7"):
        progress.track(7)


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
        assert progress.to_commit() == (expected if below else None)
        assert all(o in finished for o in below)
        if data.draw(st.booleans()) and progress.to_commit() is not None:
            progress.committed(expected)
            assert progress.to_commit() is None
            progress._committed = None  # as if the commit had been for another assignment
