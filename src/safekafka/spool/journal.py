"""The journal of one lane: accepted records on the local disk, in SQLite (WAL).

Format (schema 2)
- `journal.sqlite3`. Table `record`: a row for each record that Kafka does not have yet. `seq` is strictly increasing
  and never used twice; `fields` is the record (`codec.py`); `crc` its checksum, over `seq` as well. `rejected`: records
  that Kafka can never take, with the reason and the time (ms). `damaged`: rows whose checksum did not match, as they
  were found. `state`, written when records go: the highest `seq` so far, and how many have gone; so it is known how
  many there must be.
- `high`: the highest `seq` again, in a file of its own, written behind each commit and never synced; and whether the
  journal was closed in order. So records that a damaged or truncated write-ahead log took with it are missed, and
  counted: SQLite itself passes over them in silence. It is locked (flock) as long as the journal is open: who deletes
  the lane's `lock` for a stale one, as people do, gives the lane to nobody.
- `reserve`: room on the disk that is given up when it is full, since to delete also takes some. Without it a spool that
  filled its disk could never get rid of what it delivered.
- `damaged-<ms>...`: evidence. What was found damaged, kept as it was, once for each damage.

Rules
- `append` returns after the commit: with `synchronous=FULL` it is on the disk, with `NORMAL` in the page cache.
- Delivered records are deleted in runs, some time after Kafka acknowledged them, without a sync: a crash in between
  sends them again (at least once). A record moves to `rejected` or `damaged` in one transaction.
- What was not committed when the process died is rolled back by SQLite at the next open.
- A journal of another schema version is refused. A newer library that changes the format migrates in one transaction
  at the open.

Threads: `append` under the writer's lock (`writer.py`), `read` and all else on the sender thread. `_lock` guards the
writing connection, `_reading` the reading one; each read is a transaction of its own, so that the log can be reset.
Before a fork both locks of all journals are taken: a child made while a thread is inside SQLite could hang in its own.
Before them `_opening`, held while a lane is being locked: else the child would have a part of that, and not know it.
In the child the parent's connections are never touched, not even freed.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import sqlite3
import struct
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeAlias

from safekafka.errors import SpoolCorruptError, SpoolFullError, SpoolLockedError, SpoolUnusableError
from safekafka.record import Fields
from safekafka.spool.codec import checksum, decode
from safekafka.spool.crashpoint import armed, passing

FILE, HIGH, RESERVE = "journal.sqlite3", "high", "reserve"
SCHEMA_VERSION = 2
_SCHEMA = (
    "CREATE TABLE record (seq INTEGER PRIMARY KEY, fields BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE rejected (seq INTEGER PRIMARY KEY, fields BLOB NOT NULL, crc INTEGER NOT NULL, reason TEXT NOT NULL,"
    " at INTEGER NOT NULL)",
    "CREATE TABLE damaged (seq INTEGER PRIMARY KEY, fields BLOB, crc INTEGER, at INTEGER NOT NULL)",
    "CREATE TABLE state (one INTEGER PRIMARY KEY CHECK (one = 1), last_seq INTEGER NOT NULL, gone INTEGER NOT NULL)",
    "INSERT INTO state VALUES (1, 0, 0)",
)
_LOG_BEFORE = f"{FILE}-wal.before"
_LOG_PAGES = 1_000  # checkpoint when the write-ahead log has so many: 4 MB
_LOG_BYTES = 8 << 20  # a log that grew beyond is cut back
_FREE_PAGES = 1_024  # kept for what comes; more are given back to the file system, in steps
_VACUUM_PAGES = 256
_RESERVE_BYTES = 8 << 20  # a whole write-ahead log and its checkpoint
_FORK_SECONDS = 5.0
# Rows and runs go many to a statement: at each one Python gives up its interpreter lock, and gets it back late when
# other threads are busy.
_PARAMETERS = 3_000 if sqlite3.sqlite_version_info >= (3, 32) else 999  # of a statement: older ones take no more
_ROWS = _PARAMETERS // 3, 100, 10, 1
_INSERTS = {rows: f"INSERT INTO record VALUES {', '.join(['(?, ?, ?)'] * rows)}" for rows in _ROWS}
_DELETE_RUNS = 32
_DELETE = f"DELETE FROM record WHERE {' OR '.join(['seq BETWEEN ? AND ?'] * _DELETE_RUNS)}"
_HIGH = struct.Struct("<QQBI")  # highest seq, records left, closed in order, checksum

Connect = Callable[[Path], Any]


Row: TypeAlias = "tuple[int, Fields, int]"  # number, record, size


class RejectedRecord(NamedTuple):
    """A record that Kafka can never take. `at` is in ms since the epoch."""

    seq: int
    fields: Fields
    reason: str
    at: int


class Loss(NamedTuple):
    """Records that were in the journal and can't be read any more."""

    what: str
    records: int | None  # None: not known
    evidence: Path | None


