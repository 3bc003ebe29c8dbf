"""Group commit: who appends, who commits, and what happens when one of them is broken off."""

from __future__ import annotations

import asyncio
import contextlib
import dis
import queue
import sqlite3
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from safekafka.errors import ClosedError, SafeKafkaError, SpoolFullError, SpoolUnusableError
from safekafka.spool import journal as journal_module
from safekafka.spool import writer as writer_module
from safekafka.spool.journal import Journal
from safekafka.spool.writer import Writer
from tests.processes import wait_until


class Spool:
    """A writer on a real journal, and what it announced."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder, "process")
        self.announced: dict[int, str] = {}
        self.refusal: SafeKafkaError | None = None
        self.writer: Writer[str] = Writer(self.journal, self.accepted, lambda deadline: None, lambda: self.refusal)

        self.taken = 0
        lock = self.writer._lock

        class Counted:
            """The lock, and how often it was taken."""

            def acquire(_, blocking: bool = True) -> bool:  # noqa: N805
                if lock.acquire(blocking):
                    self.taken += 1
                    return True
                return False

            def release(_) -> None:  # noqa: N805
                lock.release()

            def _is_owned(_) -> bool:  # noqa: N805
                return lock._is_owned()  # type: ignore[attr-defined, no-any-return]

            def __enter__(_) -> None:  # noqa: N805
                lock.acquire()

            def __exit__(_, *error: object) -> None:  # noqa: N805
                lock.release()

        self.writer._lock = Counted()  # type: ignore[assignment]

    def accepted(self, first: int, receipts: Sequence[str], rows: Sequence[bytes]) -> None:
        for seq, receipt in enumerate(receipts, first):
            self.announced[seq] = receipt

    def append(self, *names: str) -> None:
        self.writer.append(names, [name.encode() for name in names], time.monotonic() + 10)

    def on_disk(self) -> dict[int, str]:
        rows = sqlite3.connect(self.journal.path).execute("SELECT seq, fields FROM record ORDER BY seq")
        return {seq: data.decode() for seq, data in rows}


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path)


def test_a_lone_caller_commits_by_himself(spool: Spool) -> None:
    before = threading.active_count()
    spool.append("a", "b")
    spool.append("c")
    assert threading.active_count() == before
    assert spool.on_disk() == spool.announced == {1: "a", 2: "b", 3: "c"}


def test_P5_each_of_many_threads_finds_its_records_on_the_disk_in_its_order_and_they_share_commits(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = 0
    append = spool.journal.append

    def counted(rows: Sequence[bytes]) -> int:
        nonlocal commits
        commits += 1
        time.sleep(0.0005)  # a disk's sync, so that others line up behind it
        return append(rows)

    monkeypatch.setattr(spool.journal, "append", counted)

    def send(thread: int) -> None:
        for n in range(50):
            spool.append(f"{thread} {n}")
            assert f"{thread} {n}" in spool.announced.values()

    threads = [threading.Thread(target=send, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    on_disk = spool.on_disk()
    assert on_disk == spool.announced
    assert len(on_disk) == 400
    assert commits < 350
    for thread_number in range(8):
        mine = [name for name in on_disk.values() if name.startswith(f"{thread_number} ")]
        assert mine == [f"{thread_number} {n}" for n in range(50)]


class Breaker:
    """Raises where the n-th signal handler could run in the writer and the journal: after a call, at a function's
    start, at the end of a loop's round."""

    FILES = (writer_module.__file__, journal_module.__file__)
    POINTS = ("CALL", "RESUME", "JUMP_BACKWARD", "JUMP_ABSOLUTE")

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""
        self._last: dict[FrameType, str] = {}

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in self.FILES:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and not self.where:
            last = self._last.get(frame, "")
            self._last[frame] = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            if last.startswith(self.POINTS):
                self.left -= 1
                if self.left == 0:
                    self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                    raise KeyboardInterrupt
        return self


def broken_off(at: int, call: Callable[[], None]) -> str:
    """Where the call was broken off; empty if it has fewer lines."""
    breaker = Breaker(at)
    sys.settrace(breaker)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return breaker.where


