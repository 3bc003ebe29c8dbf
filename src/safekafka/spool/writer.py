"""Group commit: threads that append at the same time share one write to the disk.

Who appends puts an entry into the line, and takes the lock if it is free. Who has the lock commits everything that
stands in the line, the entries of others as well, and wakes them; the others wait, and of those that came meanwhile he
wakes the first, which commits for all of these. So a lone caller commits his record himself, without another thread,
and of many callers one writes while the others line up. Entries are numbered, announced and committed in the order of
the line.

Threads: `append` on any; `append_later` on an event loop, whose entries a thread of ours commits (made by the first of
them; it also waits for room in their place, so tasks are let in in the order they came). `_lock` is held over the
commit, with the journal's locks inside it; nothing of the user's runs under it. It is reentrant, since only of such a
lock it can be told whether this thread has it: for a signal handler that sends on top of an append is refused.
`_starting` is held while the thread for tasks is started, with no other lock inside it.

A signal handler may raise in the middle of a commit. What it was at is in `_committing` until it is told, so the next
one with the lock sees from the journal whether it was made, and tells those who wait or puts their entries back.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Generic, TypeVar

from safekafka.errors import SafeKafkaError, SpoolFullError
from safekafka.producer.receipt import awaken
from safekafka.spool.crashpoint import passing
from safekafka.spool.journal import Journal

R = TypeVar("R")
_COMMIT_ROWS = 10_000  # bounds the time that one commit takes
_AGAIN_SECONDS = 0.25  # between two attempts on a full disk


class _Entry(Generic[R]):
    __slots__ = ("awaiting", "deadline", "done", "error", "receipts", "rows", "signal")

    def __init__(self, receipts: Sequence[R], rows: Sequence[bytes]) -> None:
        self.receipts = receipts
        self.rows = rows
        self.done = False
        self.error: Exception | None = None
        self.signal = threading.Lock()  # a bell: held while silent
        self.signal.acquire()
        self.awaiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None
        self.deadline = 0.0


class Writer(Generic[R]):
    """`accepted(first, receipts, rows)` is called under the lock for each entry, in order. `wait_for_room(deadline)`
    returns at once while there is room, raises `SpoolFullError` at the deadline, or the reason for which nothing is
    accepted any more."""

    def __init__(
        self,
        journal: Journal,
        accepted: Callable[[int, Sequence[R], Sequence[bytes]], None],
        wait_for_room: Callable[[float], None],
        refusal: Callable[[], SafeKafkaError | None],
    ) -> None:
        self._journal = journal
        self._accepted = accepted
        self._wait_for_room = wait_for_room
        self._refusal = refusal
        self._lock = threading.RLock()
        self._line: deque[_Entry[R]] = deque()
        self._committing: tuple[int, list[_Entry[R]]] | None = None
        self._later: deque[_Entry[R]] = deque()  # of tasks, not yet in the line
        self._full = False  # the disk was, for tasks that wait until it is not
        self._bell = threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None

    def append(self, receipts: Sequence[R], rows: Sequence[bytes], deadline: float) -> None:
        """On the disk when it returns. Raises `SpoolFullError` at the deadline (monotonic), and whatever else keeps the
        disk from it; then nothing of it was accepted."""
        while True:
            self._wait_for_room(deadline)
            entry = _Entry(receipts, rows)
            self._line.append(entry)
            try:
                while not entry.done:
                    if self._lock.acquire(blocking=False):
                        self._commit()
                        self._lock.release()
                        self._wake_first()
                    else:
                        entry.signal.acquire()
            except BaseException:  # a signal handler's, at any point
                if not self.interrupted():
                    self._lock.acquire()  # else a commit that is at it would take out the next one instead
                self._look_at_broken_off()  # what is on the disk is told all the same
                with contextlib.suppress(ValueError):  # it was taken by a commit
                    self._line.remove(entry)
                self._lock.release()
                self._wake_first()
                raise
            if entry.error is None:
                return
            if not isinstance(entry.error, SpoolFullError) or monotonic() + _AGAIN_SECONDS > deadline:
                raise entry.error
            threading.Event().wait(_AGAIN_SECONDS)  # the disk is full: there may be room soon

    async def append_later(self, receipts: Sequence[R], rows: Sequence[bytes], deadline: float) -> None:
        """`append` for an event loop. Cancelled while it waits for room: definitely not accepted; while it is being
        written: accepted."""
        loop = asyncio.get_running_loop()
        entry = _Entry(receipts, rows)
        entry.deadline = deadline
        done: asyncio.Future[None] = loop.create_future()
        entry.awaiting = loop, done
        self._later.append(entry)
        try:
            with self._starting:  # of several event loops one does it
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="safekafka-spool-writer", daemon=True)
                    thread.start()
                    self._thread = thread
            if self._refusal() is not None and self._is_withdrawn(entry):  # `end` may have been through already
                self._tell([entry], self._refusal())
            self._bell.set()
            await done
        except BaseException:
            self._is_withdrawn(entry)
            raise
        if entry.error is not None:
            raise entry.error

    def _is_withdrawn(self, entry: _Entry[R]) -> bool:
        """False where it is being written, or told already."""
        try:
            self._later.remove(entry)
        except ValueError:
            return False
        return True

    def interrupted(self) -> bool:
        """Whether this thread is inside `append()` already: a signal handler runs on top of it."""
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]

    def end(self, close: Callable[[], None]) -> None:
        """Nothing is accepted any more (`refusal` says so): who stands in the line is told, then `close` is called with
        the lock held."""
        with self._lock:
            self._look_at_broken_off()
            self._tell([*_taken_from(self._line), *_taken_from(self._later)], self._refusal())
            close()
        self._wake_first()
        self._bell.set()

    # ---- inside

    def _wake_first(self) -> None:
        """Of those who came while the lock was held: they found it so, and wait."""
        with contextlib.suppress(IndexError):
            _ring(self._line[0])

    def _commit(self) -> None:
        """Everything in the line. Under the lock."""
        self._look_at_broken_off()
        refusal = self._refusal()
        entries: list[_Entry[R]] = []
        self._committing = self._journal.last_seq, entries
        count = 0
        while self._line and count < _COMMIT_ROWS:
            entry = self._line[0]
            entries.append(entry)  # first: a signal handler may raise between any two steps
            self._line.popleft()
            count += len(entry.rows)
        if not entries:
            self._committing = None
            return
        if refusal is not None:  # closed while we waited; the journal may be closed too
            self._tell(entries, refusal)
            self._committing = None
            return
        try:
            rows = entries[0].rows if len(entries) == 1 else [row for entry in entries for row in entry.rows]
            first = self._journal.append(rows)
        except (SafeKafkaError, OSError) as error:
            self._tell(self._without_patient(entries) if isinstance(error, SpoolFullError) else entries, error)
            self._committing = None
            return
        self._announce(first, entries)
        passing("after_commit_before_return")

    def _without_patient(self, entries: Sequence[_Entry[R]]) -> list[_Entry[R]]:
        """On a full disk, those of tasks are tried again until their deadlines, before any that came later."""
        until = monotonic() + _AGAIN_SECONDS
        patient = [entry for entry in entries if entry.awaiting is not None and entry.deadline >= until]
        if not patient:
            return list(entries)
        self._full = True
        self._later.extendleft(reversed([*patient, *self._taken_of_tasks()]))
        for entry in patient:
            if entry.awaiting is not None and entry.awaiting[1].cancelled():  # meanwhile: not found in `_later` then
                self._is_withdrawn(entry)
        patiently = set(patient)
        return [entry for entry in entries if entry not in patiently]

    def _taken_of_tasks(self) -> list[_Entry[R]]:
        """Out of the line, where they are only while the thread for tasks has the lock."""
        taken = [entry for entry in list(self._line) if entry.awaiting is not None]
        for entry in taken:
            self._line.remove(entry)
        return taken

    def _announce(self, first: int, entries: list[_Entry[R]]) -> None:
        for entry in entries:
            self._accepted(first, entry.receipts, entry.rows)
            first += len(entry.rows)
        self._tell(entries, None)
        self._committing = None

    def _look_at_broken_off(self) -> None:
        if self._committing is None:
            return
        before, entries = self._committing
        if self._journal.last_seq > before:
            self._announce(before + 1, entries)
        else:
            for entry in reversed(entries):
                if not entry.done and entry not in self._line:
                    self._line.appendleft(entry)
            self._committing = None

    def _tell(self, entries: Sequence[_Entry[R]], error: Exception | None) -> None:
        awaiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for entry in entries:
            entry.error = error
            entry.done = True
            _ring(entry)
            if entry.awaiting is not None:
                loop, done = entry.awaiting
                awaiting.setdefault(loop, []).append(done)
        for loop, futures in awaiting.items():
            awaken(loop, futures)

    def _run(self) -> None:
        """For tasks: in the order they came."""
        try:
            while self._refusal() is None:
                self._bell.wait()
                self._bell.clear()
                while self._later and self._refusal() is None:
                    self._take_in(self._later)
                    if self._full:
                        self._full = False
                        threading.Event().wait(_AGAIN_SECONDS)
        except BaseException as error:  # out of memory, say; the next one starts another thread
            self._thread = None
            with self._lock:
                self._look_at_broken_off()
                left = [*self._taken_of_tasks(), *_taken_from(self._later)]
                self._tell(left, SafeKafkaError(f"the thread that writes to the spool for tasks has died: {error!r}"))
            self._wake_first()
            raise

    def _take_in(self, later: deque[_Entry[R]]) -> None:
        try:
            first = later[0]
        except IndexError:
            return  # cancelled
        try:
            self._wait_for_room(first.deadline)
        except (SafeKafkaError, OSError) as error:
            with contextlib.suppress(ValueError):
                later.remove(first)
            self._tell([first], error)
            return
        with self._lock:
            taken = _taken_from(later)
            self._line.extend(taken)
            while taken and not taken[-1].done and not self._full:  # there may be more than one commit takes
                self._commit()
        self._wake_first()


def _taken_from(entries: deque[_Entry[R]]) -> list[_Entry[R]]:
    """All of them; others may be added, or taken away, meanwhile."""
    taken: list[_Entry[R]] = []
    with contextlib.suppress(IndexError):
        while True:
            taken.append(entries.popleft())
    return taken


def _ring(entry: _Entry[Any]) -> None:
    with contextlib.suppress(RuntimeError):  # it rings already
        entry.signal.release()
