"""The map of what is finished beyond the committed offset, as it goes through the commit's metadata."""

from __future__ import annotations

import base64
import random
import sys
import threading
import zlib

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from safekafka.consumer.offset_map import MAX_CHARACTERS, OffsetMap, decode, encode
from safekafka.consumer.progress import PartitionProgress

NAME = "0xB3MIYpQzyUpG5xLlbw_Q"


@given(st.sets(st.integers(0, 5_000)), st.integers(0, 1 << 40), st.lists(st.integers(-1, 9), min_size=1, max_size=5))
def test_what_is_encoded_is_decoded(open_: set[int], start: int, epochs: list[int]) -> None:
    segments = [(start + 1_000 * n, epoch) for n, epoch in enumerate(epochs)]
    end = start + 5_001
    found = decode(encode(OffsetMap(NAME, start, end, sorted(start + offset for offset in open_), segments)))
    assert found is not None
    assert (found.topic_id, found.start, found.end, found.epochs) == (NAME, start, end, segments)
    for offset in range(start, end, 7):
        epoch = [epoch for first, epoch in segments if first <= offset][-1]
        assert found.is_finished(offset, epoch) == (epoch >= 0 and offset - start not in open_)
        assert not found.is_finished(offset, epoch + 1)
    assert not found.is_finished(end, segments[-1][1])
    assert not found.is_finished(start - 1, segments[0][1])


@pytest.mark.parametrize(
    "text",
    [None, "", "pc:abc", "e3JlYWQ=", "safekafka1:", "safekafka1:!!!", "safekafka1:" + "0" * 99, "\x00", "é" * 50],
)
def test_foreign_and_damaged_metadata_is_no_map(text: str | None) -> None:
    assert decode(text) is None


@given(st.data())
def test_a_damaged_map_never_raises(data: st.DataObject) -> None:
    text = encode(OffsetMap(NAME, 5, 50, [5, 9, 30], [(5, 0)]))
    place = data.draw(st.integers(11, len(text) - 1))
    decode(text[:place] + data.draw(st.characters(codec="ascii")) + text[place + 1 :])
    decode(text[:place])


def test_B_C09_a_bomb_is_refused() -> None:
    assert decode("safekafka1:" + base64.b85encode(zlib.compress(b"\x01" * (2 << 20), 9)).decode()) is None


def test_B_C09_a_map_written_while_workers_finish_tells_of_nothing_unfinished() -> None:
    count = 3_000
    progress = PartitionProgress("orders", 0, topic_id=NAME)
    for offset in range(count):
        progress.track(offset, 1, 0)
    noted: set[int] = set()

    def work(offsets: list[int]) -> None:
        for offset in offsets:
            noted.add(offset)
            progress.finished.append(Message(topic="orders", partition=0, offset=offset))

    offsets = list(range(1, count))
    random.Random(1).shuffle(offsets)
    workers = [threading.Thread(target=work, args=(offsets[n::4],)) for n in range(4)]
    for worker in workers:
        worker.start()
    most = 0
    while most < count - 1:
        progress.settle()
        position = progress.to_commit()
        map_ = None if position is None else decode(position.metadata)
        told = set() if map_ is None else {offset for offset in range(count) if map_.is_finished(offset, 0)}
        assert told <= noted
        most = max(most, len(told))
    for worker in workers:
        worker.join()