def test_an_append_broken_off_anywhere_leaves_the_others_whole(tmp_path: Path) -> None:
    """Of another thread an entry stands in the line meanwhile: it must be written once, and be told."""
    at = 1
    while True:
        folder = tmp_path / str(at)
        folder.mkdir()
        spool = Spool(folder)
        other = threading.Thread(target=spool.append, args=("other",), daemon=True)
        line_up(spool, other)
        taken = spool.taken
        fired = broken_off(at, lambda spool=spool: spool.append("mine"))  # type: ignore[misc]
        if spool.taken == taken:  # we never had the lock; so it is for who had it before, the test, to wake the first
            spool.writer._wake_first()
        other.join(10)
        assert not other.is_alive(), f"the other one hangs, when broken off at {fired}"
        spool.append("next")
        names = list(spool.on_disk().values())
        assert [name for name in names if name != "mine"] == ["other", "next"], fired
        assert names.count("mine") <= 1, fired
        assert spool.announced == spool.on_disk(), fired
        assert (spool.journal.last_seq, spool.journal.count) == (len(names), len(names))
        spool.journal.close()
        if not fired:
            break
        at += 1
    assert at > 60


def line_up(spool: Spool, other: threading.Thread) -> None:
    """Start it so that it finds the lock taken, and waits in the line."""
    with spool.writer._lock:
        other.start()
        while not spool.writer._line:
            time.sleep(0.0001)


def test_B_S02_a_disk_that_refuses_is_told_to_all_who_share_the_commit(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[Exception] = []

    def refuse(rows: Sequence[bytes]) -> int:
        raise SpoolUnusableError("disk I/O error")

    def send() -> None:
        try:
            spool.append("other")
        except SpoolUnusableError as error:
            failed.append(error)

    with monkeypatch.context() as patched:
        patched.setattr(spool.journal, "append", refuse)
        other = threading.Thread(target=send)
        line_up(spool, other)
        with pytest.raises(SpoolUnusableError):
            spool.append("mine")
        other.join(10)
    assert len(failed) == 1
    assert spool.announced == spool.on_disk() == {}
    spool.append("next")
    assert spool.announced == spool.on_disk() == {1: "next"}


def test_a_full_disk_is_tried_again_until_the_deadline(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    append, attempts = spool.journal.append, 0

    def full_at_first(rows: Sequence[bytes]) -> int:
        nonlocal attempts
        attempts += 1
        if attempts < 3:
            raise SpoolFullError("no room on the disk")
        return append(rows)

    monkeypatch.setattr(writer_module, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(spool.journal, "append", full_at_first)
    spool.append("a")
    assert attempts == 3
    attempts = -1_000_000
    with pytest.raises(SpoolFullError, match="no room"):
        spool.writer.append(["b"], [b"b"], time.monotonic() + 0.05)
    assert spool.on_disk() == spool.announced == {1: "a"}


def test_nobody_is_left_waiting_at_the_end(spool: Spool) -> None:
    refused: list[Exception] = []

    def send() -> None:
        try:
            spool.append("late")
        except ClosedError as error:
            refused.append(error)

    other = threading.Thread(target=send)
    line_up(spool, other)
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)
    other.join(10)
    assert len(refused) == 1
    with pytest.raises(ClosedError):
        spool.append("later")
    assert spool.announced == {}


def test_tasks_are_written_in_the_order_of_their_calls(spool: Spool) -> None:
    async def main() -> None:
        deadline = time.monotonic() + 10
        calls = (spool.writer.append_later([str(n)], [str(n).encode()], deadline) for n in range(200))
        await asyncio.gather(*calls)

    asyncio.run(main())
    assert list(spool.on_disk().values()) == [str(n) for n in range(200)]
    assert spool.announced == spool.on_disk()
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)


def later(spool: Spool, *names: str, seconds: float = 10) -> list[Exception | None]:
    """As many tasks, in this order, and how each ended."""

    async def one(name: str) -> None:
        await spool.writer.append_later([name], [name.encode()], time.monotonic() + seconds)

    async def all_of_them() -> list[Any]:
        return await asyncio.wait_for(asyncio.gather(*map(one, names), return_exceptions=True), 30)

    return asyncio.run(all_of_them())


def test_more_tasks_than_one_commit_takes_leave_none_waiting(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "_COMMIT_ROWS", 10)
    names = [str(n) for n in range(35)]
    assert later(spool, *names) == [None] * 35
    assert list(spool.on_disk().values()) == names
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)


