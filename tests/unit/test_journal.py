"""The journal: byte-exact, in order, whole or not at all; and what is missing is told, once."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safekafka import Spool, SpoolCorruptError, SpoolFullError, SpoolLockedError, SpoolUnusableError
from safekafka.spool.codec import encode
from safekafka.spool.inspect import owner
from safekafka.spool.journal import FILE, HIGH, RESERVE, Journal, runs_of, shown
from safekafka.spool.lane import Identity, identity_of, lock_dead, orphans, own_lane

OURS = Identity("default", "localhost:9092", None)


def row(value: bytes | str) -> bytes:
    return encode(("orders", value if isinstance(value, bytes) else value.encode(), None, None, -1, 1))


def rows(first: int, count: int) -> list[bytes]:
    return [row(str(number)) for number in range(first, first + count)]


def stored(journal: Journal) -> dict[int, bytes]:
    """What a full read gives; no record of it is damaged."""
    records, damaged = journal.read(1, journal.last_seq, 1 << 30, 1 << 40)
    assert damaged == []
    assert all(size == len(encode(fields)) for _, fields, size in records)
    seqs = [seq for seq, *_ in records]
    assert seqs == sorted(set(seqs))
    return {seq: encode(fields) for seq, fields, _ in records}


def counted(journal: Journal) -> tuple[int, int, int]:
    return journal.last_seq, journal.count, journal.bytes


def assert_counters_are_those_of_the_file(journal: Journal) -> None:
    """As another connection sees it, and as whoever opens it after a SIGKILL now, who misses nothing."""
    with contextlib.closing(connect(journal.path)) as file:
        found = file.execute("SELECT count(*), coalesce(sum(length(fields)), 0) FROM record").fetchone()
    assert (journal.count, journal.bytes) == found
    with tempfile.TemporaryDirectory() as elsewhere:
        copy = Journal(killed(journal, Path(elsewhere) / "copy"), "process")
        assert counted(copy) == counted(journal)
        assert copy.losses == []
        copy.close()


def killed(journal: Journal, to: Path) -> Path:
    """The folder as SIGKILL would leave it now."""
    return copied(journal.path.parent, to)


def copied(folder: Path, to: Path) -> Path:
    """Without the reserve, which is made anew."""
    return Path(shutil.copytree(folder, to, ignore=shutil.ignore_patterns(RESERVE)))


def evidence(folder: Path) -> list[Path]:
    return sorted(folder.glob("damaged-*"))


def strays(folder: Path) -> set[str]:
    ours = {FILE, f"{FILE}-wal", f"{FILE}-shm", HIGH, RESERVE}
    return {path.name for path in folder.iterdir() if not path.name.startswith("damaged-")} - ours


@pytest.fixture
def opened() -> Iterator[Callable[..., Journal]]:
    """Journals that are closed at the end, whatever happened."""
    journals: list[Journal] = []

    def open_one(folder: Path, durability: Literal["disk", "process"] = "process", **options: Any) -> Journal:
        journals.append(Journal(folder, durability, **options))
        return journals[-1]

    yield open_one
    for journal in journals:
        with contextlib.suppress(OSError, sqlite3.Error):
            journal.close()


class Watched:
    """A connection of sqlite3 with something to do before and after each statement."""

    def __init__(
        self, inner: sqlite3.Connection, before: Callable[[str], None], after: Callable[[str], None] | None = None
    ) -> None:
        self._inner, self._before, self._after = inner, before, after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _run(self, method: str, statement: str, *arguments: Any) -> Any:
        self._before(statement)
        result = getattr(self._inner, method)(statement, *arguments)
        if self._after is not None:
            self._after(statement)
        return result

    def execute(self, statement: str, *arguments: Any) -> Any:
        return self._run("execute", statement, *arguments)

    def executemany(self, statement: str, *arguments: Any) -> Any:
        return self._run("executemany", statement, *arguments)


def connect(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)


# ---- what a journal is


@given(st.sets(st.integers(0, 60)))
def test_runs_cover_the_numbers_and_nothing_else(numbers: set[int]) -> None:
    runs = list(runs_of(sorted(numbers)))
    assert [n for first, last in runs for n in range(first, last + 1)] == sorted(numbers)
    assert all(later[0] > earlier[1] + 1 for earlier, later in pairwise(runs))


def test_a_message_names_the_first_runs_only() -> None:
    assert shown([3, 1, 2, 7]) == "1-3, 7"
    assert shown(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18 and 10 more runs"


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                ["append", "append", "delete", "reject", "set aside", "requeue", "discard", "reopen", "kill"]
            ),
            st.integers(0, 10),
        ),
        max_size=25,
    )
)
def test_P5_the_journal_is_what_a_dictionary_would_be_across_reopenings(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("lane")
    journals = [Journal(folder, "process")]
    model: dict[int, bytes] = {}
    rejected: dict[int, bytes] = {}
    highest = 0
    for action, number in actions:
        journal = journals[-1]
        chosen = sorted(model)[number % len(model) :] if model else []
        if action == "append":
            batch = rows(highest, number + 1)
            first = journal.append(batch)
            assert first > highest  # never used twice
            model.update(enumerate(batch, first))
            highest = first + number
        elif action == "delete":
            journal.delete(chosen, sum(len(model.pop(seq)) for seq in chosen))
        elif action == "reject":
            journal.reject([(seq, len(model[seq]), f"too large {seq}") for seq in chosen])
            rejected |= {seq: model.pop(seq) for seq in chosen}
        elif action == "set aside":
            journal.set_aside(chosen)
            model = {seq: data for seq, data in model.items() if seq not in chosen}
        elif action == "requeue":
            again = sorted(rejected)[: number + 1]
            assert journal.requeue([*again, *again, 1 << 40]) == len(again)
            model |= {new: rejected.pop(seq) for new, seq in enumerate(again, highest + 1)}
            highest += len(again)
        elif action == "discard":
            gone = sorted(rejected)[: number + 1]
            assert journal.discard([*gone, *gone, 1 << 40]) == len(gone)
            rejected = {seq: data for seq, data in rejected.items() if seq not in gone}
        elif action == "reopen":
            journal.close()
            journals[-1] = Journal(folder, "process")
        else:
            folder = killed(journal, tmp_path_factory.mktemp("killed") / "lane")
            journals.append(Journal(folder, "process"))
        journal = journals[-1]
        assert stored(journal) == model
        assert_counters_are_those_of_the_file(journal)
        assert {one.seq: encode(one.fields) for one in journal.rejected()} == rejected
        assert all(one.reason == f"too large {one.seq}" for one in journal.rejected())
        assert journal.rejected_count() == len(rejected)
        assert journal.count_up_to(highest // 2) == sum(seq <= highest // 2 for seq in model)
        assert journal.losses == []
    for journal in journals:
        journal.close()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="sqlite3 sets no limits")
def test_a_sqlite_older_than_3_32_takes_batches_of_any_size(tmp_path: Path) -> None:
    """Its statements have at most 999 parameters, unless it was built otherwise."""
    program = """
