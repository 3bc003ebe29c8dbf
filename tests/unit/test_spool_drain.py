"""Which record of a lane goes next, and whose receipt it is."""

from __future__ import annotations

import contextlib
import sqlite3
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safekafka.errors import SpoolFullError
from safekafka.record import Fields
from safekafka.spool.codec import encode
from safekafka.spool.drain import LaneDrain
from safekafka.spool.journal import FILE, RESERVE, Journal, Loss
from safekafka.spool.spooled import SpooledReceipt


def fields(number: int, topic: str = "orders") -> Fields:
    return topic, b"%d" % number, None, None, -1, 1_000


@pytest.fixture
def drain(tmp_path: Path) -> LaneDrain:
    def restored(drain: LaneDrain, seq: int, fields: Fields, size: int) -> SpooledReceipt:
        receipt = SpooledReceipt(None, fields)  # type: ignore[arg-type]
        receipt._drain, receipt._seq, receipt._size = drain, seq, size
        return receipt

    sender: Any = SimpleNamespace(delivery=SimpleNamespace(restored=restored))
    lane: Any = SimpleNamespace(journal=Journal(tmp_path, "process"), id="lane", folder=tmp_path)
    return LaneDrain(sender, lane, own=True)


def accept(drain: LaneDrain, records: list[Fields]) -> list[SpooledReceipt]:
    rows = [encode(record) for record in records]
    first = drain.journal.append(rows)
    receipts = [SpooledReceipt(None, record) for record in records]  # type: ignore[arg-type]
    drain.accepted(first, receipts, rows)
    return receipts


def test_a_record_read_twice_is_still_that_of_its_receipt(drain: LaneDrain) -> None:
    """Passed over for its topic, read from the disk, and read again since another topic was free before."""
    sent = accept(drain, [fields(n, "blocked" if n % 2 else "stuck") for n in range(8)])
    assert drain.take(10, 10_000, 0, lambda record: record[0]) == []  # all wait
    drain.start_again(["blocked"])
    taken = drain.take(1, 10_000, 0, lambda record: "stuck" if record[0] == "stuck" else None)
    assert [receipt is sent[1] for receipt in taken] == [True]
    assert drain.rows
    drain.start_again(["stuck"])
    taken = drain.take(10, 10_000, 0, None)
    assert all(receipt is other for receipt, other in zip(taken, [sent[0], *sent[2:]], strict=True))


def test_rows_that_are_read_again_keep_their_receipts(drain: LaneDrain) -> None:
    sent = accept(drain, [fields(n) for n in range(4)])
    drain.take(10, 10_000, 0, lambda record: record[0])
    drain.start_again(["orders"])
    assert drain.ready() is drain.rows
    drain.forget_rows()
    taken = drain.take(10, 10_000, 0, None)
    assert all(receipt is other for receipt, other in zip(taken, sent, strict=True))


def test_P1_a_record_that_is_damaged_on_the_disk_and_whole_in_memory_is_sent(
    drain: LaneDrain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sent = accept(drain, [fields(n) for n in range(5)])
    assert drain.take(10, 10_000, 0, lambda record: record[0]) == []  # all wait, on the disk
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute("UPDATE record SET crc = crc + 1 WHERE seq IN (2, 4)")
    nobody_holds = sent.pop(3)
    nobody_holds_it = weakref.ref(nobody_holds)
    del nobody_holds
    assert nobody_holds_it() is None
    drain.start_again(["orders"])
    taken = drain.take(10, 10_000, 0, None)
    assert [id(receipt) for receipt in taken] == [id(receipt) for receipt in sent]
    assert "record_damaged" in caplog.text
    assert "seqs='2, 4' records=2 still_in_memory=1" in caplog.text
    assert (drain.journal.count, drain.journal.last_seq) == (4, 5)
    drain.done = {receipt._seq: receipt._size for receipt in taken}
    drain.acknowledge()
    assert (drain.journal.count, drain.journal.bytes) == (0, 0)
    drain.journal.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT seq FROM damaged").fetchall() == [(2,), (4,)]
        assert file.execute("SELECT last_seq, gone FROM state").fetchone() == (5, 5)


def test_P1_what_a_mended_file_lacks_and_memory_has_is_written_anew(drain: LaneDrain, tmp_path: Path) -> None:
    sent = accept(drain, [fields(n, "orders" if n < 3 else "blocked") for n in range(5)])
    assert len(drain.take(2, 10_000, 0, None)) == 2  # open
    fresh, passed_over = sent[2], sent[3:]
    drain.fresh.clear()
    for receipt in passed_over:
        drain.receipts.add(receipt)
    drain.fresh.append(fresh)
    journal = drain.journal
    journal.mend()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute("DELETE FROM record WHERE seq <> 5")
        file.execute("UPDATE state SET gone = 4")
    journal.losses[-1] = Loss("it is damaged", 4, None)
    drain.put_back()
    stored, damaged = journal.read(1, 5, 100, 1 << 20)
    assert [encode(record) for _, record, _ in stored] == [encode(receipt.fields()) for receipt in sent]
    assert not damaged
    assert journal.count == 5
    assert journal.losses == [Loss("it is damaged; 4 were still in memory, and are kept", 0, None)]
    journal.close()
    assert Journal(tmp_path, "process").losses == []


def test_P1_a_disk_that_spoils_a_record_again_and_again_holds_up_no_others(drain: LaneDrain, tmp_path: Path) -> None:
    sent = accept(drain, [fields(n) for n in range(5)])
    for _ in range(3):
        assert drain.take(10, 10_000, 0, lambda record: record[0]) == []  # all wait, on the disk
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
            file.execute("UPDATE record SET crc = crc + 1 WHERE seq = 2")
        drain.start_again(["orders"])
    taken = drain.take(10, 10_000, 0, None)
    assert [id(receipt) for receipt in taken] == [id(receipt) for receipt in (sent[0], *sent[2:])]
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file:
        assert file.execute("SELECT seq FROM damaged").fetchall() == [(2,)]


def test_P5_what_memory_has_finds_room_in_a_mended_file_on_a_full_disk(
    drain: LaneDrain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept(drain, [fields(n) for n in range(3)])
    journal = drain.journal
    with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as file, file:
        file.execute("DELETE FROM record")
        file.execute("UPDATE state SET gone = 3")
    assert (tmp_path / RESERVE).stat().st_size > 0
    put_in = journal._put_in

    def full(rows: Mapping[int, bytes]) -> int:
        if (tmp_path / RESERVE).stat().st_size:
            raise sqlite3.OperationalError("database or disk is full")
        return put_in(rows)

    monkeypatch.setattr(journal, "_put_in", full)
    drain.mended = True
    with pytest.raises(SpoolFullError):
        drain.put_back()
    assert drain.mended
    drain.put_back()
    assert not drain.mended
    assert journal.count == 3