def test_tasks_that_wait_for_a_full_disk_keep_their_order_before_those_that_come_later(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, attempts = spool.journal.append, 0
    names = [str(n) for n in range(25)]

    async def main() -> None:
        nonlocal attempts
        loop = asyncio.get_running_loop()
        tasks: list[asyncio.Task[None]] = []

        def add(name: str) -> None:
            tasks.append(loop.create_task(spool.writer.append_later([name], [name.encode()], time.monotonic() + 10)))

        def full_at_first(rows: Sequence[bytes]) -> int:
            nonlocal attempts
            attempts += 1
            if attempts == 1:
                loop.call_soon_threadsafe(add, "late")
                wait_until(lambda: len(spool.writer._later) > 0, 10, "it comes meanwhile")
            if attempts < 4:
                raise SpoolFullError("no room on the disk")
            return append(rows)

        monkeypatch.setattr(spool.journal, "append", full_at_first)
        for name in names:
            add(name)
        while len(tasks) < 26:
            await asyncio.gather(*tasks)
        await tasks[-1]

    monkeypatch.setattr(writer_module, "_COMMIT_ROWS", 10)
    monkeypatch.setattr(writer_module, "_AGAIN_SECONDS", 0.01)
    asyncio.run(main())
    assert list(spool.on_disk().values()) == [*names, "late"]
    attempts = -1_000_000
    (told,) = later(spool, "never", seconds=0.05)
    assert isinstance(told, SpoolFullError)
    assert spool.announced == spool.on_disk()
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)


