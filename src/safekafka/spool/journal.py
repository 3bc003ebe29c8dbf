"""The journal: accepted records on the local disk, in SQLite (WAL).

Format (schema 1), in `<spool>/lane-0/`
- `lock`             held (flock) by the one process that may write; the operating system frees it when that process
  dies.
- `journal.sqlite3`  `record`: one row for each record that Kafka does not have yet. `seq` is strictly increasing and
  never used twice;
  `fields` is topic, value, key, headers, partition, timestamp, byte-exact (None and empty differ); `crc` is the CRC-32
  of `fields`.
  `rejected`: rows that Kafka can never take, with the reason and the time (ms). `meta`: schema version and the highest
  `seq` ever given.

Rules
- `append` returns after the commit; with `synchronous=FULL` a commit is on the disk, with `NORMAL` in the page cache.
- Delivered records are deleted in runs, some time after Kafka acknowledged them: a crash in between sends them again
  (at least once).
- A record moves to `rejected` in one transaction.
- What was not committed when the process died is rolled back by SQLite at the next open: a record is there whole or not
  at all.

Threads: `append` on any thread, everything else on the sender thread. `_lock` guards the one writing connection; the
reading connection belongs to the sender thread, and each of its reads is a transaction of its own, so that the WAL can
be reset.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import struct
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout

from safekafka.errors import (
    SafeKafkaError,
    SpoolCorruptError,
    SpoolFullError,
    SpoolLockedError,
    SpoolUnusableError,
)
from safekafka.record import Fields, HeaderList
from safekafka.spool.config import Spool

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE record (seq INTEGER PRIMARY KEY, fields BLOB NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE rejected (seq INTEGER PRIMARY KEY, fields BLOB NOT NULL, crc INTEGER NOT NULL, reason TEXT NOT NULL, at
INTEGER NOT NULL); CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_NONE = 0xFFFFFFFF  # the length that stands for None
_HEAD = struct.Struct("<iqI")  # partition, timestamp, number of headers (_NONE: no headers given)
_LENGTH = struct.Struct("<I")


class StoredRecord(NamedTuple):
    seq: int
    fields: Fields
    size: int


class RejectedRecord(NamedTuple):
    """A record that Kafka can never take. `at` is in ms since the epoch."""

    seq: int
    fields: Fields
    reason: str
    at: int


class Journal:
    """Opened by one process at a time; `SpoolLockedError` otherwise."""

    def __init__(self, spool: Spool) -> None:
        self._folder = spool.folder / "lane-0"
        self._path = self._folder / "journal.sqlite3"
        _make_folder(self._folder)
        self._file_lock = _take_lock(self._folder)
        self._lock = threading.Lock()
        try:
            self._writer = self._connect()
            self._writer.execute("PRAGMA journal_mode=WAL")
            self._writer.execute(f"PRAGMA synchronous={'FULL' if spool.durability == 'disk' else 'NORMAL'}")
            self._prepare()
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only=ON")
            self._count()
        except BaseException as error:
            self._file_lock.release()
            if isinstance(error, sqlite3.Error):
                raise _storage_error(error, self._path) from error
            raise

    def append(self, records: Sequence[Fields]) -> int:
        """Write the records in one commit; returns the sequence number of the first. They are on the disk when it
        returns."""
        encoded = [encode(fields) for fields in records]
        with self._lock:
            first = self.last_seq + 1
            try:
                with self._transaction():
                    self._writer.executemany(
                        "INSERT INTO record (seq, fields, crc) VALUES (?, ?, ?)",
                        [(seq, data, zlib.crc32(data)) for seq, data in enumerate(encoded, first)],
                    )
                self.last_seq += len(encoded)
                self.count += len(encoded)
                self.bytes += sum(map(len, encoded))
            except SafeKafkaError:
                raise
            except BaseException:  # a signal handler raised: only the file knows whether the commit was made
                self._count()
                raise
            return first

    def read(self, first: int, last: int, limit: int, max_bytes: int) -> list[StoredRecord]:
        """Records with sequence numbers from `first` to `last`, ascending: at most `limit`, and no more once
        `max_bytes` are reached (so at least one, if there is any)."""
        records: list[StoredRecord] = []
        size = 0
        try:
            with contextlib.closing(
                self._reader.execute(
                    "SELECT seq, fields, crc FROM record WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
                    (first, last, limit),
                )
            ) as rows:
                for seq, data, crc in rows:
                    records.append(StoredRecord(seq, self._checked(seq, data, crc), len(data)))
                    size += len(data)
                    if size >= max_bytes:
                        break
        except sqlite3.Error as error:
            raise _storage_error(error, self._path) from error
        return records

    def delete(self, seqs: Iterable[int], freed: int) -> None:
        """Kafka has these; `freed` is the sum of their sizes."""
        runs = list(_runs(sorted(seqs)))
        with self._lock:
            with self._transaction():
                self._writer.executemany("DELETE FROM record WHERE seq BETWEEN ? AND ?", runs)
                self._keep_last_seq()
            self.count -= sum(last - first + 1 for first, last in runs)
            self.bytes -= freed

    def reject(self, seq: int, reason: str, size: int) -> None:
        """Move one record aside: out of `record` and into `rejected`, in one transaction."""
        with self._lock:
            with self._transaction():
                self._writer.execute(
                    "INSERT INTO rejected SELECT seq, fields, crc, ?, ? FROM record WHERE seq = ?",
                    (reason, int(time.time() * 1000), seq),
                )
                self._writer.execute("DELETE FROM record WHERE seq = ?", (seq,))
                self._keep_last_seq()
            self.count -= 1
            self.bytes -= size

    def rejected(self) -> list[RejectedRecord]:
        with self._lock:
            rows = self._writer.execute("SELECT seq, fields, crc, reason, at FROM rejected ORDER BY seq").fetchall()
        return [RejectedRecord(seq, self._checked(seq, data, crc), reason, at) for seq, data, crc, reason, at in rows]

    def count_up_to(self, seq: int) -> int:
        with self._lock:
            return int(self._writer.execute("SELECT count(*) FROM record WHERE seq <= ?", (seq,)).fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._reader.close()
            self._writer.close()
            self._file_lock.release()

    # ---- inside

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=10.0)

    def _prepare(self) -> None:
        with self._transaction():
            version = self._writer.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    self._writer.execute(statement)
                self._writer.execute("INSERT INTO meta VALUES ('last_seq', 0)")
                self._writer.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise SpoolUnusableError(
                    f"spool {str(self._folder)!r} has format {version}, this safekafka writes format {SCHEMA_VERSION}. "
                    "Remedy: drain it with the version that wrote it, or give another folder."
                )
        _sync_folder(self._folder)

    def _count(self) -> None:
        self.last_seq = self._one(
            "SELECT max(coalesce((SELECT max(seq) FROM record), 0), coalesce((SELECT max(seq) FROM rejected), 0),"
            " (SELECT value FROM meta WHERE name = 'last_seq'))"
        )
        self.count = self._one("SELECT count(*) FROM record")
        self.bytes = self._one("SELECT coalesce(sum(length(fields)), 0) FROM record")

    def _one(self, query: str) -> int:
        return int(self._writer.execute(query).fetchone()[0])

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Under `_lock`. A failure of the disk leaves nothing half-written."""
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            yield
            self._writer.execute("COMMIT")
        except BaseException as error:
            with contextlib.suppress(sqlite3.Error):  # SQLite rolls back by itself after some errors
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise _storage_error(error, self._path) from error
            raise

    def _keep_last_seq(self) -> None:
        self._writer.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'last_seq'", (self.last_seq,))

    def _checked(self, seq: int, data: bytes, crc: int) -> Fields:
        if zlib.crc32(data) != crc:
            raise SpoolCorruptError(
                f"record {seq} of {str(self._path)!r} is not what was written (checksum differs). "
                "Remedy: check the disk; keep a copy of the folder before anything else."
            )
        return decode(data)