class Journal:
    """Opened by one process at a time: the lane's lock sees to that. Raises `SpoolLockedError` where it failed to."""

    def __init__(
        self,
        folder: Path,
        durability: Literal["disk", "process"] = "disk",
        *,
        refuse_damage: bool = False,
        connect: Connect | None = None,
    ) -> None:
        self._folder = folder
        self.path = folder / FILE
        self._connect = connect or _connect
        self._synchronous = "FULL" if durability == "disk" else "NORMAL"
        self._refuse_damage = refuse_damage
        self._lock = threading.Lock()
        self._reading = threading.Lock()
        self.losses: list[Loss] = []  # found since the last look at it
        self.last_seq = self.count = self.bytes = 0
        self._relaxed = self._sync_failed = False
        self._shrinking = False
        self._missing = False  # the file, when it was looked for first
        self._file: tuple[int, int] | None = None  # the one that is open, as `_identity` tells; None: not known
        self._writer: Any = _Closed()
        self._reader: Any = _Closed()
        with _opening:
            self._high_file = _open_high(folder)
            _journals.add(self)  # before it is all there: a child forked meanwhile gives up the lock as well
        try:
            try:
                self._open_and_look()
            except (sqlite3.Error, SpoolFullError) as error:
                if not (_is_full(error) and self._give_up_reserve()):
                    raise
                self._close_connections()
                self._open_and_look()
                self.losses = list({loss.what: loss for loss in self.losses}.values())
        except BaseException as error:
            self._close_connections()
            with contextlib.suppress(OSError):
                (folder / _LOG_BEFORE).unlink()
            with _opening:
                self._close_high()
                _journals.discard(self)
            if isinstance(error, sqlite3.Error):
                raise _storage_error(error, self.path) from error
            raise

    # ---- writing

    def append(self, rows: Sequence[bytes]) -> int:
        """Write the encoded records in one commit; returns the sequence number of the first."""
        passing("before_append")
        with self._lock:
            first = self.last_seq + 1
            statements = _inserts(first, rows)
            try:
                if len(statements) == 1 and not armed:  # a transaction by itself
                    try:
                        self._sync_again()
                        self._writer.execute(*statements[0])
                    except sqlite3.Error as error:
                        self._sync_failed = self._sync_failed or is_io(error)
                        raise _storage_error(error, self.path) from error
                else:
                    with self._transaction():
                        for statement in statements:
                            self._writer.execute(*statement)
                        passing("after_append_before_commit")
                self._appended(len(rows), sum(map(len, rows)))
            except (SpoolUnusableError, SpoolFullError, SpoolCorruptError):
                raise
            except BaseException:  # a signal handler raised: only the file knows whether the commit was made
                self._count()
                raise
            passing("after_commit_before_high")
            self._mark(closed=False)
            return first

    def delete(self, seqs: Iterable[int], freed: int) -> None:
        """Kafka has these; `freed` is the sum of their sizes."""
        runs = list(runs_of(sorted(seqs)))
        with self._unsynced():
            with self._making_room(synced=False):
                deleted = 0
                for start in range(0, len(runs), _DELETE_RUNS):
                    bounds = [bound for run in runs[start : start + _DELETE_RUNS] for bound in run]
                    bounds += [0] * (2 * _DELETE_RUNS - len(bounds))
                    deleted += self._writer.execute(_DELETE, bounds).rowcount
                self._keep_state(deleted)
                passing("after_delete_before_commit")
            self.count, self.bytes = self.count - deleted, self.bytes - freed
            if deleted != sum(last - first + 1 for first, last in runs):  # a damaged file lacked some
                self.count, self.bytes = self._totals()
        passing("after_delete")

    def reject(self, rows: Sequence[tuple[int, int, str]]) -> None:
        """Move records aside, each given by number, size and reason: out of `record` and into `rejected`, in one
        transaction."""
        now = int(time.time() * 1000)
        freed = sum(size for _, size, _ in rows)
        with self._lock:
            with self._making_room():
                self._writer.executemany(
                    "INSERT INTO rejected SELECT seq, fields, crc, ?, ? FROM record WHERE seq = ?",
                    [(reason, now, seq) for seq, _, reason in rows],
                )
                moved = self._writer.executemany(
                    "DELETE FROM record WHERE seq = ?", [(seq,) for seq, _, _ in rows]
                ).rowcount
                self._keep_state(moved)
                passing("after_reject_before_commit")
            self.count, self.bytes = self.count - moved, self.bytes - freed
            if moved != len(rows):  # a damaged file lacked some
                try:
                    self.count, self.bytes = self._totals()
                except sqlite3.Error as error:
                    raise _storage_error(error, self.path) from error
        passing("after_reject")

    def set_aside(self, seqs: Sequence[int], whole: Mapping[int, bytes] = MappingProxyType({})) -> None:
        """Move damaged rows out of the way, as they are; in the place of some comes what was written, as memory still
        has it. Raises `SpoolCorruptError` where damage is to be refused."""
        if self._refuse_damage:
            raise SpoolCorruptError(
                f"record(s) {shown(seqs)} of {str(self.path)!r} are not what was written (checksum differs). Remedy: "
                "check the disk; on_damage='set_aside' keeps them as evidence and sends the others."
            )
        with self._lock, self._making_room():
            if self._writer.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                raise sqlite3.DatabaseError("malformed")  # to delete a row could free pages that are others'
            for first, last in runs_of(sorted(seqs)):
                self._writer.execute(
                    "INSERT OR IGNORE INTO damaged SELECT seq, fields, crc, ? FROM record WHERE seq BETWEEN ? AND ?",
                    (int(time.time() * 1000), first, last),
                )
                moved = self._writer.execute("DELETE FROM record WHERE seq BETWEEN ? AND ?", (first, last)).rowcount
                if moved != last - first + 1:  # the number itself is damaged: the row is not where it belongs
                    raise sqlite3.DatabaseError("malformed: rows are not found by their numbers")
            self._keep_state(len(seqs) - self._put_in(whole))
            self.count, self.bytes = self._totals()

    def put_back(self, rows: Mapping[int, bytes]) -> int:
        """Records by their numbers, of which a mended file may lack some. Returns how many it did."""
        with self._lock, self._making_room():
            lacked = self._put_in(rows)
            self._keep_state(-lacked)
            self.count, self.bytes = self._totals()
        return lacked

    def _put_in(self, rows: Mapping[int, bytes]) -> int:
        """Where the number is free. Returns how many."""
        values = [(seq, data, checksum(seq, data)) for seq, data in rows.items()]
        return int(self._writer.executemany("INSERT OR IGNORE INTO record VALUES (?, ?, ?)", values).rowcount)

    def requeue(self, seqs: Sequence[int]) -> int:
        """Rejected records go to the end of the line again, with new numbers. Returns how many."""
        with self._lock:
            with self._transaction():
                rows = self._selected("rejected", seqs)
                data = [fields for _, fields in rows]
                for statement in _inserts(self.last_seq + 1, data):
                    self._writer.execute(*statement)
                self._writer.executemany("DELETE FROM rejected WHERE seq = ?", [(seq,) for seq, _ in rows])
            self._appended(len(data), sum(map(len, data)))
            self._mark(closed=False)
            return len(rows)

    def discard(self, seqs: Sequence[int]) -> int:
        """Rejected records are forgotten. Returns how many."""
        with self._lock, self._transaction():
            return sum(
                self._writer.execute("DELETE FROM rejected WHERE seq = ?", (seq,)).rowcount for seq in sorted(set(seqs))
            )

    def give_back_room(self) -> bool:
        """A step of making the file smaller after a backlog; False when there is nothing to give back."""
        with self._unsynced():
            free, pages = self._one("PRAGMA freelist_count"), self._one("PRAGMA page_count")
            more = free >= _FREE_PAGES and free >= pages // 4
            if more:
                with self._making_room(synced=False):
                    for _ in range(_VACUUM_PAGES):  # the module steps such a statement once: a page
                        self._writer.execute("PRAGMA incremental_vacuum(1)")
            elif self._shrinking:  # the file itself is cut at a checkpoint
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
                self._keep_reserve()
            self._shrinking = more
            if not more:
                return False
        passing("during_vacuum")
        return True

    # ---- reading

    def read(self, first: int, last: int, limit: int, max_bytes: int) -> tuple[list[Row], list[int]]:
        """Records with sequence numbers from `first` to `last`, ascending, and the numbers of damaged ones among them:
        at most `limit`, and no more once `max_bytes` are reached (so at least one, if there is any)."""
        records: list[Row] = []
        damaged: list[int] = []
        size = 0
        try:
            with (
                self._reading,
                contextlib.closing(
                    self._reader.execute(
                        "SELECT seq, fields, crc FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
                        (first, last, limit),
                    )
                ) as rows,
            ):
                for seq, data, crc in rows:
                    if seq < first:
                        raise sqlite3.DatabaseError("malformed: rows are out of order")
                    first = seq + 1
                    if type(data) is not bytes or checksum(seq, data) != crc:
                        damaged.append(seq)
                        continue
                    records.append((seq, decode(data), len(data)))
                    size += len(data)
                    if size >= max_bytes:
                        break
        except sqlite3.Error as error:
            raise _storage_error(error, self.path) from error
        return records, damaged

    def rejected(self) -> list[RejectedRecord]:
        rows = self._ask("SELECT seq, fields, crc, reason, at FROM rejected ORDER BY seq")
        return [
            RejectedRecord(seq, decode(data), reason, at)
            for seq, data, crc, reason, at in rows
            if is_whole(seq, data, crc)
        ]

    def rejected_count(self) -> int:
        return int(self._ask("SELECT count(*) FROM rejected")[0][0])

    def count_up_to(self, seq: int) -> int:
        return int(self._ask("SELECT count(*) FROM record WHERE seq <= ?", seq)[0][0])

    def _ask(self, query: str, *parameters: int) -> list[Any]:
        try:
            with self._reading:
                return self._reader.execute(query, parameters).fetchall()  # type: ignore[no-any-return]
        except sqlite3.Error as error:
            raise _storage_error(error, self.path) from error

    # ---- the end, and damage

    def close(self) -> None:
        """Does nothing when called again: the number of a file that is closed may be another file's by then."""
        passing("before_close")
        with self._lock, self._reading:
            if self._high_file < 0:
                return
            self._reader.close()
            self._writer.close()
            self._mark(closed=True)
            self._close_high()
        with _opening:
            _journals.discard(self)

    def free_bytes(self) -> int:
        """On the disk. Raises `SpoolUnusableError` where the file was deleted, though another is in its place: SQLite
        writes on into it, and the end of the process takes all of it away."""
        try:
            disk = self._look_at_disk()
        except OSError:
            with self._lock:  # a mending may have had it away for a moment
                try:
                    disk = self._look_at_disk()
                except OSError as error:
                    raise SpoolUnusableError(
                        f"{str(self.path)!r} is gone ({error.strerror or error}): what is in it ends with the process, "
                        "and nothing more is accepted. Remedy: let the process deliver what it has, end it, and keep "
                        "what deletes files out of the folder."
                    ) from error
        return disk.f_bavail * disk.f_frsize

    def is_damaged(self) -> bool:
        with self._lock:
            try:
                return bool(self._writer.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok")
            except sqlite3.DatabaseError as error:
                return is_corrupt(error)

    def mend(self) -> None:
        """SQLite itself calls the file damaged: everything that can be read goes into a new one, the old is kept."""
        from safekafka.spool.salvage import salvage

        if self._refuse_damage:
            raise SpoolCorruptError(
                f"{str(self.path)!r} is damaged. Remedy: check the disk; on_damage='set_aside' keeps the file as "
                "evidence and sends what can be read."
            )
        with self._lock, self._reading:
            try:
                self._look_at_disk()  # nothing of what another process has there by now
                self._close_connections()
                self._reader = self._writer = _Closed()
                self._file = None
                self.losses.append(salvage(self._folder, self.last_seq, self._connect, self._make_tables))
                self._open()
            except sqlite3.Error as error:
                raise _storage_error(error, self.path) from error
            except OSError as error:
                raise not_usable(self._folder, error) from error

    # ---- inside

    def _look_at_disk(self) -> os.statvfs_result:
        """Raises `OSError` where the open file is not there any more."""
        if self._file not in (None, _identity(self.path)):
            raise FileNotFoundError(errno.ENOENT, "another file is in its place")
        return os.statvfs(self.path)

    def _close_connections(self) -> None:
        for connection in (self._reader, self._writer):
            with contextlib.suppress(sqlite3.Error):
                connection.close()

    def _open_and_look(self) -> None:
        from safekafka.spool.salvage import finish_interrupted

        if finish_interrupted(self._folder):
            kept = max(self._folder.glob("damaged-*.sqlite3"), default=None)
            self.losses.append(Loss(f"{FILE} was damaged; who mended it died before it could tell", None, kept))
        high, left, closed = self._read_high()
        self._missing = self._missing or not self.path.exists()
        before = self._copy_of_log() if high and not closed else None
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            self.last_seq = high
            self.mend()
        if self._missing and high:
            evidence = None if before is None else before.replace(self._folder / f"damaged-{_now()}.wal")
            if left or not closed:
                what = f"the file {FILE} is missing; it had records up to {high}"
                self.losses.append(Loss(what, left or None, evidence))
            self.last_seq = high
        elif self.last_seq < high:
            evidence = None if before is None else before.replace(self._folder / f"damaged-{_now()}.wal")
            first, self.last_seq = self.last_seq + 1, high
            self.losses.append(Loss(f"the write-ahead log lacks records {first} to {high}", high - first + 1, evidence))
        elif before is not None:
            before.unlink()
        if self.losses and self._refuse_damage:
            raise SpoolCorruptError(
                f"{str(self.path)!r}: {self.losses[0].what}. Remedy: check the disk; on_damage='set_aside' sends what "
                "is left."
            )
        try:
            self._settle_state()
        except SpoolCorruptError:
            self.mend()
            self._settle_state()
        # Before the first record: an old mark on the disk would say of a journal with records that it was left empty.
        self._mark(closed=False)
        os.fsync(self._high_file)

    def _settle_state(self) -> None:
        with self._transaction():  # what is lost is missed once
            self._writer.execute("UPDATE state SET last_seq = ?, gone = ?", (self.last_seq, self.last_seq - self.count))

    def _open(self) -> None:
        self._writer = self._connect(self.path)
        self._file = _identity(self.path)
        self._writer.execute("PRAGMA auto_vacuum=INCREMENTAL")
        self._writer.execute("PRAGMA journal_mode=WAL")
        self._writer.execute(f"PRAGMA synchronous={self._synchronous}")
        self._writer.execute(f"PRAGMA wal_autocheckpoint={_LOG_PAGES}")
        self._writer.execute(f"PRAGMA journal_size_limit={_LOG_BYTES}")
        self._relaxed = self._sync_failed = False
        # Who left a log here may have met a disk that refused to sync it (`_sync_again`): out of it, as far as it goes.
        self._writer.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        version = self._one("PRAGMA user_version")
        if version == 0:
            with self._transaction():
                self._make_tables(self._writer)
        elif version != SCHEMA_VERSION:
            raise SpoolUnusableError(
                f"spool {str(self._folder)!r} has format {version}, this safekafka writes format {SCHEMA_VERSION}. "
                "Remedy: drain it with the version that wrote it, or give another folder."
            )
        self._keep_reserve()
        sync_folder(self._folder)
        self._reader = self._connect(self.path)
        self._reader.execute("PRAGMA query_only=ON")
        self._count()
        # At its first read SQLite opens the log, by name: later that may be the log of who made the folder anew.
        self._reader.execute("SELECT one FROM state").fetchall()

    @staticmethod
    def _make_tables(connection: Any) -> None:
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _count(self) -> None:
        """What the file says. Rows that it must have and has not are a loss."""
        row = self._writer.execute("SELECT last_seq, gone FROM state").fetchone()
        if row is None or not all(type(number) is int and 0 <= number < 1 << 62 for number in row):
            raise sqlite3.DatabaseError("malformed: the state is not what was written")
        last_seq, gone = row
        self.last_seq = max(
            last_seq,
            self._one("SELECT coalesce(max(seq), 0) FROM record"),
            self._one("SELECT coalesce(max(seq), 0) FROM rejected"),
        )
        self.count, self.bytes = self._totals()
        missing = self.last_seq - gone - self.count
        if missing > 0:
            self.losses.append(Loss(f"{FILE} lacks {missing} of its {self.count + missing} records", missing, None))

    def _totals(self) -> tuple[int, int]:
        return self._one("SELECT count(*) FROM record"), self._one(
            "SELECT coalesce(sum(length(fields)), 0) FROM record"
        )

    def _selected(self, table: str, seqs: Sequence[int]) -> list[tuple[int, bytes]]:
        rows = (
            self._writer.execute(f"SELECT seq, fields, crc FROM {table} WHERE seq = ?", (seq,)).fetchone()
            for seq in sorted(set(seqs))
        )
        return [  # a damaged one would get a new checksum, and look whole
            (int(row[0]), row[1])
            for row in rows
            if row is not None and type(row[1]) is bytes and checksum(row[0], row[1]) == row[2]
        ]

    def _one(self, query: str) -> int:
        return int(self._writer.execute(query).fetchone()[0])

    @contextlib.contextmanager
    def _unsynced(self) -> Iterator[None]:
        """Under `_lock`: what is done inside need not survive a power loss. Where the way back fails, the next to be
        synced takes it."""
        with self._lock:
            try:
                if self._synchronous == "FULL":
                    self._relaxed = True
                    self._writer.execute("PRAGMA synchronous=NORMAL")
                yield
            except sqlite3.Error as error:
                raise _storage_error(error, self.path) from error
            finally:
                with contextlib.suppress(sqlite3.Error):
                    self._sync_again()

    def _sync_again(self) -> None:
        if self._relaxed:
            self._writer.execute("PRAGMA synchronous=FULL")
            self._relaxed = False
        if self._sync_failed:
            # What a failed sync should have written the system may take for written and never write: a hole in the log,
            # which ends there after a power loss, with all that was synced behind it. So the log begins anew.
            if self._one("PRAGMA wal_checkpoint(TRUNCATE)"):
                raise sqlite3.OperationalError("the log could not be emptied after a failed write")
            self._sync_failed = False

    @contextlib.contextmanager
    def _transaction(self, *, synced: bool = True) -> Iterator[None]:
        """Under `_lock`. A failure of the disk leaves nothing half-written."""
        try:
            if synced:
                self._sync_again()
            self._writer.execute("BEGIN IMMEDIATE")
            yield
            self._writer.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                self._sync_failed = self._sync_failed or is_io(error)
                raise _storage_error(error, self.path) from error
            self._count()  # a signal handler raised: only the file knows whether the commit was made
            raise

    @contextlib.contextmanager
    def _making_room(self, *, synced: bool = True) -> Iterator[None]:
        """A transaction by which records go. On a full disk the reserve is given up; the next attempt has it."""
        try:
            with self._transaction(synced=synced):
                yield
        except SpoolFullError:
            self._give_up_reserve()
            raise

    def _give_up_reserve(self) -> bool:
        """False if there is none."""
        try:
            had = os.stat(self._folder / RESERVE).st_size
            os.truncate(self._folder / RESERVE, 0)
        except OSError:
            return False
        return had > 0

    def _keep_reserve(self) -> None:
        """Where the disk has plenty of room."""
        with contextlib.suppress(OSError):
            disk = os.statvfs(self._folder)
            file = os.open(self._folder / RESERVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                if os.fstat(file).st_size < _RESERVE_BYTES < disk.f_bavail * disk.f_frsize // 4:
                    _take_room(file)
            finally:
                os.close(file)

    def _appended(self, rows: int, size: int) -> None:
        self.last_seq, self.count, self.bytes = self.last_seq + rows, self.count + rows, self.bytes + size

    def _keep_state(self, gone: int) -> None:
        """So many records go in this transaction."""
        self._writer.execute("UPDATE state SET last_seq = max(last_seq, ?), gone = gone + ?", (self.last_seq, gone))

    # -- the mark of the highest sequence number

    def _mark(self, *, closed: bool) -> None:
        left = self.count if closed else 0
        head = _HIGH.pack(self.last_seq, left, closed, 0)
        with contextlib.suppress(OSError):  # a help, not a condition
            os.pwrite(self._high_file, head[:-4] + struct.pack("<I", zlib.crc32(head[:-4])), 0)

    def _read_high(self) -> tuple[int, int, bool]:
        return _unmarked(os.pread(self._high_file, _HIGH.size, 0)) or (0, 0, True)

    @staticmethod
    def left_at_close(folder: Path) -> int | None:
        """How many records an orderly end left in the journal of this folder. None: not known without opening it."""
        try:
            mark = _unmarked((folder / HIGH).read_bytes())
        except OSError:
            return None
        return mark[1] if mark is not None and mark[2] else None

    @staticmethod
    def highest(folder: Path) -> int:
        """The highest number that the mark beside the journal knows; 0 if it says nothing."""
        try:
            mark = _unmarked((folder / HIGH).read_bytes())
        except OSError:
            return 0
        return mark[0] if mark is not None else 0

    def _close_high(self) -> None:
        file, self._high_file = self._high_file, -1
        os.close(file)

    def _copy_of_log(self) -> Path | None:
        """Before SQLite passes over what it finds damaged in it."""
        log = self._folder / f"{FILE}-wal"
        if not log.exists() or not log.stat().st_size:
            return None
        copy = self._folder / _LOG_BEFORE
        try:
            return Path(shutil.copyfile(log, copy))
        except OSError:  # no room: the evidence is a help, not a condition
            copy.unlink(missing_ok=True)
            return None

    def _forget(self) -> None:
        """In a forked child: the connections stay the parent's. Never freed, for that would be a close. Its part of the
        lock is given up, or it would hold the lane when the parent has died."""
        if self._high_file >= 0:
            self._close_high()
        for connection in (self._writer, self._reader):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        self._lock, self._reading = threading.Lock(), threading.Lock()


class _Closed:
    """In the place of a connection that there is not yet, or that a failed mending took away."""

    in_transaction = False

    def close(self) -> None:
        return

    def execute(self, *_: Any) -> Any:
        raise sqlite3.DatabaseError("malformed, and could not be mended yet")

    executemany = executescript = execute


_journals: weakref.WeakSet[Journal] = weakref.WeakSet()
# While a locked `high` is open that no journal in `_journals` has: a child forked then would keep the lane. Reentrant,
# for a signal handler that opens a journal on top of that.
_opening = threading.RLock()
_quiet: list[Any] = []  # locks


def _be_quiet() -> None:
    if _opening.acquire(timeout=_FORK_SECONDS):  # first: it is held by who adds a journal
        _quiet.append(_opening)
    for journal in list(_journals):
        for lock in (journal._lock, journal._reading):
            if lock.acquire(timeout=_FORK_SECONDS):
                _quiet.append(lock)


def _go_on() -> None:
    while _quiet:
        _quiet.pop().release()


def _forget_all() -> None:
    global _opening
    _opening = threading.RLock()
    _quiet.clear()
    for journal in list(_journals):
        journal._forget()
    _journals.clear()


os.register_at_fork(before=_be_quiet, after_in_parent=_go_on, after_in_child=_forget_all)


def _inserts(first: int, rows: Sequence[bytes]) -> list[tuple[str, list[Any]]]:
    """Statements that write the rows, with their parameters."""
    statements: list[tuple[str, list[Any]]] = []
    start = 0
    for size, statement in _INSERTS.items():
        while len(rows) - start >= size:
            values: list[Any] = []
            for seq, data in enumerate(rows[start : start + size], first + start):
                values += (seq, data, checksum(seq, data))
            statements.append((statement, values))
            start += size
    return statements


def runs_of(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, last) of each unbroken run."""
    first: int | None = None
    for index, seq in enumerate(seqs):
        if first is None:
            first = seq
        if index + 1 == len(seqs) or seqs[index + 1] != seq + 1:
            yield first, seq
            first = None


def shown(seqs: Sequence[int]) -> str:
    """For a message: runs, and only the first of many."""
    runs = [str(first) if first == last else f"{first}-{last}" for first, last in runs_of(sorted(seqs))]
    return ", ".join(runs[:10]) + (f" and {len(runs) - 10} more runs" if len(runs) > 10 else "")


def sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(seq: int, data: Any, crc: Any) -> bool:
    return type(data) is bytes and checksum(seq, data) == crc


def is_io(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == 10 or "I/O" in str(error)  # SQLITE_IOERR


def _is_full(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return isinstance(error, SpoolFullError) or code == 13 or "full" in str(error)  # SQLITE_FULL


def is_corrupt(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    text = str(error)
    return code in (11, 26) or "malformed" in text or "not a database" in text  # SQLITE_CORRUPT, SQLITE_NOTADB


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
    connection.text_factory = lambda text: text.decode(errors="replace")  # one flipped bit makes a text of any row
    return connection


def _identity(path: Path) -> tuple[int, int]:
    file = os.stat(path)
    return file.st_dev, file.st_ino


def _take_room(file: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, _RESERVE_BYTES)
    else:  # macOS
        os.pwrite(file, bytes(_RESERVE_BYTES), 0)


def _unmarked(data: bytes) -> tuple[int, int, bool] | None:
    """Highest sequence number, records left, closed in order; None if the mark says nothing."""
    if len(data) != _HIGH.size or zlib.crc32(data[:-4]) != _HIGH.unpack(data)[3]:
        return None
    last, left, closed, _ = _HIGH.unpack(data)
    return last, left, bool(closed)


def _open_high(folder: Path) -> int:
    try:
        file = os.open(folder / HIGH, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise not_usable(folder, error) from error
    if not _locks(file):
        os.close(file)
        raise SpoolLockedError(f"{str(folder)!r} is in use by another process. Remedy: end that process first.")
    return file


def is_open(folder: Path) -> bool:
    """Whether a living process has the journal of this folder open."""
    with _opening:
        try:
            file = os.open(folder / HIGH, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _locks(file)
        finally:
            os.close(file)


def _locks(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without such locks: the lane's lock has to do
        pass
    return True


def _now() -> int:
    return int(time.time() * 1000)


def not_usable(folder: Path, error: OSError) -> SpoolUnusableError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = (
        "free some room on its disk, or some of its files (df -i) or of this user's quota"
        if full
        else "give a folder on a local disk that this user may write to"
    )
    return SpoolUnusableError(f"spool {str(folder)!r} can't be used: {error.strerror or error}. Remedy: {remedy}.")


def _storage_error(error: sqlite3.Error, path: Path) -> Exception:
    text = str(error)
    if _is_full(error):
        return SpoolFullError(
            f"no room on the disk of {str(path)!r}: {text}. The record was not accepted. Remedy: free some room."
        )
    if is_corrupt(error):
        return SpoolCorruptError(
            f"{str(path)!r} is damaged: {text}. Remedy: check the disk; keep a copy of the folder before anything else."
        )
    return SpoolUnusableError(
        f"the spool's disk refused: {text} ({str(path)!r}). Remedy: check the disk, its rights and its room."
    )