import sqlite3, sys
sqlite3.sqlite_version_info = (3, 26, 0)
from pathlib import Path
from safekafka.spool import journal
from safekafka.spool.codec import encode

def connect(path):
    connection = journal._connect(path)
    connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 999)
    return connection

opened = journal.Journal(Path(sys.argv[1]), "process", connect=connect)
opened.append([encode(("orders", b"%d" % n, None, None, -1, 1)) for n in range(2_345)])
rows, _ = opened.read(1, 2_345, 5_000, 1 << 20)
assert [int(fields[1]) for _, fields, _ in rows] == list(range(2_345))
opened.delete(range(1, 2_345, 2), 0)
assert opened.count == 1_173
"""
    subprocess.run([sys.executable, "-c", program, tmp_path], check=True, timeout=60)


def test_P4_a_read_is_bounded_by_bytes_and_gives_at_least_one_record(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    journal.append([row(b"x" * 1_000)] * 10)
    assert [seq for seq, *_ in journal.read(1, 10, 100, 2_500)[0]] == [1, 2, 3]
    assert [seq for seq, *_ in journal.read(4, 10, 100, 1)[0]] == [4]
    assert len(journal.read(1, 10, 5, 1 << 20)[0]) == 5


def test_deleting_what_is_not_there_leaves_the_counters_those_of_the_file(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    batch = rows(0, 5)
    journal.append(batch)
    journal.delete([2, 3], len(batch[1]) + len(batch[2]))
    journal.delete([2, 3, 4], len(batch[1]) + len(batch[2]) + len(batch[3]))
    assert_counters_are_those_of_the_file(journal)
    assert set(stored(journal)) == {1, 5}


def test_rejecting_what_is_not_there_leaves_the_counters_those_of_the_file(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    batch = rows(0, 3)
    journal.append(batch)
    journal.delete([2], len(batch[1]))
    journal.reject([(seq, len(batch[seq - 1]), "too large") for seq in (1, 2)])
    assert_counters_are_those_of_the_file(journal)
    assert set(stored(journal)) == {3}
    assert [one.seq for one in journal.rejected()] == [1]


def test_how_many_records_an_orderly_end_left_is_known_without_opening_and_of_no_other_end(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    assert Journal.left_at_close(tmp_path) is None
    journal = opened(tmp_path)
    journal.append(rows(0, 3))
    assert Journal.left_at_close(tmp_path) is None
    journal.close()
    assert Journal.left_at_close(tmp_path) == 3
    journal = opened(tmp_path)
    assert Journal.left_at_close(tmp_path) is None
    journal.delete([1, 2, 3], journal.bytes)
    journal.close()
    assert Journal.left_at_close(tmp_path) == 0
    (tmp_path / HIGH).write_bytes(b"\xff" * 21)
    assert Journal.left_at_close(tmp_path) is None


# ---- room


def test_the_file_shrinks_after_a_backlog_while_appends_go_on(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path)
    for _ in range(20):
        journal.append([row(b"x" * 10_000)] * 150)
    size = journal.path.stat().st_size
    assert size > 25 << 20
    journal.delete(range(1, 3_001), journal.bytes)
    added, steps = {}, 0
    while journal.give_back_room():
        steps += 1
        assert steps < 1_000
        data = row(f"meanwhile {steps}")
        added[journal.append([data])] = data
        if steps % 10 == 0:
            assert stored(journal) == added
    assert steps > 10  # in steps, not in one that holds the appends up
    assert not journal.give_back_room()
    assert stored(journal) == added
    assert_counters_are_those_of_the_file(journal)
    while journal.path.stat().st_size > size / 2:  # also before the end, with the next checkpoint
        data = row(b"x" * 10_000)
        added[journal.append([data])] = data
        assert len(added) < steps + 1_000
    assert (tmp_path / f"{FILE}-wal").stat().st_size < 10 << 20
    journal.close()
    assert journal.path.stat().st_size < 8 << 20
    journal = opened(tmp_path)
    assert stored(journal) == added
    assert not journal.is_damaged()


def limited(pages: list[int]) -> tuple[Callable[[Path], Any], Callable[[int], None]]:
    """A connection to a disk with room for so many pages, and how to change that."""
    connections: list[sqlite3.Connection] = []

    def limit(count: int) -> None:
        for connection in connections:
            with contextlib.suppress(sqlite3.ProgrammingError):  # closed
                connection.execute(f"PRAGMA max_page_count = {count}")

    def connecting(path: Path) -> sqlite3.Connection:
        connections.append(connect(path))
        limit(pages[0])
        return connections[-1]

    return connecting, limit


@pytest.mark.parametrize("sizes", [[1_000_000], [10, 100_000, 10], [3_000] * 40], ids=["one", "middle", "many"])
def test_B_S09_a_full_disk_is_said_leaves_nothing_and_appends_go_on_once_there_is_room(
    tmp_path: Path, opened: Callable[..., Journal], sizes: Sequence[int]
) -> None:
    connecting, limit = limited([20])
    journal = opened(tmp_path, connect=connecting)
    kept = rows(0, 3)
    journal.append(kept)
    for _ in range(3):
        with pytest.raises(SpoolFullError, match=r"not accepted.*Remedy"):
            journal.append([row(b"x" * size) for size in sizes])
        assert stored(journal) == dict(enumerate(kept, 1))
        assert_counters_are_those_of_the_file(journal)
    assert journal.append(rows(3, 1)) == 4  # a small one still fits
    limit(10_000)
    assert journal.append([row(b"x" * size) for size in sizes]) == 5
    assert journal.count == 4 + len(sizes)
    assert_counters_are_those_of_the_file(journal)
    journal.close()
    assert strays(tmp_path) == set()
    assert evidence(tmp_path) == []
    assert opened(tmp_path).losses == []


def test_B_S09_what_is_delivered_makes_room_on_a_full_disk(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    connecting, _ = limited([60])
    journal = opened(tmp_path, connect=connecting)
    data, count = row(b"x" * 3_000), 0
    with pytest.raises(SpoolFullError):
        while True:
            journal.append([data])
            count += 1
    assert count > 20
    journal.delete(range(1, count + 1), count * len(data))
    for _ in range(count):
        journal.append([data])
    assert set(stored(journal)) == set(range(count + 1, 2 * count + 1))


def test_B_S09_a_full_disk_at_the_start_is_said_and_leaves_a_journal_that_opens_later(
    tmp_path: Path, opened: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lane").mkdir()
    journal = opened(tmp_path / "lane")
    batch = rows(0, 3)
    journal.append(batch)
    folder = killed(journal, tmp_path / "killed")

    def no_room(source: Path, target: Path) -> None:
        Path(target).write_bytes(b"")
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(shutil, "copyfile", no_room)
    with contextlib.suppress(SpoolFullError, SpoolUnusableError):  # to open all the same would be better still
        opened(folder).close()
    monkeypatch.undo()
    journal = opened(folder)
    assert stored(journal) == dict(enumerate(batch, 1))
    assert journal.losses == []
    journal.close()
    assert strays(folder) == set()


# ---- a signal handler raises, the disk refuses


class Interrupt(Exception):  # noqa: N818 - stands for what a signal handler raises
    pass


class Fuse:
    """Raises at the n-th statement from now, before or after it is executed."""

    def __init__(self) -> None:
        self.left = 0
        self.after = False
        self.seen: list[str] = []
        self.synchronous: list[int] = []  # at each insertion of records

    def set(self, statement: int, after: bool) -> None:
        self.left, self.after, self.seen = statement, after, []

    def connect(self, path: Path) -> Watched:
        inner = connect(path)

        def before(statement: str) -> None:
            if "INTO record" in statement:
                self.synchronous.append(inner.execute("PRAGMA synchronous").fetchone()[0])
            self._pass(statement, False)

        return Watched(inner, before, lambda statement: self._pass(statement, True))

    def _pass(self, what: str, after: bool) -> None:
        if after == self.after and self.left:
            self.seen.append(what)
            self.left -= 1
            if not self.left:
                raise Interrupt(what)


OPERATIONS: dict[str, Callable[[Journal], Any]] = {
    "append one": lambda journal: journal.append([row("new")]),
    "append many": lambda journal: journal.append(rows(100, 3)),
    "delete": lambda journal: journal.delete([2, 3, 5], sum(len(row(str(n))) for n in (1, 2, 4))),
    "reject": lambda journal: journal.reject([(seq, len(row(str(seq - 1))), "too large") for seq in (2, 5)]),
    "set aside": lambda journal: journal.set_aside([2, 3, 5]),
    "requeue": lambda journal: journal.requeue([7, 8]),
    "discard": lambda journal: journal.discard([7, 8]),
    "give back room": lambda journal: journal.give_back_room(),
}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_at_any_statement_leaves_all_or_nothing_and_the_counters_right(
    tmp_path: Path, opened: Callable[..., Journal], operation: str, after: bool
) -> None:
    for statement in range(1, 30):
        folder = tmp_path / str(statement)
        folder.mkdir()
        fuse = Fuse()
        journal = opened(folder, "disk", connect=fuse.connect)
        journal.append(rows(0, 8))
        journal.reject([(seq, len(row(str(seq - 1))), "too large") for seq in (7, 8)])
        before, rejected = stored(journal), len(journal.rejected())
        fuse.set(statement, after)
        try:
            OPERATIONS[operation](journal)
        except Interrupt:
            pass
        else:
            assert statement > 1
            return  # the operation has so many statements
        finally:
            fuse.left = 0
        where = f"{operation} interrupted {'after' if after else 'before'} {fuse.seen[-1]!r}"
        now = stored(journal)
        added, gone = now.keys() - before.keys(), before.keys() - now.keys()
        assert added in (set(), {9}, {9, 10}, {9, 10, 11}), where
        assert gone in (set(), {2, 5}, {2, 3, 5}), where
        if operation == "append many":
            assert len(added) in (0, 3), where
        if operation == "requeue":
            assert (len(added), len(journal.rejected())) in ((0, rejected), (2, 0)), where
        if operation == "reject":
            assert (len(gone), len(journal.rejected())) in ((0, rejected), (2, rejected + 2)), where
        if operation == "discard":
            assert len(journal.rejected()) in (rejected, 0), where
        assert_counters_are_those_of_the_file(journal)
        assert not journal._writer.in_transaction, where
        expected = max([8, *now]) + 1
        assert journal.append([row("next")]) == expected, where
        assert set(fuse.synchronous) == {2}, f"{where}: what is appended is not synced"
        journal.close()
        journal = opened(folder)
        assert stored(journal) == now | {expected: row("next")}, where
        assert journal.losses == [], where
    raise AssertionError("an operation without end")


def test_a_mark_that_cannot_be_written_refuses_no_record_that_was_committed(
    tmp_path: Path, opened: Callable[..., Journal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path)

    def refusing(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", refusing)
    try:
        accepted = {journal.append([row("0")]): row("0")}
    except OSError:  # then it must not be there
        accepted = {}
    monkeypatch.undo()
    assert stored(journal) == accepted
    assert counted(journal)[:2] == (len(accepted), len(accepted))


# ---- what is lost is told, exactly and once


def test_a_journal_closed_twice_leaves_the_files_of_others_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, "process")
    before = set(os.listdir("/dev/fd"))
    journal.close()
    others = []
    while before - set(os.listdir("/dev/fd")):  # each number that the journal had is somebody else's now
        others.append((tmp_path / f"{len(others)}").open("w+b", buffering=0))
        others[-1].write(b"whole")

    journal.close()

    for other in others:
        assert os.pread(other.fileno(), 100, 0) == b"whole"
        other.close()


def test_a_flipped_byte_is_never_delivered_as_good(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path)
    journal.append(rows(0, 5))
    journal.close()
    with contextlib.closing(connect(tmp_path / FILE)) as file:
        file.execute("UPDATE record SET fields = CAST(replace(fields, CAST('o' AS BLOB), CAST('p' AS BLOB)) AS BLOB)")
        file.execute("UPDATE record SET fields = ? WHERE seq <> 3", (row("0"),))
    journal = opened(tmp_path)
    records, damaged = journal.read(1, 5, 100, 1 << 20)
    assert ([seq for seq, *_ in records], damaged) == ([1], [2, 3, 4, 5])  # a good record, but another's
    journal.set_aside(damaged)
    assert set(stored(journal)) == {1}
    assert_counters_are_those_of_the_file(journal)
    journal.close()
    with contextlib.closing(connect(tmp_path / FILE)) as file:
        kept = file.execute("SELECT seq, fields FROM damaged").fetchall()
    assert dict(kept)[3] == row("2").replace(b"o", b"p")  # as it was found
    assert len(kept) == 4


def test_B_S03_a_damaged_record_among_the_rejected_is_never_given_as_good_nor_sent(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    batch = rows(0, 3)
    journal.append(batch)
    journal.reject([(seq, len(batch[seq - 1]), "too large") for seq in (1, 2, 3)])
    journal.close()
    with contextlib.closing(connect(tmp_path / FILE)) as file:
        file.execute("UPDATE rejected SET fields = ? WHERE seq = 2", (row("9"),))
    journal = opened(tmp_path)
    assert [one.seq for one in journal.rejected()] == [1, 3]
    journal.requeue([1, 2, 3])
    records, _ = journal.read(1, journal.last_seq, 100, 1 << 20)
    assert [encode(fields) for _, fields, _ in records] == [batch[0], batch[2]]
    assert_counters_are_those_of_the_file(journal)


def unclean(tmp_path: Path, opened: Callable[..., Journal], *, checkpointed: int) -> tuple[Path, list[bytes]]:
    """A journal of 30 records as SIGKILL left it, the first of them already checkpointed."""
    folder = tmp_path / "lane"
    folder.mkdir()
    journal = opened(folder)
    batch = rows(0, 30)
    if checkpointed:
        journal.append(batch[:checkpointed])
        journal._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    for data in batch[checkpointed:]:
        journal.append([data])
    return killed(journal, tmp_path / "killed"), batch


@pytest.mark.parametrize("checkpointed", [0, 10])
def test_B_S11_records_that_a_truncated_log_took_with_it_are_told_exactly_and_once(
    tmp_path: Path, opened: Callable[..., Journal], checkpointed: int
) -> None:
    source, batch = unclean(tmp_path, opened, checkpointed=checkpointed)
    whole = (source / f"{FILE}-wal").read_bytes()
    kept_before = 0
    for number, length in enumerate([0, 1, 31, 32, 56, *range(4_000, len(whole), 9_999), len(whole) - 1, len(whole)]):
        folder = copied(source, tmp_path / f"cut-{length}")
        os.truncate(folder / f"{FILE}-wal", length)
        if number % 2:
            (folder / f"{FILE}-shm").unlink()
        journal = opened(folder)
        kept = len(stored(journal))
        assert stored(journal) == dict(enumerate(batch[:kept], 1))
        assert checkpointed <= kept
        assert kept_before <= kept
        kept_before = kept
        files = evidence(folder)
        if kept < 30:
            (loss,) = journal.losses
            assert f"records {kept + 1} to 30" in loss.what
            assert loss.records == 30 - kept
            if length:
                assert loss.evidence in files
                assert loss.evidence.read_bytes() == whole[:length]
        else:
            assert journal.losses == []
        assert len(files) == (kept < 30 and length > 0)
        again = folder
        for generation in range(3):  # B-S05: a recovery that is killed itself; then an orderly end
            again = killed(journal, tmp_path / f"cut-{length}-{generation}")
            journal = opened(again)
            assert journal.losses == []
            assert len(evidence(again)) == len(files)
        assert journal.append([row("next")]) == 31  # a number that was given is never used again
        assert set(stored(journal)) == {*range(1, kept + 1), 31}
        journal.close()
        assert strays(again) == set()
        journal = opened(again)
        assert journal.losses == []
        assert len(evidence(again)) == len(files)
        journal.close()
    assert kept_before == 30


def test_B_S11_a_missing_log_is_told(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    folder, batch = unclean(tmp_path, opened, checkpointed=10)
    (folder / f"{FILE}-wal").unlink()
    journal = opened(folder)
    (loss,) = journal.losses
    assert "records 11 to 30" in loss.what
    assert (loss.records, loss.evidence) == (20, None)
    assert stored(journal) == dict(enumerate(batch[:10], 1))
    assert journal.append([row("next")]) == 31


def test_B_S03_a_flipped_bit_in_the_log_is_told(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    source, batch = unclean(tmp_path, opened, checkpointed=10)
    size = (source / f"{FILE}-wal").stat().st_size
    for position in range(40, size, size // 20):
        folder = copied(source, tmp_path / f"flip-{position}")
        with (folder / f"{FILE}-wal").open("r+b") as file:
            file.seek(position)
            (byte,) = file.read(1)
            file.seek(position)
            file.write(bytes([byte ^ 16]))
        journal = opened(folder)
        kept = len(stored(journal))
        assert stored(journal) == dict(enumerate(batch[:kept], 1))
        assert sum(loss.records or 0 for loss in journal.losses) == 30 - kept
        assert journal.append([row("next")]) == 31
        journal.close()


@pytest.mark.parametrize("end", ["killed", "closed"])
def test_B_S11_a_missing_file_is_told_and_its_numbers_are_not_used_again(
    tmp_path: Path, opened: Callable[..., Journal], end: str
) -> None:
    folder = tmp_path / "lane"
    folder.mkdir()
    journal = opened(folder)
    journal.append(rows(0, 30))
    if end == "killed":
        folder = killed(journal, tmp_path / "killed")
    else:
        journal.close()
    (folder / FILE).unlink()
    journal = opened(folder)
    (loss,) = journal.losses
    assert "missing" in loss.what
    assert "30" in loss.what
    assert loss.records == (None if end == "killed" else 30)
    if end == "killed":  # the log may hold what the file had
        assert loss.evidence is not None
        assert loss.evidence.exists()
    assert counted(journal) == (30, 0, 0)
    assert journal.append([row("next")]) == 31
    journal.close()
    assert strays(folder) == set()
    journal = opened(folder)
    assert journal.losses == []
    assert set(stored(journal)) == {31}


def test_a_missing_file_that_was_empty_is_no_loss(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path)
    journal.append(rows(0, 3))
    journal.delete([1, 2, 3], journal.bytes)
    journal.close()
    (tmp_path / FILE).unlink()
    journal = opened(tmp_path)
    assert journal.losses == []
    assert journal.append([row("next")]) == 4


def test_B_S11_rows_that_vanished_are_told_with_their_count_and_once(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    journal.append(rows(0, 10))
    journal.close()
    with contextlib.closing(connect(tmp_path / FILE)) as file:
        file.execute("DELETE FROM record WHERE seq BETWEEN 4 AND 6")
    journal = opened(tmp_path)
    (loss,) = journal.losses
    assert loss.records == 3
    assert set(stored(journal)) == {1, 2, 3, 7, 8, 9, 10}
    assert_counters_are_those_of_the_file(journal)
    journal.close()
    assert opened(tmp_path).losses == []


# ---- refused


def cut_log(folder: Path) -> None:
    os.truncate(folder / f"{FILE}-wal", 20_000)


def without_log(folder: Path) -> None:
    (folder / f"{FILE}-wal").unlink()


def without_file(folder: Path) -> None:
    (folder / FILE).unlink()


def without_rows(folder: Path) -> None:
    with contextlib.closing(connect(folder / FILE)) as file:
        file.execute("DELETE FROM record WHERE seq = 12")


def zeroed_page(folder: Path) -> None:
    with contextlib.closing(connect(folder / FILE)) as file:
        (page,) = file.execute("SELECT rootpage FROM sqlite_master WHERE name = 'record'").fetchone()
    with (folder / FILE).open("r+b") as raw:
        raw.seek((page - 1) * 4_096)
        raw.write(bytes(4_096))


def no_journal(folder: Path) -> None:
    (folder / f"{FILE}-wal").unlink()
    (folder / FILE).write_bytes(b"not a database, by no means" * 1_000)


@pytest.mark.parametrize("damage", [cut_log, without_log, without_file, without_rows, zeroed_page, no_journal])
def test_damage_that_is_to_be_refused_is_refused_at_each_start_and_changes_nothing(
    tmp_path: Path, opened: Callable[..., Journal], damage: Callable[[Path], None]
) -> None:
    folder, _ = unclean(tmp_path, opened, checkpointed=10)
    damage(folder)
    before = (folder / FILE).read_bytes() if (folder / FILE).exists() else None
    raised: list[BaseException] = []  # a program may keep them
    for _ in range(4):
        with pytest.raises(SpoolCorruptError, match=r"Remedy: .*on_damage='set_aside'") as caught:
            opened(folder, refuse_damage=True)
        raised.append(caught.value)
        assert len(evidence(folder)) <= 1
    if before is not None:
        assert (folder / FILE).stat().st_size >= len(before)
    assert opened(folder).losses != []  # who changes his mind is still told


def test_a_damaged_record_that_is_to_be_refused_is_refused(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path, refuse_damage=True)
    journal.append(rows(0, 3))
    journal._writer.execute("UPDATE record SET fields = x'00' WHERE seq = 2")
    _, damaged = journal.read(1, 3, 10, 1_000)
    for _ in range(2):
        with pytest.raises(SpoolCorruptError, match=r"record\(s\) 2 of .*Remedy: .*on_damage='set_aside'"):
            journal.set_aside(damaged)
        with pytest.raises(SpoolCorruptError, match=r"Remedy: .*on_damage='set_aside'"):
            journal.mend()
    with contextlib.closing(connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT seq, fields = x'00' FROM record ORDER BY seq").fetchall() == [
            (1, 0),
            (2, 1),
            (3, 0),
        ]
    assert evidence(tmp_path) == []


def test_a_file_that_is_no_journal_is_kept_aside_and_told_and_its_numbers_are_not_used_again(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    journal.append(rows(0, 3))
    journal.close()
    (tmp_path / FILE).write_bytes(b"not a database, by no means" * 1_000)
    journal = opened(tmp_path)
    (loss,) = journal.losses
    assert loss.records is None
    assert evidence(tmp_path) == [loss.evidence]
    assert loss.evidence is not None
    assert loss.evidence.read_bytes() == b"not a database, by no means" * 1_000
    assert journal.append([row("next")]) == 4
    journal.close()
    assert opened(tmp_path).losses == []
    assert strays(tmp_path) == set()
    assert len(evidence(tmp_path)) == 1


def test_a_format_of_another_version_is_refused_and_left_as_it_is(
    tmp_path: Path, opened: Callable[..., Journal]
) -> None:
    journal = opened(tmp_path)
    journal.append(rows(0, 3))
    journal.close()
    for version in (1, 99):
        with contextlib.closing(connect(tmp_path / FILE)) as file:
            file.execute(f"PRAGMA user_version = {version}")
        for _ in range(2):
            with pytest.raises(SpoolUnusableError, match=rf"format {version}.*Remedy"):
                Journal(tmp_path)
    with contextlib.closing(connect(tmp_path / FILE)) as file:
        file.execute("PRAGMA user_version = 2")
    assert set(stored(opened(tmp_path))) == {1, 2, 3}


@pytest.mark.parametrize("damage", ["no journal", "version"])
def test_a_refused_journal_leaves_no_file_open(tmp_path: Path, damage: str) -> None:
    journal = Journal(tmp_path)
    journal.append(rows(0, 3))
    journal.close()
    if damage == "version":
        with contextlib.closing(connect(tmp_path / FILE)) as file:
            file.execute("PRAGMA user_version = 99")
    else:
        (tmp_path / FILE).write_bytes(b"not a database, by no means" * 1_000)

    def open_files() -> list[str]:
        names = []
        for descriptor in os.listdir("/dev/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(f"/dev/fd/{descriptor}"))
        return [name for name in names if str(tmp_path) in name]

    with pytest.raises((SpoolUnusableError, SpoolCorruptError)) as caught:
        Journal(tmp_path, refuse_damage=True)
    assert caught.value is not None  # still held here, with its frames
    if os.path.exists("/proc/self/fd"):
        assert open_files() == []


# ---- deleted, while it is open


@pytest.fixture
def made_anew(tmp_path: Path, opened: Callable[..., Journal]) -> tuple[Journal, Journal]:
    """A journal whose folder was deleted, and the one of whoever made the folder again. Each has records."""
    folder = tmp_path / "lane"
    folder.mkdir()
    first = opened(folder)
    first.append(rows(0, 3))
    shutil.rmtree(folder)
    folder.mkdir()
    second = opened(folder)
    second.append(rows(10, 5))
    return first, second


def test_P5_a_journal_whose_file_was_replaced_is_gone_and_its_records_can_be_delivered(
    made_anew: tuple[Journal, Journal],
) -> None:
    first, second = made_anew
    for _ in range(2):
        with pytest.raises(SpoolUnusableError, match=r"is gone \(another file is in its place\).*Remedy"):
            first.free_bytes()
    assert second.free_bytes() > 0
    assert list(stored(first).values()) == rows(0, 3)
    first.delete([1, 2, 3], first.bytes)
    assert counted(first) == (3, 0, 0)


def test_P5_the_end_of_a_journal_whose_file_was_replaced_takes_nothing_from_the_one_in_its_place(
    tmp_path: Path, made_anew: tuple[Journal, Journal], opened: Callable[..., Journal]
) -> None:
    """SQLite deletes the log when the last connection is closed, by name: not so where its file was replaced."""
    first, second = made_anew
    first.close()
    copy = opened(killed(second, tmp_path / "killed"))
    assert copy.losses == []
    assert list(stored(copy).values()) == rows(10, 5)


def test_P5_a_journal_whose_file_was_replaced_mends_nothing_of_the_one_in_its_place(
    made_anew: tuple[Journal, Journal],
) -> None:
    first, second = made_anew
    with pytest.raises(SpoolUnusableError, match="another file is in its place"):
        first.mend()
    assert evidence(second.path.parent) == []
    assert_counters_are_those_of_the_file(second)
    assert list(stored(second).values()) == rows(10, 5)


def test_a_lane_made_anew_keeps_its_own_id_though_the_deleted_one_learns_the_cluster(tmp_path: Path) -> None:
    """Records of two lanes by one id would be taken for the same."""
    first = own_lane(Spool(tmp_path), OURS)
    shutil.rmtree(first.folder)
    second = own_lane(Spool(tmp_path), OURS)
    assert second.folder == first.folder
    first.learned("A")
    assert first.identity.cluster == "A"
    assert identity_of(second.folder) == (second.id, OURS)
    first.close()
    second.close()


def test_a_journal_that_was_mended_is_there(tmp_path: Path, opened: Callable[..., Journal]) -> None:
    journal = opened(tmp_path)
    journal.append(rows(0, 3))
    for _ in range(2):
        journal.mend()
        assert journal.free_bytes() > 0
    assert list(stored(journal).values()) == rows(0, 3)


# ---- who may use it


def test_B_S12_a_lane_in_use_is_nobody_elses_and_its_owner_is_named(tmp_path: Path) -> None:
    program = (
        "import sys; from safekafka import Spool; from safekafka.spool.lane import Identity, own_lane\n"
        "lane = own_lane(Spool(sys.argv[1]), Identity('default', 'localhost:9092', None))\n"
        "lane.journal.append([b'0' * 40]); print('mine', flush=True); sys.stdin.read()"
    )
    spool = Spool(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        mine = own_lane(spool, OURS)
        assert mine.folder.name == "lane-1"
        assert list(orphans(spool, OURS)) == []
        with pytest.raises(SpoolLockedError, match=rf"in use by process {holder.pid}\..*Remedy"):
            lock_dead(tmp_path / "lane-0")
        holder.kill()
        holder.wait(10)
    (orphan,) = orphans(spool, OURS)  # the lock went with the process
    assert orphan.folder.name == "lane-0"
    assert orphan.journal.count == 1
    orphan.close()
    mine.close()


def test_B_S12_a_lane_stays_its_processs_though_its_lock_is_deleted(tmp_path: Path) -> None:
    """As people delete what they take for a lock that a dead process left."""
    program = (
        "import os, sys; from safekafka import Spool; from safekafka.spool.lane import Identity, own_lane\n"
        "lane = own_lane(Spool(sys.argv[1]), Identity('default', 'localhost:9092', None))\n"
        "lane.journal.append([b'0' * 40])\n"
        "child = os.fork()\n"
        "if child == 0: sys.stdin.read(); os._exit(0)\n"  # it outlives its parent, and holds nothing
        "print('mine', flush=True); os.waitpid(child, 0)"
    )
    spool = Spool(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        for _ in range(2):
            (tmp_path / "lane-0" / "lock").unlink()
            mine = own_lane(spool, OURS)
            assert mine.folder.name == "lane-1"
            assert list(orphans(spool, OURS)) == []
            with pytest.raises(SpoolLockedError, match=rf"in use by process {holder.pid}\..*Remedy"):
                lock_dead(tmp_path / "lane-0")
            with pytest.raises(SpoolLockedError, match=r"in use by another process.*Remedy"):
                Journal(tmp_path / "lane-0")
            assert owner(tmp_path / "lane-0") == f"process {holder.pid}"
            mine.close()
        holder.kill()
        holder.wait(10)
        (orphan,) = orphans(spool, OURS)
        assert orphan.folder.name == "lane-0"
        orphan.close()


@pytest.mark.parametrize("use", ["is_open(folder)", "Journal(folder).close()"])
def test_P8_a_child_forked_while_a_lane_is_being_locked_does_not_keep_it(tmp_path: Path, use: str) -> None:
    program = f"""
