"""One lane's way to Kafka: which of its records goes next, which are open, done, refused, or passed over for now.

Records come from memory (`fresh`, filled by those who append) while the sender keeps up, else from the disk. A gap in
`fresh` is read from the disk: nothing but the numbers is trusted. What was passed over is remembered by the number of
its first; `start_again` goes back there, and reading leaves out what is open or done.

Threads: the delivery thread, all but `accepted`, which runs under the writer's lock. The two share `fresh`,
`announced` and `receipts`, of which each step is atomic, and `announced` is the last that is set.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

from safekafka.errors import DeliveryError
from safekafka.observe import Event, emit
from safekafka.record import Fields
from safekafka.spool.codec import encode
from safekafka.spool.crashpoint import passing
from safekafka.spool.journal import Row, shown
from safekafka.spool.lane import Lane

if TYPE_CHECKING:
    from safekafka.spool.sender import Sender
    from safekafka.spool.spooled import SpooledReceipt

# A topic that refuses records, or one of its partitions that is stuck (None: where no key decides)
Group: TypeAlias = "str | tuple[str, int | None]"

_READ_BYTES = 4 << 20
_READ_RECORDS = 1_000
_CHANGE_RECORDS, _CHANGE_BYTES = 5_000, 1 << 20  # in one transaction
_FRESH_BYTES = 16 << 20
_FRESH_RECORDS = 20_000


class _Ref(weakref.ref["SpooledReceipt"]):
    __slots__ = ("seq",)
    seq: int


class _Receipts:
    """Receipts of records that are only on the disk, by number: weak, so a program that keeps none pays no memory in an
    outage. As `weakref.WeakValueDictionary`, at a third of its cost. Each step is atomic."""

    def __init__(self) -> None:
        refs: dict[int, _Ref] = {}
        self._refs = refs

        def forget(ref: _Ref) -> None:
            if refs.get(ref.seq) is ref:
                del refs[ref.seq]

        self._forget = forget

    def __len__(self) -> int:
        return len(self._refs)

    def add(self, receipt: SpooledReceipt) -> None:
        ref = _Ref(receipt, self._forget)
        ref.seq = receipt._seq
        self._refs[ref.seq] = ref

    def get(self, seq: int) -> SpooledReceipt | None:
        ref = self._refs.get(seq)
        return None if ref is None else ref()

    def pop(self, seq: int) -> SpooledReceipt | None:
        ref = self._refs.pop(seq, None)
        return None if ref is None else ref()

    def all(self) -> list[SpooledReceipt]:
        return [receipt for ref in list(self._refs.values()) if (receipt := ref()) is not None]


class LaneDrain:
    """One lane's way to Kafka."""

    def __init__(self, sender: Sender, lane: Lane, *, own: bool) -> None:
        self.sender = sender
        self.lane = lane
        self.journal = lane.journal
        self.id = lane.id.encode()
        self.own = own
        self.inherited = lane.journal.last_seq  # numbers up to here are those of earlier processes
        self.cursor = 1  # the next number to hand over
        self.announced = lane.journal.last_seq  # read up to here: what comes behind may not have its receipt yet
        self.rows: deque[SpooledReceipt] = deque()  # read from the disk
        self.fresh: deque[SpooledReceipt] = deque()  # from memory; filled by those who append, under the writer's lock
        self.fresh_in = self.fresh_out = 0  # bytes; the one is the appenders', the other ours
        self.open: dict[int, SpooledReceipt] = {}  # with the client, or held back on its way
        self.open_bytes = 0
        self.done: dict[int, int] = {}  # Kafka has them; number and size, not yet deleted
        # Kafka can never take them; the disk has not moved them yet. With what the receipt is told, and the reason.
        self.rejecting: dict[int, tuple[SpooledReceipt, DeliveryError, str]] = {}
        self.skipped: dict[Group, int] = {}  # where to start again for each
        self.mended = False  # the file may lack what memory has
        self._put_back = 0  # of that
        self._rewritten: set[int] = set()
        self.settled = 0  # `settled_below`, for those who wait
        self.receipts = _Receipts()

    @property
    def settled_below(self) -> int:
        """Every number below is delivered, rejected or set aside."""
        lowest = [self.cursor, *self.skipped.values()]
        for some in (self.open, self.rejecting, self.done):
            if some:
                lowest.append(min(some))
        return min(lowest)

    def accepted(self, first: int, receipts: Sequence[SpooledReceipt], rows: Sequence[bytes]) -> None:
        """They are in the journal. By those who append, under the writer's lock."""
        room = len(self.fresh) < _FRESH_RECORDS and self.fresh_in - self.fresh_out < _FRESH_BYTES
        for seq, (receipt, row) in enumerate(zip(receipts, rows, strict=True), first):
            receipt._seq = seq
            receipt._size = size = len(row)
            if room:
                self.fresh_in += size
                self.fresh.append(receipt)
            else:
                self.receipts.add(receipt)
        self.announced = first + len(receipts) - 1

    def ready(self) -> deque[SpooledReceipt] | None:
        """The line whose first is the record to hand over next."""
        rows, fresh = self.rows, self.fresh
        while True:
            cursor = self.cursor
            while rows and rows[0]._seq < cursor:
                rows.popleft()
            if rows:
                return rows
            while fresh and fresh[0]._seq < cursor:
                self.fresh_out += fresh.popleft()._size
            if fresh and fresh[0]._seq == cursor:
                return fresh
            announced = self.announced  # before `fresh`, which gets what is announced first
            last = fresh[0]._seq - 1 if fresh else announced
            if cursor > last:
                return None
            if not self._read(last):
                self.cursor = last + 1

    def take(
        self, count: int, size: int, alone: int, wait_with: Callable[[Fields], Group | None] | None
    ) -> list[SpooledReceipt]:
        """The next records, at most so many and so large, or one that is larger than that, but at most `alone`; they
        count as open. Those that have to wait are passed over, and count."""
        line = self.ready()
        taken: list[SpooledReceipt] = []
        if line is None:
            return taken
        in_order = line is self.fresh  # what is missing between two of them is on the disk
        cursor = self.cursor
        while line and count:
            count -= 1
            receipt = line[0]
            seq = receipt._seq
            if in_order and seq != cursor:
                break
            group = None if wait_with is None else wait_with(receipt.fields())
            if group is None:
                size -= receipt._size
                if size < 0 and (taken or (self.open and receipt._size > alone)):
                    self.sender.full = True
                    break
                self.open[seq] = receipt
                self.open_bytes += receipt._size
                taken.append(receipt)
            else:
                self.skipped[group] = min(seq, self.skipped.get(group, seq))  # passed over for another reason before
                self.receipts.add(receipt)
            self.cursor = cursor = seq + 1
            line.popleft()
            if in_order:
                self.fresh_out += receipt._size
        return taken

    def refused(self, receipt: SpooledReceipt, failure: DeliveryError, reason: str) -> None:
        """For good."""
        if self.open.pop(receipt._seq, None) is not None:
            self.open_bytes -= receipt._size
        self.rejecting[receipt._seq] = receipt, failure, reason

    def start_again(self, groups: Iterable[Group]) -> None:
        seqs = [self.skipped.pop(group) for group in groups]
        if seqs and min(seqs) < self.cursor:
            self.cursor = min(seqs)
            self.forget_rows()

    def forget_rows(self) -> None:
        """They will be read again, for the receipts that their senders have."""
        while self.rows:
            self.receipts.add(self.rows.popleft())

    def _read(self, last: int) -> bool:
        """Rows from the disk, except those that are on their way or done. False if there are none up to `last`."""
        stored = self.read(self.cursor, last, _READ_RECORDS)
        open_, done, rejecting = self.open, self.done, self.rejecting
        known = self.receipts if len(self.receipts) else None
        restored = self.sender.delivery.restored
        for seq, fields, size in stored:
            if seq not in open_ and seq not in done and seq not in rejecting:
                receipt = known.pop(seq) if known is not None else None
                self.rows.append(restored(self, seq, fields, size) if receipt is None else receipt)
        if stored and not self.rows:
            self.cursor = stored[-1][0] + 1
        return bool(stored)

    def read(self, first: int, last: int, limit: int) -> list[Row]:
        """From the disk. What is damaged there is put aside; of that, what memory still has is written anew."""
        while True:
            stored, damaged = self.journal.read(first, last, limit, _READ_BYTES)
            if not damaged:
                return stored
            known = {seq: receipt for seq in damaged if (receipt := self._in_memory(seq)) is not None}
            whole = {seq: encode(receipt.fields()) for seq, receipt in known.items() if seq not in self._rewritten}
            self.journal.set_aside(damaged, whole)
            self._rewritten.update(whole)  # once: the disk may spoil whatever it is given
            emit(
                Event.RECORD_DAMAGED,
                lane=str(self.lane.folder),
                seqs=shown(damaged),
                records=len(damaged),
                still_in_memory=len(whole),
            )

    def _in_memory(self, seq: int) -> SpooledReceipt | None:
        """Of a record that is not done, and was not read from the disk."""
        if seq in self.rejecting:
            return self.rejecting[seq][0]
        return self.open.get(seq) or self.receipts.get(seq)

    def put_back(self) -> None:
        """Into the mended file, what it lacks of what memory has."""
        refused = [receipt for receipt, _, _ in self.rejecting.values()]
        some = *self.open.values(), *refused, *self.rows, *list(self.fresh), *self.receipts.all()
        whole = {receipt._seq: receipt for receipt in some if not receipt.done()}
        for seqs, _ in _portions({seq: receipt._size for seq, receipt in whole.items()}):
            self._put_back += self.journal.put_back({seq: encode(whole[seq].fields()) for seq in seqs})
        losses, count = self.journal.losses, self._put_back
        if count and losses and losses[-1].records is not None:
            what = f"{losses[-1].what}; {count} were still in memory, and are kept"
            losses[-1] = losses[-1]._replace(what=what, records=max(0, losses[-1].records - count))
        self.mended, self._put_back = False, 0

    def acknowledge(self) -> None:
        """Delete what Kafka has, move aside what it refused."""
        if self.done:
            passing("after_deliver_before_ack")
            for seqs, size in _portions(self.done):
                self.journal.delete(seqs, size)
                for seq in seqs:
                    del self.done[seq]
        if self.rejecting:
            rejected = list(self.rejecting.values())
            self.journal.reject([(receipt._seq, receipt._size, reason) for receipt, _, reason in rejected])
            self.rejecting.clear()
            self.sender.delivery.tell_rejected(rejected)


def _portions(sizes: Mapping[int, int]) -> Iterator[tuple[list[int], int]]:
    """Of numbers, with the sum of their sizes: each takes little of the write-ahead log, which a full disk may not
    have."""
    seqs: list[int] = []
    size = 0
    for seq in sorted(sizes):
        seqs.append(seq)
        size += sizes[seq]
        if size >= _CHANGE_BYTES or len(seqs) >= _CHANGE_RECORDS:
            yield seqs, size
            seqs, size = [], 0
    if seqs:
        yield seqs, size
