"""The progress of a replay: never beyond a letter that is not done, and none done twice, whatever was left behind."""

from __future__ import annotations

import random
from bisect import bisect_left

import hypothesis.strategies as st
from hypothesis import given

from safekafka.deadletter.progress import MAX_METADATA, Progress, topic_id_of

ID = "0WYud4eATra6hbNg58F+Fg"  # as the brokers tell it
NO_ID = "safekafka-replay-2::"


def run(kept: tuple[int, str], letters: list[int], end: int, chosen: set[int], stop_behind: int) -> tuple[int, str]:
    """One replay: through the letters in order, as far as it gets."""
    progress = Progress(*kept)
    seen = 0
    for offset in letters:
        if offset < progress.position:
            continue
        if seen == stop_behind:
            return progress.to_commit()
        seen += 1
        progress.passed(offset, progress.is_done(offset) or offset in chosen)
    progress.at_end(end)
    return progress.to_commit()


@given(
    gaps=st.lists(st.integers(1, 4), max_size=40),
    runs=st.lists(st.tuples(st.sets(st.integers(0, 120)), st.integers(0, 60)), max_size=8),
)
def test_progress_is_what_a_set_of_done_letters_would_be(gaps: list[int], runs: list[tuple[set[int], int]]) -> None:
    letters = [sum(gaps[: n + 1]) for n in range(len(gaps))]  # with holes between them
    end = (letters[-1] if letters else 0) + 2  # and behind them
    kept, done = (0, ""), set[int]()
    for chosen, stop_behind in runs:
        before = Progress(*kept)
        looked_at = [offset for offset in letters if offset >= before.position][:stop_behind]
        kept = run(kept, letters, end, chosen, stop_behind)
        done |= chosen & set(looked_at)
        after = Progress(*kept)
        assert {offset for offset in letters if after.is_done(offset)} == done
        assert all(offset in done for offset in letters if offset < kept[0])
        if len(looked_at) < stop_behind and len(done) == len(letters):
            assert kept == (end, NO_ID)


def test_metadata_of_others_counts_as_none() -> None:
    form = "safekafka-replay-2:"
    for metadata in ("", "node-7", form, f"{form}!!", f"{form}ABCDE", NO_ID, f"{NO_ID}!!", f"{NO_ID}ABCDE", f"{ID}:"):
        assert topic_id_of(metadata) == ""
        progress = Progress(5, metadata)
        assert progress.is_done(4)
        assert not progress.is_done(5)


def test_the_id_of_the_topic_is_kept_with_and_without_runs() -> None:
    progress = Progress(0, topic_id=ID)
    assert progress.to_commit() == (0, f"safekafka-replay-2:{ID}:")
    progress.passed(0, False)
    progress.passed(1, True)
    position, metadata = progress.to_commit()
    assert topic_id_of(metadata) == ID
    kept = Progress(position, metadata, "another")
    assert (kept.is_done(0), kept.is_done(1)) == (False, True)
    assert topic_id_of(kept.to_commit()[1]) == "another"
    assert topic_id_of(Progress(position, metadata).to_commit()[1]) == ""


def test_the_id_counts_in_what_fits() -> None:
    offsets = random.Random(7).sample(range(1, 10_000_000), 3_000)
    fits = {}
    for topic_id in ("", ID):
        progress = Progress(0, topic_id=topic_id)
        progress.passed(0, False)
        fits[topic_id] = bisect_left(range(len(offsets)), True, key=lambda n: not progress.fits(offsets[:n])) - 1
        for offset in sorted(offsets[: fits[topic_id]]):
            progress.passed(offset - 1, False)
            progress.passed(offset, True)
        assert MAX_METADATA - 10 < len(progress.to_commit()[1]) <= MAX_METADATA
    assert fits[ID] < fits[""]


def test_what_does_not_fit_is_known_before_it_is_done() -> None:
    chance = random.Random(7)
    progress, offset, batches = Progress(0, topic_id=ID), 0, 0
    progress.passed(0, False)  # left behind for ever
    while True:
        batch = []
        for _ in range(500):
            offset += chance.randrange(1, 1_000)
            batch.append(offset)
        if not progress.fits(batch):
            break
        for one in batch:
            progress.passed(one - 1, False)
            progress.passed(one, True)
        batches += 1
        assert len(progress.to_commit()[1]) <= MAX_METADATA
    assert batches >= 2
    kept = Progress(*progress.to_commit())
    assert kept.position == 0
    assert kept.is_done(one)
    assert not kept.is_done(one - 1)


def test_letters_that_retention_removed_are_counted_unless_they_were_done() -> None:
    progress = Progress(0)
    for offset in range(10):
        progress.passed(offset, 3 <= offset < 6)
    kept = Progress(*progress.to_commit())
    assert kept.expire(5) == 3
    assert (kept.position, kept.is_done(5), kept.is_done(6)) == (5, True, False)
    assert kept.expire(5) == 0
