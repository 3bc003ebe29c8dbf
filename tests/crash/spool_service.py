"""A service whose worker processes (`tests/programs/spool_work.py`) share a spool: started, killed, and asked what they
accepted. `spool_judge.py` compares that with what is in Kafka.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil

from safekafka.spool.inspect import rejected_in
from safekafka.spool.lane import identity_of, lane_folders
from safekafka.testing import MockCluster
from tests.processes import PROGRAMS, wait_until

JOURNAL = "journal.sqlite3"
KILLED = -signal.SIGKILL


class Call(NamedTuple):
    """Of `send()`, or of `send_many()` with the records from `first` to `last`."""

    first: int
    last: int


class Ledger:
    """Read as it grows."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._position = 0
        self._open: dict[Call, None] = {}
        self._ok: list[Call] = []
        self._accepted = 0

    def _read(self) -> None:
        if not self.file.exists():
            return
        with self.file.open("rb") as file:
            file.seek(self._position)
            lines, newline, _ = file.read().rpartition(b"\n")
        self._position += len(lines) + len(newline)
        for kind, first, last in map(bytes.split, lines.splitlines()):
            call = Call(int(first), int(last))
            if kind == b"try":
                self._open[call] = None
            else:
                del self._open[call]
                self._ok.append(call)
                self._accepted += call.last - call.first + 1

    def count(self) -> int:
        """Accepted records."""
        self._read()
        return self._accepted

    def accepted(self) -> list[int]:
        self._read()
        return [number for first, last in self._ok for number in range(first, last + 1)]

    def broken_off(self) -> list[Call]:
        """Calls that did not return: their records were neither accepted nor refused."""
        self._read()
        return list(self._open)


