"""Which record of a lane goes next, and whose receipt it is."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from safekafka.record import Fields
from safekafka.spool.codec import encode
from safekafka.spool.drain import LaneDrain
from safekafka.spool.journal import Journal
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


def test_rows_dropped_for_a_mended_file_keep_their_receipts(drain: LaneDrain) -> None:
    sent = accept(drain, [fields(n) for n in range(4)])
    drain.take(10, 10_000, 0, lambda record: record[0])
    drain.start_again(["orders"])
    assert drain.ready() is drain.rows
    drain.forget_rows()
    taken = drain.take(10, 10_000, 0, None)
    assert all(receipt is other for receipt, other in zip(taken, sent, strict=True))
