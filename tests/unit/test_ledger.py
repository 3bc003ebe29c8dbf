"""The ledger checker: an example of each finding, and properties against an obvious rewriting of the definitions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from random import Random

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from safekafka.testing.ledger import Entry, audit_log, log_entries

A, B = b"a", b"b"


def accepted(key: bytes | None, *ids: int) -> list[Entry]:
    return [Entry(key, id) for id in ids]


def log(key: bytes | None, *ids: int, partition: int = 0, start: int = 0) -> list[Entry]:
    return [Entry(key, id, partition, start + offset) for offset, id in enumerate(ids)]


def test_all_records_once_and_in_order_is_ok() -> None:
    report = audit_log(accepted(A, 1, 2, 3), log(A, 1, 2, 3))
    assert report.ok
    assert (report.accepted, report.in_kafka) == (3, 3)


def test_nothing_accepted_and_nothing_in_the_log_is_ok() -> None:
    assert audit_log([], []).ok


def test_an_accepted_record_missing_in_the_log_is_lost() -> None:
    report = audit_log(accepted(A, 1, 2, 3), log(A, 1, 3))
    assert not report.ok
    assert (report.lost, report.lost_first) == (1, (Entry(A, 2),))
    assert (report.duplicates, report.out_of_order, report.unexpected) == (0, 0, 0)


def test_the_second_copy_of_a_record_is_a_duplicate() -> None:
    report = audit_log(accepted(A, 1, 2), log(A, 1, 2, 1))
    assert not report.ok
    assert (report.duplicates, report.duplicates_first) == (1, (Entry(A, 1, 0, 2),))
    assert (report.in_kafka, report.lost, report.out_of_order) == (2, 0, 0)


def test_a_copy_in_another_partition_is_a_duplicate() -> None:
    assert audit_log(accepted(A, 1), [Entry(A, 1, 0, 0), Entry(A, 1, 1, 0)]).duplicates == 1


def test_a_record_before_its_predecessor_is_out_of_order() -> None:
    report = audit_log(accepted(A, 1, 2, 3), log(A, 2, 1, 3))
    assert not report.ok
    assert (report.out_of_order, report.out_of_order_first) == (1, (Entry(A, 2, 0, 0),))
    assert (report.lost, report.duplicates) == (0, 0)


def test_a_resent_copy_after_its_successor_is_a_duplicate_but_not_out_of_order() -> None:
    report = audit_log(accepted(A, 1, 2), log(A, 1, 2, 1, 2))
    assert (report.duplicates, report.out_of_order) == (2, 0)


def test_a_lost_record_does_not_hide_the_disorder_around_it() -> None:
    report = audit_log(accepted(A, 1, 2, 3), log(A, 3, 1))
    assert (report.lost, report.out_of_order) == (1, 1)


def test_order_is_that_of_acceptance_not_of_the_identities() -> None:
    assert audit_log(accepted(A, 30, 10, 20), log(A, 30, 10, 20)).ok


def test_the_order_between_keys_and_between_partitions_is_not_judged() -> None:
    assert audit_log(accepted(A, 1) + accepted(B, 1), log(B, 1) + log(A, 1, start=1)).ok
    assert audit_log(accepted(A, 1, 2), log(A, 2, partition=0) + log(A, 1, partition=1, start=9)).ok


def test_the_log_may_be_given_in_any_order_and_with_gaps() -> None:
    entries = [Entry(A, 3, 0, 90), Entry(A, 1, 0, 5), Entry(A, 2, 0, 7)]
    assert audit_log(accepted(A, 1, 2, 3), entries).ok


def test_a_record_that_nobody_accepted_is_unexpected() -> None:
    report = audit_log(accepted(A, 1), log(A, 1, 2))
    assert not report.ok
    assert (report.unexpected, report.unexpected_first) == (1, (Entry(A, 2, 0, 1),))


def test_a_record_whose_key_was_changed_is_lost_and_unexpected() -> None:
    report = audit_log(accepted(A, 1), log(B, 1))
    assert (report.lost, report.unexpected) == (1, 1)


def test_no_key_and_the_empty_key_are_two_keys() -> None:
    assert audit_log(accepted(None, 1), log(b"", 1)).lost == 1


def test_an_identity_accepted_twice_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1 accepted identities .* not unique"):
        audit_log(accepted(A, 1, 1), [])


def test_each_finding_keeps_the_first_entries_and_counts_all() -> None:
    report = audit_log(accepted(A, *range(1000)), [], show=7)
    assert report.lost == 1000
    assert report.lost_first == tuple(accepted(A, *range(7)))


def test_the_report_as_text_has_every_count_and_an_example() -> None:
    text = str(audit_log(accepted(A, *range(12_345)), log(A, 0, 0, 99_999)))
    lines = [line.split() for line in text.splitlines()]
    assert lines[0] == ["accepted", "12,345"]
    assert lines[1] == ["in", "Kafka", "1"]
    assert lines[2][:4] == ["lost", "12,344", "b'a'", "1"]
    assert lines[3] == ["duplicates", "1", "b'a'", "0", "[0]@1"]
    assert lines[4] == ["out", "of", "order", "0"]
    assert lines[5] == ["unexpected", "1", "b'a'", "99999", "[0]@2"]


def test_messages_become_entries_by_the_identity_that_is_asked_for() -> None:
    message = Message(topic="t", partition=2, offset=7, key=b"k", value=b"41")
    assert list(log_entries([message], lambda m: int(m.value() or b""))) == [Entry(b"k", 41, 2, 7)]


KEYS = st.sampled_from([None, b"", A, B])
IDS = st.integers(0, 6)
ACCEPTED = st.lists(st.tuples(KEYS, IDS).map(lambda identity: Entry(*identity)), unique=True, max_size=12)
PLACES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), unique=True, max_size=16)


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    return [Entry(draw(KEYS), draw(IDS), *place) for place in draw(PLACES)]


def naive(ledger: Sequence[Entry], found: Sequence[Entry]) -> dict[str, int]:
    """The definitions, word by word, in quadratic time."""

    def copies(entry: Entry, partition: int | None = None) -> list[int]:
        return [e.offset for e in found if (e.key, e.id) == (entry.key, entry.id) and partition in (None, e.partition)]

    out_of_order = 0
    for partition in {e.partition for e in found}:
        for key in {e.key for e in ledger}:
            firsts = [min(copies(e, partition)) for e in ledger if e.key == key and copies(e, partition)]
            out_of_order += sum(firsts[n + 1] < firsts[n] for n in range(len(firsts) - 1))
    return {
        "accepted": len(ledger),
        "in_kafka": sum(bool(copies(e)) for e in ledger),
        "lost": sum(not copies(e) for e in ledger),
        "duplicates": sum(max(0, len(copies(e)) - 1) for e in ledger),
        "out_of_order": out_of_order,
        "unexpected": sum(all((e.key, e.id) != (known.key, known.id) for known in ledger) for e in found),
    }


@given(ACCEPTED, logs())
def test_every_count_is_that_of_the_definition(ledger: list[Entry], found: list[Entry]) -> None:
    report = dataclasses.asdict(audit_log(ledger, found))
    assert {name: report[name] for name in naive([], [])} == naive(ledger, found)


@given(ACCEPTED, logs())
def test_every_record_of_the_log_is_counted_once(ledger: list[Entry], found: list[Entry]) -> None:
    report = audit_log(ledger, found)
    assert report.in_kafka + report.duplicates + report.unexpected == len(found)
    assert report.accepted == report.in_kafka + report.lost


@given(ACCEPTED, logs(), st.randoms())
def test_the_order_in_which_the_log_is_given_changes_nothing(
    ledger: list[Entry], found: list[Entry], random: Random
) -> None:
    shuffled = random.sample(found, len(found))
    assert audit_log(ledger, shuffled) == audit_log(ledger, found)


@given(st.permutations(range(6)))
def test_any_disorder_of_one_key_is_found(order: list[int]) -> None:
    report = audit_log(accepted(A, *range(6)), log(A, *order))
    assert (report.out_of_order == 0) == (order == sorted(order))