import os, signal, sys, threading
from pathlib import Path
from safekafka.spool import journal
from safekafka.spool.journal import Journal, is_open

folder, locked, go_on = Path(sys.argv[1]), threading.Event(), threading.Event()
Journal(folder).close()
locks = journal._locks

def take_time(file):
    taken = locks(file)
    locked.set()
    assert go_on.wait(10)
    return taken

journal._locks = take_time
thread = threading.Thread(target=lambda: {use})
thread.start()
assert locked.wait(10)
threading.Timer(0.3, go_on.set).start()  # the fork may wait for it
child = os.fork()
if not child:
    signal.pause()
thread.join()
journal._locks = locks
try:
    print(is_open(folder))
finally:
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False\n", done.stderr


def test_a_spool_that_is_a_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("")
    with pytest.raises(SpoolUnusableError, match=r"spool.*can't be used.*Remedy"):
        own_lane(Spool(tmp_path / "spool"), OURS)


def test_a_file_system_that_takes_no_files_is_refused_with_the_remedy() -> None:
    with pytest.raises(SpoolUnusableError, match=r"can't be used.*Remedy"):
        own_lane(Spool("/proc/self/spool"), OURS)


def test_a_spool_with_impossible_options_is_refused() -> None:
    with pytest.raises(ValueError, match="durability='ram'"):
        Spool("x", durability="ram")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_bytes=0"):
        Spool("x", max_bytes=0)
    with pytest.raises(ValueError, match="on_damage='ignore'"):
        Spool("x", on_damage="ignore")  # type: ignore[arg-type]
