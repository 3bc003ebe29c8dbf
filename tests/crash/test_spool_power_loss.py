"""Power is lost: of what was not synced, anything or nothing is on the disk. Whatever `append()` accepted is there.

SQLite (apsw) runs on a file system of ours that passes everything on to the real one, and notes what was written, cut
and synced since when. At a power loss the folder is built anew as the disk may be: what was synced, and of all else
none, all, some writes, or some of their sectors. It is opened by the `sqlite3` that users have.

A sync that fails is the last that these writes were heard of: the system takes them for written (fsyncgate, B-S02).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import shutil
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest

from safekafka import Spool, SpoolUnusableError
from safekafka.spool import journal as journal_module
from safekafka.spool.codec import encode
from safekafka.spool.journal import Journal
from safekafka.spool.lane import Identity, has_records, own_lane

apsw = pytest.importorskip("apsw")

SEED = 20_262
SECTOR = 512
OURS = Identity("default", "localhost:9092", None)
Survives = Literal["nothing", "everything", "the first", "some", "some sectors"]
SURVIVES: tuple[Survives, ...] = ("nothing", "everything", "the first", "some", "some sectors")


# ---- the disk

_REAL: dict[str, Any] = {
    **{name: getattr(os, name) for name in ("fsync", "pwrite", "unlink", "replace")},
    "_connect": journal_module._connect,
}


class Node:
    """A file, or a folder, whatever its name is now."""

    def __init__(self) -> None:
        self.synced = bytearray()
        self.pending: list[tuple[int, bytes | None]] = []  # writes since then, by offset; None: cut to that size
        self.entries: dict[str, Node] = {}  # of a folder, when it was synced
        self.recorded = False

    def wrote(self, offset: int, data: bytes | None) -> None:
        self.recorded = True
        self.pending.append((offset, data))

    def sync(self) -> None:
        for operation in self.pending:
            _apply(self.synced, *operation)
        self.pending.clear()

    def after_power_loss(self, survives: Survives, chance: random.Random) -> bytes:
        content = bytearray(self.synced)
        count = chance.randrange(len(self.pending) + 1)
        for number, (offset, data) in enumerate(self.pending):
            if survives == "nothing" or (survives == "the first" and number >= count):
                break
            if survives in ("some", "some sectors") and chance.random() < 0.5:
                continue
            if data is None or survives != "some sectors":
                _apply(content, offset, data)
                continue
            start = offset
            while start < offset + len(data):
                end = min((start // SECTOR + 1) * SECTOR, offset + len(data))
                if chance.random() < 0.7:
                    _apply(content, start, data[start - offset : end - offset])
                start = end
        return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    if data is None:
        del content[offset:]
        return
    if len(content) < offset:
        content += bytes(offset - len(content))
    content[offset : offset + len(data)] = data


class Disk:
    """What is beneath `root`, and how much of it a power loss would leave."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._nodes: dict[int, Node] = {}
        self._opened: list[Any] = []
        self.fails: Callable[[str, str], bool] = lambda operation, name: False
        self.watch: Callable[[str], None] = lambda event: None
        for folder, _, names in os.walk(root):  # what is there already is there for good
            for name in names:
                node = self.node(Path(folder, name))
                node.synced[:] = Path(folder, name).read_bytes()
        for folder, _, _ in os.walk(root, topdown=False):
            self.folder_synced(Path(folder))

    def node(self, path: Path) -> Node:
        return self._nodes.setdefault(path.stat().st_ino, Node())

    def gone(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._nodes.pop(path.stat().st_ino, None)  # the inode's number may be used again

    def folder_synced(self, folder: Path) -> None:
        self.node(folder).entries = self._entries(folder)

    def _entries(self, folder: Path) -> dict[str, Node]:
        return {
            path.name: self.node(path)
            for path in folder.iterdir()
            if not path.name.endswith("-shm") and path.name not in ("lock", "owner", "reserve")
        }

    def after_power_loss(self, to: Path, survives: Survives, chance: random.Random) -> Path:
        self._rebuild(self.root, self.node(self.root), to, survives, chance)
        return to

    def _rebuild(self, folder: Path, node: Node, to: Path, survives: Survives, chance: random.Random) -> None:
        to.mkdir()
        now = self._entries(folder)
        for name in sorted({*node.entries, *now}):
            old, new = node.entries.get(name), now.get(name)
            entry = {"nothing": old, "everything": new}.get(survives, chance.choice([old, new]))
            if entry is None:
                continue
            if entry is new and (folder / name).is_dir():
                self._rebuild(folder / name, entry, to / name, survives, chance)
                continue
            if entry is new and not entry.recorded:  # written by plain means
                content = (folder / name).read_bytes()
                entry.pending[:] = [] if content == entry.synced else [(0, None), (0, content)]
            (to / name).write_bytes(entry.after_power_loss(survives, chance))

    # -- who writes

    @contextlib.contextmanager
    def in_use(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Journals run on it meanwhile."""
        vfs = _Vfs(self)
        fsync, pwrite, unlink, replace = (_REAL[name] for name in ("fsync", "pwrite", "unlink", "replace"))

        def recorded_fsync(descriptor: int) -> None:
            fsync(descriptor)
            about = os.fstat(descriptor)
            node = self._nodes.setdefault(about.st_ino, Node())
            self.watch("before a sync")
            if stat.S_ISDIR(about.st_mode):
                node.entries = self._entries(self._path(about.st_ino))
            elif node.recorded:
                node.sync()
            else:
                node.synced[:] = self._path(about.st_ino).read_bytes()
            self.watch("after a sync")

        def recorded_pwrite(descriptor: int, data: bytes, offset: int) -> int:
            written = pwrite(descriptor, data, offset)
            self._nodes.setdefault(os.fstat(descriptor).st_ino, Node()).wrote(offset, data)
            self.watch("after a write")
            return written

        def recorded_unlink(path: Any, **options: Any) -> None:
            self.gone(Path(path))
            unlink(path, **options)

        def recorded_replace(source: Any, target: Any, **options: Any) -> None:
            self.gone(Path(target))
            replace(source, target, **options)

        with monkeypatch.context() as patch:
            for name, function in (
                ("fsync", recorded_fsync),
                ("pwrite", recorded_pwrite),
                ("unlink", recorded_unlink),
                ("replace", recorded_replace),
            ):
                patch.setattr(os, name, function)
            patch.setattr(journal_module, "_connect", lambda path: Connection(path, vfs.name))
            try:
                yield
            finally:
                for connection in _connections.pop(vfs.name, []):
                    connection.close()
                vfs.unregister()

    def now_used_by_another_process(self, folder: Path) -> None:
        """The one that had it was killed: what it has open, and locks, is nobody's any more."""
        for path in list(folder.iterdir()):
            if path.name.endswith("-shm"):
                path.unlink()
                continue
            node = self._nodes.pop(path.stat().st_ino)
            copy = Path(shutil.copyfile(path, folder / "copy"))
            _REAL["replace"](copy, path)
            self._nodes[path.stat().st_ino] = node

    def _path(self, inode: int) -> Path:
        return next(path for path in (self.root, *self.root.rglob("*")) if path.stat().st_ino == inode)


_numbers = itertools.count()
_connections: dict[str, list[Connection]] = {}


class _Vfs(apsw.VFS):  # type: ignore[name-defined, misc]
    def __init__(self, disk: Disk) -> None:
        self.disk, self.name = disk, f"recording-{next(_numbers)}"
        super().__init__(self.name, "")

    def xOpen(self, name: Any, flags: list[int]) -> Any:
        return _File(self.disk, name, flags)

    def xDelete(self, name: str, sync_folder: bool) -> None:
        self.disk.gone(Path(name))
        super().xDelete(name, sync_folder)
        if sync_folder:
            self.disk.folder_synced(Path(name).parent)


class _File(apsw.VFSFile):  # type: ignore[name-defined, misc]
    def __init__(self, disk: Disk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._path = Path(name if isinstance(name, str) else name.filename())
        # SQLite's own file system syncs the folder of a new log with the first sync of it.
        self._new = not self._path.exists() and not self._path.name.endswith(".sqlite3")
        super().__init__("", name, flags)
        self._node = disk.node(self._path)
        self._node.recorded = True

    def _may_fail(self, operation: str) -> None:
        if self._disk.fails(operation, self._path.name):
            if operation == "sync":
                self._node.pending.clear()
            error = apsw.IOError(f"injected: {operation} of {self._path.name}")
            error.extendedresult = apsw.SQLITE_IOERR_FSYNC if operation == "sync" else apsw.SQLITE_IOERR_WRITE
            raise error

    def xWrite(self, data: bytes, offset: int) -> None:
        self._may_fail("write")
        super().xWrite(data, offset)
        self._node.wrote(offset, bytes(data))
        self._disk.watch("after a write")

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._node.wrote(size, None)
        self._disk.watch("after a write")

    def xSync(self, flags: int) -> None:
        self._disk.watch("before a sync")
        self._may_fail("sync")
        super().xSync(flags)
        self._node.sync()
        if self._new:
            self._disk.folder_synced(self._path.parent)
            self._new = False
        self._disk.watch("after a sync")


class Connection:
    """What the journal uses of `sqlite3.Connection`, by apsw."""

    def __init__(self, path: Path, vfs: str) -> None:
        self._checkpoint_pages = 0
        with _as_sqlite3():
            self._inner = apsw.Connection(str(path), vfs=vfs)
            self._inner.set_busy_timeout(10_000)
        _connections.setdefault(vfs, []).append(self)

    def _committed(self, connection: Any, name: str, pages: int) -> int:
        """SQLite's own checkpoint after a commit, which takes no notice of errors. (In apsw an error of a file raises
        even where SQLite takes no notice.)"""
        if pages >= self._checkpoint_pages:
            with contextlib.suppress(apsw.IOError):
                connection.wal_checkpoint(name)
        return int(apsw.SQLITE_OK)

    @property
    def in_transaction(self) -> bool:
        return bool(self._inner.in_transaction)

    def execute(self, statement: str, parameters: Any = ()) -> Cursor:
        if statement.startswith("PRAGMA wal_autocheckpoint"):
            self._checkpoint_pages = int(statement.partition("=")[2])
            self._inner.set_wal_hook(self._committed)
            statement, parameters = "SELECT ?", (self._checkpoint_pages,)
        before = self._inner.total_changes()
        with _as_sqlite3():
            cursor = self._inner.execute(statement, tuple(parameters))
        return Cursor(cursor, self._inner.total_changes() - before)

    def executemany(self, statement: str, many: Any) -> Cursor:
        before = self._inner.total_changes()
        with _as_sqlite3():
            cursor = self._inner.executemany(statement, [tuple(parameters) for parameters in many])
        return Cursor(cursor, self._inner.total_changes() - before)

    def executescript(self, script: str) -> None:
        with _as_sqlite3():
            self._inner.execute(script).fetchall()

    def close(self) -> None:
        with contextlib.suppress(apsw.IOError):  # SQLite takes no notice here either
            self._inner.close()


class Cursor:
    def __init__(self, inner: Any, rowcount: int) -> None:
        self._inner, self.rowcount = inner, rowcount

    def fetchone(self) -> Any:
        with _as_sqlite3():
            return self._inner.fetchone()

    def fetchall(self) -> list[Any]:
        with _as_sqlite3():
            return list(self._inner.fetchall())

    def __iter__(self) -> Iterator[Any]:
        while True:
            row = self.fetchone()
            if row is None:
                return
            yield row

    def close(self) -> None:
        with _as_sqlite3():
            self._inner.close()


@contextlib.contextmanager
def _as_sqlite3() -> Iterator[None]:
    try:
        yield
    except apsw.Error as error:
        code = getattr(error, "extendedresult", 0) or getattr(error, "result", 1)
        kind = {11: sqlite3.DatabaseError, 26: sqlite3.DatabaseError, 19: sqlite3.IntegrityError}
        translated = kind.get(code & 0xFF, sqlite3.OperationalError)(str(error))
        translated.sqlite_errorcode = code
        raise translated from error


# ---- what was promised


class Promises:
    """What a caller of the journal knows. The payload of each record is its own."""

    def __init__(self) -> None:
        self.stored: dict[int, bytes] = {}  # by number, as `append` told
        self.rejected: dict[int, bytes] = {}
        self.may_be_gone: set[bytes] = set()  # deleted, or discarded: a power loss may bring them back
        self.in_doubt: list[list[bytes]] = []  # `append` did not return, or raised: all of it or nothing
        self.highest = 0

    def must_be_there(self) -> set[bytes]:
        return {*self.stored.values(), *self.rejected.values()} - self.may_be_gone


class Machine:
    """A journal in use on a disk, and what was promised by it."""

    def __init__(self, folder: Path, promises: Promises, chance: random.Random) -> None:
        self.folder, self.promises, self.chance = folder, promises, chance
        self.journal = Journal(folder, "disk")

    def step(self) -> None:
        names, weights = zip(*self.WEIGHTS.items(), strict=True)
        getattr(self, self.chance.choices(names, weights)[0])()

    WEIGHTS = {"append": 10, "delete": 6, "reject": 1, "requeue": 1, "discard": 1, "make_room": 2, "reopen": 1}  # noqa: RUF012

    def append(self) -> None:
        promises, size = self.promises, self.chance.choice([10, 10, 300, 300, 3_000, 20_000])
        rows = [payload(self.chance, size) for _ in range(self.chance.choice([1, 1, 1, 2, 5]))]
        promises.in_doubt.append(rows)
        first = self.journal.append(rows)
        promises.in_doubt.pop()
        assert first > promises.highest, "a number was used twice"
        promises.stored.update(enumerate(rows, first))
        promises.highest = first + len(rows) - 1

    def _some(self, among: dict[int, bytes], most: int) -> list[int]:
        seqs = sorted(among)
        if self.chance.random() < 0.7:  # as they are delivered: the oldest
            return seqs[: self.chance.randrange(most)]
        return sorted(self.chance.sample(seqs, min(len(seqs), self.chance.randrange(most))))

    def delete(self) -> None:
        promises = self.promises
        seqs = self._some(promises.stored, 12)
        promises.may_be_gone.update(promises.stored[seq] for seq in seqs)
        self.journal.delete(seqs, sum(len(promises.stored[seq]) for seq in seqs))
        for seq in seqs:
            del promises.stored[seq]

    def reject(self) -> None:
        promises = self.promises
        seqs = self._some(promises.stored, 3)
        self.journal.reject([(seq, len(promises.stored[seq]), "too large") for seq in seqs])
        promises.rejected |= {seq: promises.stored.pop(seq) for seq in seqs}

    def requeue(self) -> None:
        promises = self.promises
        seqs = self._some(promises.rejected, 3)
        self.journal.requeue(seqs)
        promises.stored |= {promises.highest + n: promises.rejected.pop(seq) for n, seq in enumerate(seqs, 1)}
        promises.highest += len(seqs)

    def discard(self) -> None:
        promises = self.promises
        seqs = self._some(promises.rejected, 3)
        promises.may_be_gone.update(promises.rejected[seq] for seq in seqs)
        self.journal.discard(seqs)
        for seq in seqs:
            del promises.rejected[seq]

    def make_room(self) -> None:
        self.journal.give_back_room()

    def deliver_all(self) -> None:
        promises = self.promises
        promises.may_be_gone.update(promises.stored.values())
        self.journal.delete(promises.stored, sum(map(len, promises.stored.values())))
        promises.stored.clear()

    def abandon(self) -> None:
        """Its connections are closed with the file system."""
        self.journal._close_high()

    def reopen(self) -> None:
        if self.chance.random() < 0.5:
            self.deliver_all()
        self.journal.close()
        self.journal = Journal(self.folder, "disk")
        assert self.journal.losses == []


def payload(chance: random.Random, size: int) -> bytes:
    return encode(("orders", chance.randbytes(max(12, size)), None, None, -1, 1))


class Found(NamedTuple):
    records: dict[int, bytes]
    rejected: dict[int, bytes]


def assert_kept(folder: Path, promises: Promises) -> Found:
    """Opened after the power loss, twice, by those who know nothing of what was before."""
    must = promises.must_be_there()
    if must & set(promises.stored.values()):
        assert has_records(folder), "nobody would look into this lane"
    before: Found | None = None
    for _ in range(2):
        journal = Journal(folder, "disk")
        try:
            assert journal.losses == []
            rows, damaged = journal.read(1, journal.last_seq, 1 << 30, 1 << 40)
            assert damaged == []
            found = Found(
                {seq: encode(fields) for seq, fields, _ in rows},
                {one.seq: encode(one.fields) for one in journal.rejected()},
            )
            assert journal.count == len(rows)
            assert journal.bytes == sum(size for *_, size in rows)
            assert journal.last_seq >= promises.highest, "numbers would be used again"
            assert before in (None, found)
            before = found
            assert not journal.is_damaged()
        finally:
            journal.close()
    there = [*found.records.values(), *found.rejected.values()]
    assert must <= set(there), f"{len(must - set(there))} accepted records are lost"
    assert len(there) == len(set(there)), "a record is there twice"
    allowed = must | promises.may_be_gone | {row for rows in promises.in_doubt for row in rows}
    assert set(there) <= allowed
    for rows in promises.in_doubt:
        assert len(set(rows) & set(there)) in (0, len(rows)), "half of a batch is there"
    for seq, data in promises.stored.items():
        assert found.records.get(seq, data) == data or data in found.rejected.values()
    return found


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that is checkpointed often, and a file that gives back room for little."""
    for name, value in (("_LOG_PAGES", 12), ("_LOG_BYTES", 60_000), ("_FREE_PAGES", 6), ("_VACUUM_PAGES", 3)):
        monkeypatch.setattr(journal_module, name, value)
    monkeypatch.setattr(Journal, "_keep_reserve", lambda self: None)  # of no meaning here, and 8 MB


# ---- power is lost


@pytest.mark.timeout(1_800)
@pytest.mark.usefixtures("small")
def test_B_S15_what_append_accepted_is_there_after_a_power_loss_at_any_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int
) -> None:
    losses = accepted = 0
    broken: list[str] = []
    for seed in range(3 * scale):
        chance = random.Random(f"{SEED} {seed}")
        root = tmp_path / f"{seed}-0"
        (root / "lane").mkdir(parents=True)
        promises = Promises()
        for generation in range(3):  # the machine comes back, and loses its power again
            disk = Disk(root)
            survivor = tmp_path / f"{seed}-{generation + 1}"

            def lose_power(
                event: str, disk: Disk = disk, promises: Promises = promises, where: str = f"{seed} {generation}"
            ) -> None:
                nonlocal losses
                if broken or chance.random() > (0.02 if event == "after a write" else 0.25):
                    return
                losses += 1
                survives = chance.choice(SURVIVES)
                with plain(monkeypatch):
                    folder = disk.after_power_loss(tmp_path / f"loss-{losses}", survives, chance)
                    try:
                        assert_kept(folder / "lane", promises)
                    except Exception as error:  # noqa: BLE001 - not to be raised through SQLite
                        broken.append(f"seed {where}, {event}, {survives} survives: {error!r} ({folder})")
                    else:
                        shutil.rmtree(folder)

            with disk.in_use(monkeypatch):
                disk.watch = lose_power
                machine = Machine(root / "lane", promises, chance)
                for _ in range(60):
                    machine.step()
                    assert not broken, broken[0]
                disk.watch = lambda event: None
                disk.after_power_loss(survivor, chance.choice(SURVIVES), chance)
                machine.abandon()
            accepted += promises.highest
            kept = assert_kept(copied(survivor / "lane", tmp_path / "look"), promises)
            shutil.rmtree(tmp_path / "look")
            promises.stored, promises.rejected = kept
            promises.may_be_gone.clear()
            promises.highest = max(promises.highest, *kept.records, *kept.rejected, 0)
            root = survivor
    print(f"{losses} power losses, numbers up to {accepted}")
    assert losses > 100 * scale


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("small")
def test_B_S15_what_append_accepted_is_there_after_a_power_loss_at_every_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short history, with each way that what is not synced may survive at each sync: nothing is left to chance here
    but which of the writes those are."""
    chance, cut = random.Random(f"{SEED} every sync"), random.Random(f"{SEED} cuts")
    steps, losses = HISTORY.split(), 0
    syncs: Counter[str] = Counter()
    broken: list[str] = []
    (tmp_path / "root" / "lane").mkdir(parents=True)
    disk, promises = Disk(tmp_path / "root"), Promises()

    def lose_power(event: str) -> None:
        nonlocal losses
        if event == "after a write" or broken:
            return
        syncs[event] += 1
        for survives in SURVIVES:
            losses += 1
            with plain(monkeypatch):
                folder = disk.after_power_loss(tmp_path / f"loss-{losses}", survives, cut)
                try:
                    assert_kept(folder / "lane", promises)
                except Exception as error:  # noqa: BLE001 - not to be raised through SQLite
                    broken.append(f"{event} {syncs[event]}, {survives} survives: {error!r} ({folder})")
                    return
                shutil.rmtree(folder)

    with disk.in_use(monkeypatch):
        disk.watch = lose_power
        machine = Machine(tmp_path / "root" / "lane", promises, chance)
        for step in steps:
            getattr(machine, step)()
            assert not broken, broken[0]
        disk.watch = lambda event: None
        machine.abandon()
    print(f"{losses} power losses, {dict(syncs)}")
    assert syncs["before a sync"] == syncs["after a sync"] > len(steps), "the history syncs less than it did"


# Every operation, several times; most of them twice in a row, and each behind those that sync and that do not.
HISTORY = """
append append delete append reject append delete make_room append requeue append discard append delete delete append
reject delete reopen append make_room append reject requeue append delete deliver_all append append reject discard
append delete make_room reopen append
"""


@contextlib.contextmanager
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another machine looks at the disk: with the file system and the `sqlite3` that everybody has."""
    with monkeypatch.context() as patch:
        for name, function in _REAL.items():
            patch.setattr(journal_module if name == "_connect" else os, name, function)
        yield


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to))


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("small")
def test_B_S01_a_folder_made_just_now_is_there_after_a_power_loss_with_the_record_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int
) -> None:
    """Two producers, one of which finds the folder made by the other; then both start again."""
    losses = 0
    broken: list[str] = []
    for seed in range(scale):
        chance = random.Random(f"{SEED} folder {seed}")
        root = tmp_path / str(seed)
        root.mkdir()
        disk = Disk(root)
        accepted: set[bytes] = set()
        may_be_there: set[bytes] = set()

        def lose_power(
            event: str, disk: Disk = disk, accepted: set[bytes] = accepted, may: set[bytes] = may_be_there
        ) -> None:
            nonlocal losses
            if broken or (event != "accepted" and chance.random() > (0.1 if event == "after a write" else 0.5)):
                return
            losses += 1
            survives = chance.choice(SURVIVES) if event != "accepted" else "nothing"
            with plain(monkeypatch):
                folder = disk.after_power_loss(tmp_path / f"loss-{losses}", survives, chance)
                try:
                    there: list[bytes] = []
                    lanes = []
                    while not lanes or lanes[-1].journal.count:  # take over all there is
                        lanes.append(own_lane(Spool(folder / "data" / "spool"), OURS))
                        journal = lanes[-1].journal
                        assert journal.losses == []
                        there += [encode(fields) for _, fields, _ in journal.read(1, journal.last_seq, 99, 1 << 20)[0]]
                    for lane in lanes:
                        lane.close()
                    assert accepted <= set(there), "an accepted record is lost"
                    assert set(there) <= accepted | may
                    assert len(there) == len(set(there))
                except Exception as error:  # noqa: BLE001 - not to be raised through SQLite
                    broken.append(f"seed {seed}, {event}, {survives} survives: {error!r} ({folder})")
                else:
                    shutil.rmtree(folder)

        with disk.in_use(monkeypatch):
            disk.watch = lose_power
            lanes = []
            for restarted in (False, False, True, True):
                if restarted:
                    lanes.pop(0).close()
                lanes.append(own_lane(Spool(root / "data" / "spool"), OURS))
                data = payload(chance, 100)
                may_be_there.add(data)
                lanes[-1].journal.append([data])
                accepted.add(data)
                lose_power("accepted")
                assert not broken, broken[0]
            assert len({lane.folder for lane in lanes}) == 2
            disk.watch = lambda event: None
            for lane in lanes:
                lane.close()
    print(f"{losses} power losses")


# ---- the disk refuses


class Faults:
    """The n-th operation of a kind on a file fails, and as many behind it."""

    def __init__(self, operation: str, file: str, nth: int, count: int) -> None:
        self.operation, self.file, self.nth, self.count = operation, file, nth, count
        self.passed = self.failed = 0

    def __call__(self, operation: str, name: str) -> bool:
        if operation != self.operation or not name.endswith(self.file):
            return False
        self.passed += 1
        fails = self.nth <= self.passed < self.nth + self.count
        self.failed += fails
        return fails


@pytest.mark.timeout(900)
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [1, 3, 20], ids=["once", "some times", "for long"])
@pytest.mark.parametrize("file", ["-wal", ".sqlite3"])
@pytest.mark.parametrize("operation", ["sync", "write"])
def test_B_S02_a_refused_record_does_not_count_and_what_is_accepted_later_survives_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: int, operation: str, file: str, count: int
) -> None:
    refused = failed = 0
    for seed in range(10 * scale):
        where = f"seed {seed}"
        chance = random.Random(f"{SEED} refusal {operation} {file} {count} {seed}")
        root = tmp_path / str(seed)
        (root / "lane").mkdir(parents=True)
        disk, promises = Disk(root), Promises()
        with disk.in_use(monkeypatch):
            machine = Machine(root / "lane", promises, chance)
            for _ in range(5):
                machine.append()
            disk.fails = faults = Faults(operation, file, chance.randrange(1, 25), count)
            for _ in range(40):
                before = len(promises.in_doubt)
                try:
                    getattr(machine, chance.choice(["append", "append", "append", "delete", "make_room"]))()
                except SpoolUnusableError:
                    refused += len(promises.in_doubt) > before
                assert_knows_what_it_has(machine, where)
            disk.fails = lambda operation, name: False
            failed += faults.failed
            machine.append()  # it goes on by itself
            assert_knows_what_it_has(machine, where)
            survives: Survives
            for number, survives in enumerate(("nothing", "everything", "some", "some sectors")):
                folder = disk.after_power_loss(tmp_path / f"{seed} {number}", survives, chance)
                with plain(monkeypatch):
                    try:
                        assert_kept(folder / "lane", promises)
                    except AssertionError as error:
                        raise AssertionError(f"{where}, {survives} survives: {error}") from error
                shutil.rmtree(folder)
            killed = copied(root, tmp_path / f"{seed} killed")
            machine.reopen()
            assert_knows_what_it_has(machine, where)
            machine.abandon()
        assert_kept(killed / "lane", promises)
    print(f"{operation} of {file}: {failed} failed, {refused} records refused")
    assert failed >= scale
    assert refused >= (scale if file == "-wal" else 0)


def assert_knows_what_it_has(machine: Machine, where: str) -> None:
    journal, stored = machine.journal, machine.promises.stored
    rows, damaged = journal.read(1, journal.last_seq, 1 << 30, 1 << 40)
    assert {seq: encode(fields) for seq, fields, _ in rows} == stored, where
    assert damaged == [], where
    assert (journal.count, journal.bytes) == (len(stored), sum(map(len, stored.values()))), where
    assert journal.last_seq == machine.promises.highest, where


@pytest.mark.usefixtures("small")
def test_B_S02_a_record_accepted_behind_deletions_that_a_failed_sync_swallowed_is_there_after_a_power_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deletions are not synced. The next `append()` would sync them as well, and fails: the system forgets that they
    were to be written, so the log has a hole where they are. What is synced behind it must not depend on it."""
    monkeypatch.setattr(journal_module, "_LOG_PAGES", 1_000)  # no checkpoint helps
    chance = random.Random(SEED)
    (tmp_path / "root" / "lane").mkdir(parents=True)
    disk, promises = Disk(tmp_path / "root"), Promises()
    with disk.in_use(monkeypatch):
        machine = Machine(tmp_path / "root" / "lane", promises, chance)
        for _ in range(5):
            machine.append()
        machine.journal.delete([1], len(promises.stored[1]))
        promises.may_be_gone.add(promises.stored.pop(1))
        disk.fails = Faults("sync", "-wal", 1, 1)
        with pytest.raises(SpoolUnusableError, match="Remedy"):
            machine.append()
        machine.append()
        folder = disk.after_power_loss(tmp_path / "loss", "nothing", chance)
        machine.abandon()
    assert_kept(folder / "lane", promises)


@pytest.mark.usefixtures("small")
def test_B_S02_a_log_left_by_a_process_that_met_a_failed_sync_is_not_built_upon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, but the process is killed after the failure, and the next one accepts records."""
    monkeypatch.setattr(journal_module, "_LOG_PAGES", 1_000)
    chance = random.Random(SEED)
    (tmp_path / "root" / "lane").mkdir(parents=True)
    disk, promises = Disk(tmp_path / "root"), Promises()
    with disk.in_use(monkeypatch):
        machine = Machine(tmp_path / "root" / "lane", promises, chance)
        for _ in range(5):
            machine.append()
        machine.journal.delete([1], len(promises.stored[1]))
        promises.may_be_gone.add(promises.stored.pop(1))
        disk.fails = Faults("sync", "-wal", 1, 1)
        with pytest.raises(SpoolUnusableError, match="Remedy"):
            machine.append()
        machine.abandon()
        disk.now_used_by_another_process(tmp_path / "root" / "lane")
        machine = Machine(tmp_path / "root" / "lane", promises, chance)
        machine.append()
        folder = disk.after_power_loss(tmp_path / "loss", "nothing", chance)
        machine.abandon()
    assert_kept(folder / "lane", promises)
