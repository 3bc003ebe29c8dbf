"""A new journal out of a damaged one: every row that SQLite can still reach is copied, the damaged file stays as
evidence.

Steps: the new file is built beside (`.mended`) and synced; the old one is renamed to `damaged-<ms>.sqlite3`; the new
one takes its place. Killed in between, the next open goes on: a `.mended` beside a journal was not finished and is made
anew, a `.mended` without one only has to be renamed.

Under the journal's locks, with no other connection open.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safekafka.spool.crashpoint import passing
from safekafka.spool.journal import FILE, Connect, Loss, is_corrupt, is_whole, sync_folder

_MENDED = f"{FILE}.mended"
_ONE_BY_ONE = 10_000
_TABLES = {"record": "?, ?, ?", "rejected": "?, ?, ?, ?, ?", "damaged": "?, ?, ?, ?"}


def finish_interrupted(folder: Path) -> bool:
    """True if a mended journal took its place only now, so that nobody was told of the damage."""
    mended, journal = folder / _MENDED, folder / FILE
    if not mended.exists() or journal.exists():
        _clear(folder)
        return False
    mended.replace(journal)
    sync_folder(folder)
    return True


def _clear(folder: Path) -> None:
    for name in (_MENDED, f"{_MENDED}-journal"):
        (folder / name).unlink(missing_ok=True)


def salvage(folder: Path, last_seq: int, connect: Connect, make_tables: Callable[[Any], None]) -> Loss:
    """Raises `sqlite3.Error` where nothing at all can be read. `last_seq`: the highest number known."""
    journal, mended = folder / FILE, folder / _MENDED
    _clear(folder)
    unreadable: list[tuple[int, int]] = []  # ranges of numbers in `record`
    others = False  # something of the other tables can't be read
    spoilt = 0
    now = int(time.time() * 1000)
    with contextlib.closing(connect(journal)) as old, contextlib.closing(connect(mended)) as new:
        old.execute("PRAGMA writable_schema=ON")  # else SQLite reads nothing of a file that was cut short
        new.execute("PRAGMA auto_vacuum=INCREMENTAL")
        new.execute("PRAGMA synchronous=FULL")
        new.execute("BEGIN IMMEDIATE")
        make_tables(new)
        gone = None
        with contextlib.suppress(sqlite3.DatabaseError, TypeError, ValueError):
            known, gone = map(int, old.execute("SELECT last_seq, gone FROM state").fetchone())
            if known < 1 << 62:
                last_seq = max(last_seq, known)
        for table, marks in _TABLES.items():
            broken: list[tuple[int, int]] = []
            for row in _readable(old, table, last_seq, broken):
                if table == "damaged":
                    seq, data, crc, at = row
                    values = seq, data, crc, at if type(at) is int else now
                elif is_whole(*row[:3]):
                    last_seq = max(last_seq, row[0])
                    values = row
                    if table == "rejected":
                        values = (*row[:3], str(row[3]), row[4] if type(row[4]) is int else now)
                else:
                    spoilt += new.execute("INSERT OR IGNORE INTO damaged VALUES (?, ?, ?, ?)", (*row[:3], now)).rowcount
                    continue
                new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", values)
            if table == "record":
                unreadable = broken
            else:
                others = others or bool(broken)
            passing("during_salvage")
        (count,) = new.execute("SELECT count(*) FROM record").fetchone()
        new.execute("UPDATE state SET last_seq = ?, gone = ?", (last_seq, last_seq - count))
        new.execute("COMMIT")
    evidence = folder / f"damaged-{int(time.time() * 1000)}.sqlite3"
    for suffix in ("-wal", "-shm"):
        beside = folder / f"{FILE}{suffix}"
        if beside.exists():
            beside.replace(f"{evidence}{suffix}")
    journal.replace(evidence)
    passing("during_salvage")
    mended.replace(journal)
    sync_folder(folder)
    ranges = ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in unreadable[:10])
    most = spoilt + sum(last - first + 1 for first, last in unreadable)
    if gone is not None:
        most = max(most, last_seq - gone - count)
    what = f"{FILE} is damaged; " + (f"at most {most} records can't be read" if most else "its records were read")
    what += f", of those numbered {ranges}" if ranges else ""
    what += ", and some that were rejected" if others else ""
    what += "; how many there were is not known" if gone is None else ""
    return Loss(what, None if others or gone is None else most, evidence)


def _readable(old: Any, table: str, last_seq: int, unreadable: list[tuple[int, int]]) -> Iterator[tuple[Any, ...]]:
    """All rows that can be reached, some of them twice."""
    yield from _upwards(old, table, last_seq, unreadable)
    if unreadable:  # a search that led through what is damaged may have come out too far
        with contextlib.suppress(sqlite3.DatabaseError):
            yield from old.execute(f"SELECT * FROM {table} ORDER BY seq DESC")


def _upwards(old: Any, table: str, last_seq: int, unreadable: list[tuple[int, int]]) -> Iterator[tuple[Any, ...]]:
    """Around what can't be read a way is felt step by step. Only a row that is whole says how far we are: the number of
    another may be anything."""
    cursor = 0
    while True:
        for limit in (-1, 1):  # the second: sqlite3 steps ahead, and an error there costs the row before as well
            try:
                for row in old.execute(f"SELECT * FROM {table} WHERE seq >= ? ORDER BY seq LIMIT {limit}", (cursor,)):
                    yield row
                    if row[0] >= cursor and (is_whole(*row[:3]) or table == "damaged"):
                        cursor = row[0] + 1
                if limit < 0:
                    return
            except sqlite3.DatabaseError as error:
                if not _of_the_file(error):
                    raise
        beyond = _next_readable(old, table, cursor, last_seq)
        unreadable.append((max(1, cursor), last_seq if beyond is None else beyond - 1))
        if beyond is None:
            return
        cursor = beyond


def _of_the_file(error: sqlite3.Error) -> bool:
    return is_corrupt(error) or isinstance(error, sqlite3.DataError)  # a length beyond all bounds


def _next_readable(old: Any, table: str, cursor: int, last_seq: int) -> int | None:
    """A number from which on reading works again: the lowest, if it is near; else found by doubling steps and then
    halves, which may pass over some that could be read."""

    def works(seq: int) -> bool:
        try:
            old.execute(f"SELECT seq FROM {table} WHERE seq >= ? ORDER BY seq LIMIT 1", (seq,)).fetchone()
            return True
        except sqlite3.DatabaseError as error:
            if not _of_the_file(error):
                raise
            return False

    for seq in range(cursor + 1, min(cursor + _ONE_BY_ONE, last_seq + 1)):
        if works(seq):
            return seq
    step = _ONE_BY_ONE
    while cursor + step <= last_seq and not works(cursor + step):
        step *= 2
    high = min(cursor + step, last_seq + 1)
    if not works(high):
        return None
    low = cursor + step // 2
    while high - low > 1:
        middle = (low + high) // 2
        if works(middle):
            high = middle
        else:
            low = middle
    return high
