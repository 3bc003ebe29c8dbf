"""The journal: byte-exact, in order, whole or not at all."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safekafka import Spool, SpoolCorruptError, SpoolLockedError, SpoolUnusableError
from safekafka.record import Fields
from safekafka.spool.journal import Journal, _runs, decode, encode

BYTES = st.none() | st.binary(max_size=50)
FIELDS: st.SearchStrategy[Fields] = st.tuples(
    st.text(min_size=1, max_size=20),
    BYTES,
    BYTES,
    st.none() | st.lists(st.tuples(st.text(max_size=10), BYTES), max_size=4),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 2**63 - 1),
)
ONE: Fields = ("orders", b"v", b"k", None, -1, 1)


@given(FIELDS)
def test_P5_what_is_read_is_what_was_written_none_and_empty_differ(fields: Fields) -> None:
    assert decode(encode(fields)) == fields


@given(st.sets(st.integers(0, 60)))
def test_runs_cover_the_numbers_and_nothing_else(numbers: set[int]) -> None:
    runs = list(_runs(sorted(numbers)))
    assert [n for first, last in runs for n in range(first, last + 1)] == sorted(numbers)
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(runs))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["append", "delete", "reject", "reopen"]), st.integers(0, 10)), max_size=25))
def test_P5_the_journal_is_what_a_dictionary_would_be_across_reopenings(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    spool = Spool(tmp_path_factory.mktemp("spool"), durability="process")
    journal = Journal(spool)
    model: dict[int, Fields] = {}
    rejected: list[int] = []
    highest = 0
    for action, number in actions:
        rows = {row.seq: row for row in journal.read(1, highest, 1000, 1 << 30)}
        assert {seq: row.fields for seq, row in rows.items()} == model
        assert (journal.count, journal.bytes) == (len(model), sum(row.size for row in rows.values()))
        chosen = sorted(model)[number % len(model) :] if model else []
        if action == "append":
            batch: list[Fields] = [("orders", str(highest + i).encode(), None, None, -1, 1) for i in range(number + 1)]
            first = journal.append(batch)
            assert first > highest  # never used twice
            model.update(enumerate(batch, first))
            highest = first + number
        elif action == "delete" and chosen:
            journal.delete(chosen, sum(rows[seq].size for seq in chosen))
            for seq in chosen:
                del model[seq]
        elif action == "reject" and chosen:
            journal.reject(chosen[0], "too large", rows[chosen[0]].size)
            del model[chosen[0]]
            rejected.append(chosen[0])
        elif action == "reopen":
            journal.close()
            journal = Journal(spool)
    assert [row.seq for row in journal.rejected()] == sorted(rejected)
    journal.close()


def test_a_flipped_byte_is_never_delivered_as_good(tmp_path: Path) -> None:
    journal = Journal(Spool(tmp_path))
    journal.append([ONE])
    journal.close()
    with sqlite3.connect(tmp_path / "lane-0" / "journal.sqlite3") as file:
        file.execute("UPDATE record SET fields = CAST(replace(fields, CAST('v' AS BLOB), CAST('w' AS BLOB)) AS BLOB)")
    journal = Journal(Spool(tmp_path))
    with pytest.raises(SpoolCorruptError, match="record 1"):
        journal.read(1, 1, 10, 1000)
    journal.close()


def test_a_file_that_is_no_journal_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "lane-0").mkdir()
    (tmp_path / "lane-0" / "journal.sqlite3").write_bytes(b"not a database, by no means" * 100)
    with pytest.raises(SpoolCorruptError, match="keep a copy"):
        Journal(Spool(tmp_path))


def test_a_format_of_another_version_is_refused(tmp_path: Path) -> None:
    Journal(Spool(tmp_path)).close()
    with sqlite3.connect(tmp_path / "lane-0" / "journal.sqlite3") as file:
        file.execute("PRAGMA user_version = 99")
    with pytest.raises(SpoolUnusableError, match="format 99"):
        Journal(Spool(tmp_path))


def test_P4_a_read_is_bounded_by_bytes_and_gives_at_least_one_record(tmp_path: Path) -> None:
    journal = Journal(Spool(tmp_path))
    journal.append([("orders", b"x" * 1_000, None, None, -1, 1)] * 10)
    assert [row.seq for row in journal.read(1, 10, 100, 2_500)] == [1, 2, 3]
    assert [row.seq for row in journal.read(4, 10, 100, 1)] == [4]
    assert len(journal.read(1, 10, 5, 1 << 20)) == 5
    journal.close()


def test_a_failed_append_leaves_nothing_and_the_next_one_works(tmp_path: Path) -> None:
    journal = Journal(Spool(tmp_path))
    journal._writer.execute("PRAGMA max_page_count = 8")
    with pytest.raises(Exception, match="full") as caught:
        journal.append([("orders", b"x" * 1_000_000, None, None, -1, 1)])
    assert type(caught.value).__name__ == "SpoolFullError"
    assert (journal.count, journal.bytes, journal.last_seq) == (0, 0, 0)
    journal._writer.execute("PRAGMA max_page_count = 1000000")
    assert journal.append([ONE]) == 1
    assert journal.read(1, 1, 10, 1000)[0].fields == ONE
    journal.close()


def test_an_interrupt_inside_append_is_counted_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(Spool(tmp_path))

    class Interrupted:
        """The connection, with Ctrl-C arriving right after the commit."""

        def __init__(self, inner: sqlite3.Connection) -> None:
            self._inner = inner

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

        def execute(self, statement: str, *args: object) -> object:
            result = self._inner.execute(statement, *args)  # type: ignore[arg-type]
            if statement == "COMMIT":
                raise KeyboardInterrupt
            return result

    real = journal._writer
    monkeypatch.setattr(journal, "_writer", Interrupted(real))
    with pytest.raises(KeyboardInterrupt):
        journal.append([ONE])
    monkeypatch.setattr(journal, "_writer", real)
    assert (journal.count, journal.last_seq) == (1, 1)
    assert journal.append([ONE]) == 2
    journal.close()


def test_B_S12_a_spool_in_use_is_refused_and_names_the_process_that_has_it(tmp_path: Path) -> None:
    program = (
        "import sys; from safekafka import Spool; from safekafka.spool.journal import Journal\n"
        "journal = Journal(Spool(sys.argv[1])); print('mine', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        with pytest.raises(SpoolLockedError, match=rf"in use by process {holder.pid}\..*Remedy"):
            Journal(Spool(tmp_path))
        holder.kill()
        holder.wait(10)
    Journal(Spool(tmp_path)).close()  # the lock went with the process


def test_a_spool_that_is_a_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    with pytest.raises(SpoolUnusableError, match=r"spool.*can't be used.*Remedy"):
        Journal(Spool(tmp_path / "spool"))


def test_a_file_system_that_takes_no_files_is_refused_with_the_remedy() -> None:
    with pytest.raises(SpoolUnusableError, match=r"can't be used.*Remedy"):
        Journal(Spool("/proc/self/spool"))


def test_a_spool_with_impossible_options_is_refused() -> None:
    with pytest.raises(ValueError, match="durability='ram'"):
        Spool("x", durability="ram")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_bytes=0"):
        Spool("x", max_bytes=0)