def encode(fields: Fields) -> bytes:
    topic, value, key, headers, partition, timestamp = fields
    parts = [_HEAD.pack(partition, timestamp, _NONE if headers is None else len(headers))]
    for part in (topic.encode(), value, key):
        _put(parts, part)
    for name, header in headers or ():
        _put(parts, name.encode())
        _put(parts, header)  # type: ignore[arg-type]
    return b"".join(parts)


def decode(data: bytes) -> Fields:
    partition, timestamp, count = _HEAD.unpack_from(data)
    position = _HEAD.size

    def take() -> bytes | None:
        nonlocal position
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size
        if length == _NONE:
            return None
        position += length
        return data[position - length : position]

    topic, value, key = take(), take(), take()
    headers: HeaderList | None = None
    if count != _NONE:
        headers = [((take() or b"").decode(), take()) for _ in range(count)]
    return (topic or b"").decode(), value, key, headers, partition, timestamp


def _put(parts: list[bytes], part: bytes | None) -> None:
    if part is None:
        parts.append(_LENGTH.pack(_NONE))
    else:
        parts.append(_LENGTH.pack(len(part)))
        parts.append(part)


def _runs(seqs: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, last) of each unbroken run."""
    first: int | None = None
    for index, seq in enumerate(seqs):
        if first is None:
            first = seq
        if index + 1 == len(seqs) or seqs[index + 1] != seq + 1:
            yield first, seq
            first = None


def _take_lock(folder: Path) -> FileLock:
    lock = FileLock(folder / "lock", thread_local=False)  # taken by the caller, released by the sender thread
    owner = folder / "owner"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        holder = "another process"
        with contextlib.suppress(OSError, ValueError, KeyError):
            holder = f"process {json.loads(owner.read_text())['pid']}"
        raise SpoolLockedError(
            f"spool {str(folder.parent)!r} is in use by {holder}. One process owns a spool at a time. "
            "Remedy: end that process, or give each process a spool folder of its own."
        ) from None
    except OSError as error:
        raise _not_usable(folder, error) from error
    with contextlib.suppress(OSError):  # only for the message above
        owner.write_text(json.dumps({"pid": os.getpid()}))
    return lock


def _make_folder(folder: Path) -> None:
    """Create the folder and its parents, and sync each parent: else a power loss could take away the folder with the
    records in it."""
    missing = [folder, *folder.parents]
    try:
        for path in reversed([path for path in missing if not path.exists()]):
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise _not_usable(folder, error) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_usable(folder: Path, error: OSError) -> SpoolUnusableError:
    return SpoolUnusableError(
        f"spool {str(folder.parent)!r} can't be used: {error.strerror or error}. "
        "Remedy: give a folder on a local disk that this user may write to."
    )


def _storage_error(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", None)
    text = str(error)
    if code == 13 or "full" in text:  # SQLITE_FULL
        return SpoolFullError(
            f"no room on the disk of {str(path)!r}: {text}. The record was not accepted. Remedy: free some room."
        )
    if code == 11 or "malformed" in text or "not a database" in text:  # SQLITE_CORRUPT, SQLITE_NOTADB
        return SpoolCorruptError(
            f"{str(path)!r} is damaged: {text}. Remedy: check the disk; keep a copy of the folder before anything else."
        )
    return SpoolUnusableError(
        f"the spool's disk refused: {text} ({str(path)!r}). Remedy: check the disk, its rights and its room."
    )