def test_a_task_cancelled_while_its_write_is_refused_is_not_written_later(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = spool.journal.append
    refused, cancelled = threading.Event(), threading.Event()

    def full(rows: Sequence[bytes]) -> int:
        if refused.is_set():
            return append(rows)
        refused.set()
        assert cancelled.wait(10)
        raise SpoolFullError("no room on the disk")

    monkeypatch.setattr(writer_module, "_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(spool.journal, "append", full)

    async def main() -> None:
        task = asyncio.create_task(spool.writer.append_later(["a"], [b"a"], time.monotonic() + 10))
        await asyncio.to_thread(refused.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        cancelled.set()
        await spool.writer.append_later(["b"], [b"b"], time.monotonic() + 10)

    asyncio.run(main())
    assert list(spool.on_disk().values()) == ["b"]
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)


def test_a_task_that_waits_for_a_full_disk_is_told_of_the_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(rows: Sequence[bytes]) -> int:
        ending.start()
        monkeypatch.setattr(spool.journal, "append", always_full)
        raise SpoolFullError("no room on the disk")

    def always_full(rows: Sequence[bytes]) -> int:
        raise SpoolFullError("no room on the disk")

    def end() -> None:
        spool.refusal = ClosedError("closed")
        spool.writer.end(spool.journal.close)

    ending = threading.Thread(target=end)
    monkeypatch.setattr(spool.journal, "append", full)
    (told,) = later(spool, "a", seconds=3_600)
    assert isinstance(told, ClosedError)
    (told,) = later(spool, "b", seconds=3_600)
    assert isinstance(told, ClosedError)
    ending.join(10)


def test_a_thread_that_can_not_be_started_is_told_and_the_next_task_starts_one(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        (told,) = later(spool, "a")
    assert isinstance(told, RuntimeError)
    assert later(spool, "b") == [None]
    assert spool.on_disk() == spool.announced == {1: "b"}
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> queue.SimpleQueue[type[BaseException] | None]:
    """What threads die of, when they do."""
    told: queue.SimpleQueue[type[BaseException] | None] = queue.SimpleQueue()
    monkeypatch.setattr(threading, "excepthook", lambda about: told.put(about.exc_type))
    return told


def test_a_thread_for_tasks_that_dies_leaves_no_other_waiting(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, dead: queue.SimpleQueue[type[BaseException] | None]
) -> None:
    append = spool.journal.append
    other = threading.Thread(target=spool.append, args=("other",), daemon=True)

    def no_memory(rows: Sequence[bytes]) -> int:
        monkeypatch.setattr(spool.journal, "append", append)
        other.start()
        wait_until(lambda: len(spool.writer._line) > 0, 10, "in the line")
        raise MemoryError

    monkeypatch.setattr(spool.journal, "append", no_memory)
    (told,) = later(spool, "a")
    assert isinstance(told, SafeKafkaError)
    other.join(10)
    assert not other.is_alive()
    assert dead.get(timeout=10) is MemoryError
    assert spool.on_disk() == spool.announced == {1: "other"}


def test_a_task_whose_record_was_accepted_while_the_end_began_is_told_so(tmp_path: Path) -> None:
    journal, accepted = Journal(tmp_path, "process"), threading.Event()

    def refusal() -> SafeKafkaError | None:
        if threading.current_thread() is threading.main_thread():
            assert accepted.wait(10)
            return ClosedError("closed")
        return None

    writer: Writer[str] = Writer(journal, lambda *_: accepted.set(), lambda deadline: None, refusal)
    ring, loop_asks = writer._bell.set, threading.Thread(target=writer._run, daemon=True)
    writer._thread = loop_asks
    loop_asks.start()
    later_line = writer._later

    class Line(deque[Any]):
        def append(self, entry: Any) -> None:
            super().append(entry)
            ring()

    writer._later = Line(later_line)
    asyncio.run(asyncio.wait_for(writer.append_later(["a"], [b"a"], time.monotonic() + 10), 10))
    assert accepted.is_set()


def test_a_thread_that_dies_is_told_to_all_tasks_and_the_next_one_starts_another(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, dead: queue.SimpleQueue[type[BaseException] | None]
) -> None:
    def no_memory(rows: Sequence[bytes]) -> int:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(spool.journal, "append", no_memory)
        told = later(spool, "a", "b")
    assert [type(error) for error in told] == [SafeKafkaError] * 2
    assert dead.get(timeout=10) is MemoryError
    assert later(spool, "c") == [None]
    assert spool.on_disk() == spool.announced == {1: "c"}
    spool.refusal = ClosedError("closed")
    spool.writer.end(spool.journal.close)


def test_a_signal_handler_that_raises_in_a_waiting_thread_takes_no_other_out_of_the_line(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that takes the entries out is in the middle of that."""
    broken_off, raised = threading.Event(), threading.Event()

    class Signal:
        def acquire(self) -> None:
            assert broken_off.wait(10)
            raise KeyboardInterrupt

        def release(self) -> None: ...

    class Entry(writer_module._Entry[str]):
        def __init__(self, receipts: Sequence[str], rows: Sequence[bytes]) -> None:
            super().__init__(receipts, rows)
            if receipts[0] == "broken off":
                self.signal = Signal()  # type: ignore[assignment]

    class Line(deque[Any]):
        def popleft(self) -> Any:
            if self[0].receipts[0] == "broken off":
                broken_off.set()
                raised.wait(0.3)  # which it does not, before we are through
            return super().popleft()

    def broken() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            spool.append("broken off")
        raised.set()

    monkeypatch.setattr(writer_module, "_Entry", Entry)
    spool.writer._line = Line()
    threads = [threading.Thread(target=broken), threading.Thread(target=spool.append, args=("other",), daemon=True)]
    with spool.writer._lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(spool.writer._line) <= number:
                time.sleep(0.0001)
        spool.writer._commit()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert "other" in spool.on_disk().values()
    assert spool.announced == spool.on_disk()
