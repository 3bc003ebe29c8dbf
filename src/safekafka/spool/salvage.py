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
from safekafka.spool.journal import FILE, Connect, Loss, is_corrupt, sync_folder

_MENDED = f"{FILE}.mended"
_PORTION = 1_000
_TABLES = {"record": 3, "rejected": 5, "damaged": 4}


def finish_interrupted(folder: Path) -> None:
    mended, journal = folder / _MENDED, folder / FILE
    if not mended.exists():
        return
    if journal.exists():
        mended.unlink()
    else:
        mended.replace(journal)
        sync_folder(folder)


def salvage(folder: Path, last_seq: int, connect: Connect, make_tables: Callable[[Any], None]) -> Loss:
    """Raises `sqlite3.Error` where nothing at all can be read. `last_seq`: the highest number known."""
    journal, mended = folder / FILE, folder / _MENDED
    mended.unlink(missing_ok=True)
    unreadable: list[tuple[int, int]] = []
    with contextlib.closing(connect(journal)) as old, contextlib.closing(connect(mended)) as new:
        new.execute("PRAGMA auto_vacuum=INCREMENTAL")
        new.execute("PRAGMA synchronous=FULL")
        new.execute("BEGIN IMMEDIATE")
        make_tables(new)
        with contextlib.suppress(sqlite3.Error):
            last_seq = max(last_seq, old.execute("SELECT last_seq FROM state").fetchone()[0])
        for table, columns in _TABLES.items():
            marks = ", ".join("?" * columns)
            for rows in _readable(old, table, last_seq, unreadable):
                new.executemany(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)
            passing("during_salvage")
        new.execute(
            "UPDATE state SET last_seq = max(?, (SELECT coalesce(max(seq), 0) FROM record)), gone = max(?, (SELECT"
            " coalesce(max(seq), 0) FROM record)) - (SELECT count(*) FROM record)",
            (last_seq, last_seq),
        )
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
    most = sum(last - first + 1 for first, last in unreadable)
    return Loss(
        f"{FILE} is damaged; at most {most} records can't be read, of those numbered {ranges}"
        if unreadable
        else f"{FILE} is damaged; all its records were read",
        most,
        evidence,
    )


def _readable(
    old: Any, table: str, last_seq: int, unreadable: list[tuple[int, int]]
) -> Iterator[list[tuple[Any, ...]]]:
    """All rows that can be reached, in portions; around what can't, a way is felt step by step."""
    cursor = 0
    while True:
        rows, broke = _portion(old, table, cursor)
        if rows:
            cursor = rows[-1][0] + 1
            yield rows
        if not broke:
            if len(rows) < _PORTION:
                return
            continue
        beyond = _next_readable(old, table, cursor, last_seq)
        if table == "record":
            unreadable.append((cursor, last_seq if beyond is None else beyond - 1))
        if beyond is None:
            return
        cursor = beyond


def _portion(old: Any, table: str, cursor: int) -> tuple[list[tuple[Any, ...]], bool]:
    rows: list[tuple[Any, ...]] = []
    try:
        for row in old.execute(f"SELECT * FROM {table} WHERE seq >= ? ORDER BY seq LIMIT {_PORTION}", (cursor,)):
            rows.append(row)
    except sqlite3.DatabaseError as error:
        if not is_corrupt(error):
            raise
        return rows, True
    return rows, False


def _next_readable(old: Any, table: str, cursor: int, last_seq: int) -> int | None:
    """The lowest number from which on reading works again, found by doubling steps and then halves."""

    def works(seq: int) -> bool:
        try:
            old.execute(f"SELECT seq FROM {table} WHERE seq >= ? ORDER BY seq LIMIT 1", (seq,)).fetchone()
            return True
        except sqlite3.DatabaseError as error:
            if not is_corrupt(error):
                raise
            return False

    step = 1
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
