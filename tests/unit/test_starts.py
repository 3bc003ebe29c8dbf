"""Where partitions start and go on: the rules alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safekafka.consumer.starts import Choice, Fate, Start, choice_of_latest, start_of

OFFSETS = st.integers(0, 50)


@pytest.mark.parametrize(
    ("position", "low", "refused", "start"),
    [
        (None, 7, False, Start(7, Fate.NEW)),
        (10, 7, False, Start(10, Fate.STANDS)),
        (7, 7, False, Start(7, Fate.STANDS)),
        (6, 7, False, Start(7, Fate.EXPIRED)),
        (6, 7, True, Start(7, Fate.EXPIRED)),
        (500, 7, True, Start(7, Fate.BEYOND_END)),
        (7, 7, True, Start(7, Fate.BEYOND_END)),  # of an empty log, say
    ],
)
def test_where_a_partition_goes_on(position: int | None, low: int, refused: bool, start: Start) -> None:
    assert start_of(position, low, refused) == start


@given(st.none() | OFFSETS, OFFSETS, st.booleans())
def test_C1_no_start_lies_behind_a_record_that_can_be_read_and_was_not(
    position: int | None, low: int, refused: bool
) -> None:
    start = start_of(position, low, refused)
    first_unread = low if position is None else max(position, low)
    assert low <= start.offset <= first_unread
    assert (start.fate is Fate.EXPIRED) == (position is not None and position < low)


@given(st.dictionaries(st.tuples(st.just("orders"), st.integers(0, 5)), st.none() | OFFSETS), st.booleans())
def test_latest_leads_to_the_end_only_in_a_topic_where_the_group_has_nothing_and_by_one_member(
    committed: dict[tuple[str, int], int | None], has_first: bool
) -> None:
    choice = choice_of_latest(committed, has_first)
    if any(offset is not None for offset in committed.values()):
        assert choice is Choice.BEGINNING
    else:
        assert choice is (Choice.END if has_first else Choice.ANOTHER_MEMBER)