class Worker:
    def __init__(self, process: subprocess.Popen[bytes], name: str, ledger: Ledger, log: Path, spool: Path) -> None:
        self.process = process
        self.name = name
        self.ledger = ledger
        self._log = log
        self._spool = spool
        self._before = ledger.count()

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def sent(self) -> int:
        """Accepted in this life."""
        return self.ledger.count() - self._before

    def wait_ready(self) -> None:
        self.wait(lambda: "ready\n" in self.output, "it is ready")

    def wait_sent(self, count: int, seconds: float = 60) -> None:
        self.wait(lambda: self.sent() >= count, f"{count} records are accepted", seconds)

    def wait_told(self, event: str) -> None:
        self.wait(lambda: event in self.output, f"it tells {event}")

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = 30) -> None:
        """For what it does; fails when it ends before."""

        def there() -> bool:
            assert condition() or self.alive, f"ended before {what}: {self.output}"
            return condition()

        wait_until(there, seconds, lambda: f"{what}: {self.output}")

    def ended(self, seconds: float = 60) -> int:
        """The exit status; that of a signal is negative."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it hangs: {self.output}") from None

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def lanes(self) -> list[Path]:
        """Those whose journal it has open: its own, and those that it drains for dead processes."""
        try:
            files = {file.path for file in psutil.Process(self.process.pid).open_files()}
        except psutil.NoSuchProcess:
            return []
        return [lane for lane in lane_folders(self._spool) if str(lane / JOURNAL) in files]

    def locked_last(self) -> list[Path]:
        """Lanes that it had, or only looked into, and that nobody has taken since."""
        return [lane for lane in lane_folders(self._spool) if owner_of(lane) == self.process.pid]


class Service:
    """Folders, workers, and their kills. `left` counts the kills (and cuts) that found a record, by its id, in a
    journal."""

    def __init__(self, servers: str, topic: str, folder: Path, *, spool_name: str = "default") -> None:
        self.servers = servers
        self.topic = topic
        self.spool = folder / "spool"
        self.spool_name = spool_name
        self.kills = 0
        self.cuts = 0
        self.left: Counter[str] = Counter()
        self.most_left = 0  # by one kill
        self._folder = folder
        self._lives = 0
        self.ledgers: dict[str, Ledger] = {}
        folder.mkdir(exist_ok=True)

    @contextlib.contextmanager
    def worker(self, name: str, *options: object, crash: str | None = None) -> Iterator[Worker]:
        """A process of `spool_work.py`; killed at the end of the block if it still runs. `crash`: the point at which it
        kills itself."""
        self._lives += 1
        ledger = self.ledgers.setdefault(name, Ledger(self._folder / f"ledger-{name}"))
        log = self._folder / f"output-{self._lives}-{name}"
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        environment.pop("SAFEKAFKA_CRASH_POINT", None)
        if crash is not None:
            environment["SAFEKAFKA_CRASH_POINT"] = crash
        arguments = (
            *(PROGRAMS / "spool_work.py", self.servers, self.topic, self.spool, ledger.file, name),
            *("--spool-name", self.spool_name, *options),
        )
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        worker = Worker(process, name, ledger, log, self.spool)
        try:
            yield worker
        finally:
            if worker.alive:
                process.kill()
            process.wait(30)

    def kill(self, *workers: Worker, beside: Sequence[Worker] = ()) -> None:
        """Those beside stand still meanwhile: none may take a lane over before its rows are counted."""
        for other in beside:
            other.process.send_signal(signal.SIGSTOP)
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            self.wait_crashed(worker)
        for other in beside:
            other.process.send_signal(signal.SIGCONT)

    def wait_crashed(self, worker: Worker, seconds: float = 60) -> None:
        """Where we have not killed it, it was itself: nobody else sends that signal."""
        assert worker.ended(seconds) == KILLED, worker.output
        self.note_kill(worker)

    def note_kill(self, worker: Worker) -> None:
        """To be called before another process can take its lanes over."""
        self.kills += 1
        self._count_left(worker)

    def cut_off(self, brokers: MockCluster, broker: int | None, *workers: Worker) -> None:
        """The broker (None: all) goes down while the workers run: what was written and not answered is sent again. They
        stand still while their rows are counted."""
        for worker in workers:
            worker.process.send_signal(signal.SIGSTOP)
        for worker in workers:
            self._count_left(worker)
        brokers.set_broker_down(broker)
        for worker in workers:
            worker.process.send_signal(signal.SIGCONT)
        self.cuts += bool(workers)

    def _count_left(self, worker: Worker) -> None:
        for lane in worker.locked_last():
            found = left_in(lane)
            self.left.update(found)
            self.most_left = max(self.most_left, len(found))

    def drain(self, name: str = "last", *options: object, count: int = 20) -> str:
        """A worker that sends a little, and ends when no lane has any record left. Returns its output."""
        with self.worker(name, "--count", count, "--stay", "--adopt", 0.3, *options) as worker:
            worker.wait_sent(count)
            worker.wait(lambda: not any(map(count_in, lane_folders(self.spool))), "all lanes are empty", 120)
            worker.terminate()
            assert worker.ended() == 0, worker.output
            return worker.output

    def outputs(self) -> str:
        return "\n".join(log.read_text() for log in sorted(self._folder.glob("output-*")))

    def rejected(self) -> list[tuple[str, int]]:
        return [named(record.fields[1]) for record in rejected_in(self.spool, self.spool_name)]


def owner_of(lane: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        return int((lane / "owner").read_text())
    return 0


def is_locked(lane: Path) -> bool:
    with (lane / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def count_in(lane: Path) -> int:
    """Records in the journal of a lane that may be in use."""
    if not (lane / JOURNAL).exists():
        return 0
    with contextlib.closing(sqlite3.connect(f"{(lane / JOURNAL).as_uri()}?mode=ro", uri=True)) as file:
        try:
            return int(file.execute("SELECT count(*) FROM record").fetchone()[0])
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):  # it is just being made
                raise
            return 0


def left_in(lane: Path) -> list[str]:
    """The ids of the records in the journal of a dead process, read from a copy: the next process must find what was
    left, and not what our reading made of it."""
    about = identity_of(lane)
    with tempfile.TemporaryDirectory() as scratch:
        for name in (JOURNAL, f"{JOURNAL}-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(lane / name, Path(scratch) / name)
        if about is None or not (Path(scratch) / JOURNAL).exists():
            return []
        with contextlib.closing(sqlite3.connect(Path(scratch) / JOURNAL)) as file:
            try:
                return [f"{about[0]}-{seq}" for (seq,) in file.execute("SELECT seq FROM record ORDER BY seq")]
            except sqlite3.DatabaseError as error:
                # Killed before the tables were made, or the test has damaged the file.
                if "no such table" not in str(error) and "malformed" not in str(error):
                    raise
                return []


def named(value: bytes | str | None) -> tuple[str, int]:
    """Who sent it, and the how manieth it was."""
    assert isinstance(value, bytes)
    name, number, *_ = value.split()
    return name.decode(), int(number)
