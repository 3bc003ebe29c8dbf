"""A look into a spool's lanes without owning them: read only, beside a living process as well as after its death.

A lane is opened by SQLite in read-only mode; each call is a short transaction of its own, so it holds nobody up.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from safekafka.errors import SpoolUnusableError
from safekafka.record import Fields
from safekafka.spool.codec import checksum, decode
from safekafka.spool.filesystem import mode_of
from safekafka.spool.journal import FILE, Journal, RejectedRecord
from safekafka.spool.lane import identity_of, lane_folders, owner_of, try_lock

if TYPE_CHECKING:
    from typing_extensions import Self


_PORTION = 500


class StoredRecord(NamedTuple):
    seq: int
    fields: Fields
    size: int


class LaneStatus(NamedTuple):
    """`at` times are in s since the epoch."""

    folder: Path
    id: str | None
    spool: str | None
    bootstrap: str | None
    cluster: str | None
    owner: str | None  # None: no living process has it
    records: int
    bytes: int
    rejected: int
    damaged: int
    oldest_at: float | None
    evidence: tuple[Path, ...]  # files kept of damage


class Verification(NamedTuple):
    records: int
    bad: tuple[int, ...]  # sequence numbers whose checksum does not match
    missing: int  # records that must be there by the journal's own count
    problems: tuple[str, ...]  # what SQLite says of the file

    @property
    def ok(self) -> bool:
        return not self.bad and not self.missing and not self.problems


class LaneView:
    """Raises `SpoolUnusableError` where there is no journal to look into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / FILE
        if not path.exists():
            raise SpoolUnusableError(
                f"{str(folder)!r} has no {FILE}; records up to number {Journal.highest(folder)} were in it. Remedy: "
                "put it back from a copy. Without it the next start of the program tells the loss and goes on."
            )
        self._connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, isolation_level=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def status(self, owner: str | None) -> LaneStatus:
        about = identity_of(self.folder)
        whose = about[1] if about else None
        count, size = self._row("SELECT count(*), coalesce(sum(length(fields)), 0) FROM record")
        oldest = next(self.records(1), None)
        return LaneStatus(
            self.folder,
            about[0] if about else None,
            whose.spool if whose else None,
            whose.bootstrap if whose else None,
            whose.cluster if whose else None,
            owner,
            count,
            size,
            self._row("SELECT count(*) FROM rejected")[0],
            self._row("SELECT count(*) FROM damaged")[0],
            None if oldest is None else oldest.fields[5] / 1000,
            tuple(sorted(self.folder.glob("damaged-*"))),
        )

    def records(self, limit: int = -1, first: int = 0) -> Iterator[StoredRecord]:
        """By ascending number; damaged ones are left out. Read in portions: the log of a living process can't be taken
        into its file while somebody reads."""
        while limit:
            portion = _PORTION if limit < 0 else min(limit, _PORTION)
            rows = self._connection.execute(
                "SELECT seq, fields, crc FROM record WHERE seq >= ? ORDER BY seq LIMIT ?", (first, portion)
            ).fetchall()
            for seq, data, crc in rows:
                if type(data) is bytes and checksum(seq, data) == crc:
                    yield StoredRecord(seq, decode(data), len(data))
            if len(rows) < portion:
                return
            first = rows[-1][0] + 1
            limit -= portion if limit > 0 else 0

    def rejected(self) -> list[RejectedRecord]:
        """By ascending number; damaged ones are left out."""
        rows = self._connection.execute("SELECT seq, fields, crc, reason, at FROM rejected ORDER BY seq")
        return [
            RejectedRecord(seq, decode(data), reason, at)
            for seq, data, crc, reason, at in rows
            if type(data) is bytes and checksum(seq, data) == crc
        ]

    def verify(self) -> Verification:
        """Reads everything. On a living lane the figures are those of one moment."""
        high = Journal.highest(self.folder)  # before the transaction: it is written behind each commit
        self._connection.execute("BEGIN")
        try:
            problems = [row[0] for row in self._connection.execute("PRAGMA integrity_check(20)") if row[0] != "ok"]
            found, bad = 0, []
            for seq, data, crc in self._connection.execute("SELECT seq, fields, crc FROM record ORDER BY seq"):
                found += 1
                if type(data) is not bytes or checksum(seq, data) != crc:
                    bad.append(seq)
            for seq, data, crc in self._connection.execute("SELECT seq, fields, crc FROM rejected ORDER BY seq"):
                if type(data) is not bytes or checksum(seq, data) != crc:
                    bad.append(seq)
            last_seq, gone = self._row("SELECT last_seq, gone FROM state")
            last_seq = max(last_seq, high, self._row("SELECT coalesce(max(seq), 0) FROM record")[0])
            return Verification(found, tuple(sorted(bad)), max(0, last_seq - gone - found), tuple(problems))
        except sqlite3.DatabaseError as error:
            return Verification(0, (), 0, (str(error),))
        finally:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("COMMIT")

    def _row(self, query: str) -> tuple[int, ...]:
        row: tuple[int, ...] = self._connection.execute(query).fetchone()
        return row


def lanes(folder: Path) -> list[Path]:
    """The lanes of a spool that have a journal, or had one. Raises `SpoolUnusableError` if there is none."""
    found = [lane for lane in lane_folders(folder) if _has_file(lane) or Journal.highest(lane)]
    if not found:
        raise SpoolUnusableError(f"{str(folder)!r} is no spool: it has no lane-<n>/{FILE}. Remedy: check the path.")
    return found


def _has_file(lane: Path) -> bool:
    try:
        return mode_of(lane / FILE) is not None
    except OSError:  # no rights: whoever looks into it is told
        return True


def owner(folder: Path) -> str | None:
    """Who has the lane; None if nobody does."""
    lock = try_lock(folder)
    if lock is None:
        return owner_of(folder)
    lock.release()
    return None


def rejected_in(folder: Path, spool: str) -> list[RejectedRecord]:
    """Of all lanes of the spool by that name, oldest first."""
    found: list[RejectedRecord] = []
    for lane in lane_folders(folder):
        about = identity_of(lane)
        if about is not None and about[1].spool == spool and (lane / FILE).exists():
            try:
                with LaneView(lane) as view:
                    found += view.rejected()
            except sqlite3.Error as error:
                raise SpoolUnusableError(f"the rejected records in {str(lane)!r} can't be read: {error}") from error
    return sorted(found, key=lambda one: (one.at, one.seq))
