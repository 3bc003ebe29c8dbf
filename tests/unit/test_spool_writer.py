"""Group commit: who appends, who commits, and what happens when one of them is broken off."""

from __future__ import annotations

import asyncio
import dis
import sqlite3
import sys
import threading
import time
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