@given(st.sets(st.integers(0, 120), min_size=1), st.data())
def test_who_has_the_partition_next_handles_what_was_not_finished_and_nothing_else(
    offsets: set[int], data: st.DataObject
) -> None:
    """Through any number of clean handovers, each at any moment."""
    epochs = {offset: offset // 50 for offset in offsets}
    handled: set[int] = set()
    metadata, committed = "", min(offsets)
    for _ in range(data.draw(st.integers(1, 4))):
        progress = PartitionProgress("orders", 0, topic_id=NAME, before=decode(metadata))
        delivered = sorted(offset for offset in offsets if offset >= committed)
        delivered = delivered[: data.draw(st.integers(0, len(delivered)))]
        given_out = [offset for offset in delivered if progress.track(offset, 1, epochs[offset])]
        assert not handled & set(given_out), "handled again"
        for offset in data.draw(st.permutations(given_out))[: data.draw(st.integers(0, len(given_out)))]:
            progress.done(offset)
            handled.add(offset)
        position = progress.to_commit()
        if position is not None:
            assert all(offset in handled for offset in offsets if offset < position.offset), "past an unfinished one"
            committed, metadata = position
    progress = PartitionProgress("orders", 0, topic_id=NAME, before=decode(metadata))
    rest = {offset for offset in sorted(offsets) if offset >= committed and progress.track(offset, 1, epochs[offset])}
    assert rest == offsets - handled


def test_messages_of_another_leader_epoch_are_handled_again() -> None:
    progress = PartitionProgress("orders", 0, topic_id=NAME)
    for offset in range(4):
        progress.track(offset, 1, 7)
    progress.done(2)
    position = progress.to_commit()
    assert position is not None
    assert position.offset == 0
    again = PartitionProgress("orders", 0, topic_id=NAME, before=decode(position.metadata))
    assert [again.track(offset, 1, 8) for offset in range(4)] == [True] * 4
    again = PartitionProgress("orders", 0, topic_id=NAME, before=decode(position.metadata))
    assert [again.track(offset, 1, 7) for offset in range(4)] == [True, True, False, True]


def test_a_map_too_large_is_left_out_and_holds_the_partition_back_before() -> None:
    progress = PartitionProgress("orders", 0, topic_id=NAME)
    chance = random.Random(1)
    offset, lengths, held_at = 0, [], None
    for n in range(20_000):
        offset += chance.randrange(1, 5_000)
        progress.track(offset, 1, 0)
        if n % 3:
            progress.done(offset)
        if n % 100 == 99:
            position = progress.to_commit()
            lengths.append(0 if position is None else len(position.metadata))
            if progress.held_back and held_at is None:
                held_at = lengths[-1]
    assert max(lengths) <= MAX_CHARACTERS
    assert lengths[-1] == 0, "still told, though too large"
    assert progress.held_back
    assert held_at is not None
    assert held_at > MAX_CHARACTERS // 2
    for open_ in list(progress._open):
        progress.done(open_)
    position = progress.to_commit()
    assert position is not None
    assert position == (offset + 1, "")
    assert not progress.held_back


def test_memory_is_that_of_the_unfinished_however_much_is_finished_beyond() -> None:
    progress = PartitionProgress("orders", 0, topic_id=NAME)
    for offset in range(200_000):
        progress.track(offset, 1, 0)
        if offset:
            progress.done(offset)
    assert progress.unfinished == 1
    assert sys.getsizeof(progress._open) < 100_000
    position = progress.to_commit()
    assert position is not None
    assert position.offset == 0
    assert len(position.metadata) < 100


@pytest.mark.parametrize("gap", [1, 2, 10, 100, 100_000])
@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.8, 0.98])
def test_whatever_is_finished_of_what_is_held_back_in_time_can_be_told(gap: int, share: float) -> None:
    chance = random.Random(gap * share)
    progress, offsets = PartitionProgress("orders", 0, topic_id="x" * 22), [0]
    while not progress.may_outgrow(held=False):
        for _ in range(100):
            progress.track(offsets[-1], 1, 3)
            offsets.append(offsets[-1] + chance.randint(1, 2 * gap - 1))
    assert gap > 1 or progress.unfinished > 10_000, "the default of max_in_flight is never held back by this"
    for offset in [*(one for one in offsets[1:-2] if chance.random() < share), offsets[-2]]:
        progress.done(offset)
    position = progress.to_commit()
    assert position is not None
    assert decode(position.metadata) is not None
