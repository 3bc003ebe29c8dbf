"""Lanes: the sub-folders of a spool, each owned by one process at a time.

`lane-<n>/lock` is held (flock) by the process that writes the lane; the operating system frees it when that process
dies, and a forked child gives its copy up at once. So is its journal's file `high`, in case somebody deletes `lock`.
`lane-<n>/lane.json` says whose records these are: the spool's name,
the bootstrap list they were accepted for, and the cluster's id once it is known. A lane is a slot, used again by
whoever gets its lock; `id` goes into the header `safekafka.id` and is drawn anew for each lane that is made.

Which lane: a starting producer takes over the first orphan (unlocked, with records) that is its equal, as its own, so
that what it sends comes behind what was left; else a free slot, else a new one. Equal means: same spool name, and the
same bootstrap list. Where both know the cluster's id, that decides, but at the start a producer does not know it.
What is not equal is left in peace and reported (`lane_foreign`).

A lane that can't be opened (rights, another format, no `lane.json`) is told (`lane_unusable`), passed over, and tried
again now and then: it may hold up neither a start nor the lanes behind it. Damage that is to be refused refuses the
start, though, whose own lane it would become; found in another's orphan, it is passed over like the rest.

Nothing here is touched by two threads at once: lanes are opened by the constructor, then by the sender thread alone.
`Unusable.problems` may be read by any.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from safekafka.errors import SafeKafkaError, SpoolLockedError, SpoolUnusableError
from safekafka.observe import Event, emit
from safekafka.spool.config import Spool
from safekafka.spool.crashpoint import passing
from safekafka.spool.filesystem import look, mode_of
from safekafka.spool.journal import FILE, Journal, is_open, not_usable, sync_folder

_PREFIX = "lane-"
# `inspect.owner` holds a dead lane's lock for a moment. Taken for its owner, a program that starts then would begin a
# new lane, and overtake what it left in the old one.
_PROBE_SECONDS = 0.05
_AGAIN_SECONDS = 60.0  # an attempt may wait for SQLite's locks, on the delivery thread


class Identity(NamedTuple):
    """Whose records these are."""

    spool: str
    bootstrap: str
    cluster: str | None

    def equals(self, other: Identity) -> bool:
        if self.spool != other.spool:
            return False
        if self.cluster is not None and other.cluster is not None:
            return self.cluster == other.cluster
        return self.bootstrap == other.bootstrap


class Lane:
    """An open lane, its lock held. Made by `own_lane` and `orphans`."""

    def __init__(self, folder: Path, lock: FileLock, spool: Spool, identity: Identity) -> None:
        self.folder = folder
        self._lock = lock
        passing("after_lock_before_open")
        about = _about(folder)
        self.id: str = about["id"] if about else secrets.token_hex(8)
        self.identity = _identity(about) if about else identity
        try:
            if about is None:
                self._write()
            self.journal = Journal(folder, spool.durability, refuse_damage=spool.on_damage == "refuse")
        except BaseException:
            lock.release()
            raise
        for loss in self.journal.losses:
            tell_loss(folder, loss)
        self.journal.losses.clear()

    def belongs_to(self, identity: Identity) -> None:
        """From now on, as far as it is known."""
        if identity != self.identity:
            self.identity = identity
            self.journal.free_bytes()  # raises where the folder was deleted: another's may be in its place
            self._write()

    def learned(self, cluster: str) -> None:
        """The cluster's id. Where the disk is too full to note it, the next start finds it out again."""
        with contextlib.suppress(SpoolUnusableError):
            self.belongs_to(self.identity._replace(cluster=cluster))

    def close(self) -> None:
        try:
            self.journal.close()
        finally:
            self._lock.release()

    def _write(self) -> None:
        """Whole or not at all."""
        spool, bootstrap, cluster = self.identity
        about = {"id": self.id, "spool": spool, "bootstrap": bootstrap, "cluster": cluster}
        new = self.folder / "lane.json.new"
        try:
            with new.open("w") as file:
                json.dump(about, file)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self.folder / "lane.json")
            sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that became read-only refuses this as well
                new.unlink()
            raise not_usable(self.folder, error) from error


class Unusable:
    """Lanes with records that can't be opened. Each is told of once, until it can be opened or has gone."""

    def __init__(self) -> None:
        self._found: dict[Path, tuple[str, float]] = {}  # why, and when it is tried again

    @property
    def problems(self) -> list[str]:
        return [f"the lane {str(folder)!r} can't be opened: {why}" for folder, (why, _) in list(self._found.items())]

    def found(self, folder: Path, error: Exception) -> None:
        if isinstance(error, OSError) and not isinstance(error, SafeKafkaError):
            error = not_usable(folder, error)
        if folder not in self._found:
            emit(Event.LANE_UNUSABLE, lane=str(folder), error=str(error))
        self._found[folder] = str(error), monotonic() + _AGAIN_SECONDS

    def rests(self, folder: Path) -> bool:
        return folder in self._found and monotonic() < self._found[folder][1]

    def well(self, folder: Path) -> None:
        self._found.pop(folder, None)

    def forget_all_but(self, folders: list[Path]) -> None:
        for folder in self._found.keys() - folders:
            del self._found[folder]


def tell_loss(folder: Path, loss: Any) -> None:
    emit(
        Event.SPOOL_RECORDS_LOST,
        lane=str(folder),
        what=loss.what,
        records=loss.records,
        evidence=None if loss.evidence is None else str(loss.evidence),
        remedy="check the disk; the evidence is kept as it was found",
    )


def own_lane(spool: Spool, identity: Identity, unusable: Unusable | None = None) -> Lane:
    """Take over an orphan, else a free slot, else make a new lane."""
    unusable = unusable or Unusable()
    _make_folder(spool.folder)
    if warning := look(spool.folder, spool.durability):
        emit(Event.SPOOL_ON_UNSAFE_DISK, spool=str(spool.folder), warning=warning)
    spare: Lane | None = None
    try:
        for folder in lane_folders(spool.folder):
            try:
                lane = _slot(folder, spool, identity, spare is None)
            except SpoolLockedError:  # its `lock` was deleted, and another process took it just now
                continue
            except OSError as error:  # `SpoolUnusableError` as well; neither damage nor a full disk
                if _may_have_records(folder):
                    unusable.found(folder, error)
                continue
            if lane is None:
                continue
            if lane.journal.count:  # an orphan
                return lane
            if spare is None:
                spare = lane
            else:
                lane.close()
        if spare is None:
            return _new_lane(spool, identity)
        spare.belongs_to(identity._replace(cluster=spare.identity.cluster))
        free, spare = spare, None
        return free
    finally:
        if spare is not None:
            spare.close()


def _slot(folder: Path, spool: Spool, identity: Identity, also_empty: bool) -> Lane | None:
    lock = try_lock(folder)
    if lock is None:
        return None
    try:
        about = _about(folder)
        if about is None and (folder / FILE).exists():
            raise _nobodys(folder)
        if about is not None and not _identity(about).equals(identity):
            if has_records(folder):
                _tell_foreign(folder, identity, _whose(about))
        elif also_empty or has_records(folder):
            held, lock = lock, None
            return Lane(folder, held, spool, identity)
        return None
    finally:
        if lock is not None:
            lock.release()


def orphans(spool: Spool, identity: Identity, unusable: Unusable | None = None) -> Iterator[Lane]:
    """Lanes with records of ours whose owner has died, opened one by one; whoever gets one has to close it."""
    unusable = unusable or Unusable()
    folders = lane_folders(spool.folder)
    unusable.forget_all_but(folders)
    for folder in folders:
        if unusable.rests(folder):
            continue
        try:
            lane = _orphan(folder, spool, identity)
        except (SafeKafkaError, OSError) as error:
            unusable.found(folder, error)
            continue
        unusable.well(folder)
        if lane is not None:
            yield lane


def _orphan(folder: Path, spool: Spool, identity: Identity) -> Lane | None:
    about = _about(folder)
    if not has_records(folder) or (about is not None and not _identity(about).equals(identity)):
        return None
    lock = try_lock(folder, 0.0)  # on the delivery thread, and again soon
    if lock is None:
        return None
    if about is None:
        lock.release()
        raise _nobodys(folder)
    passing("during_adoption")
    return Lane(folder, lock, spool, identity)


def lane_folders(folder: Path) -> list[Path]:
    try:
        mode = mode_of(folder)
        if mode is None or not stat.S_ISDIR(mode):
            return []
        found = [path for path in folder.iterdir() if path.name.startswith(_PREFIX) and path.name[5:].isdigit()]
    except OSError as error:
        raise not_usable(folder, error) from error
    return sorted(found, key=lambda path: int(path.name[5:]))


def try_lock(folder: Path, patience: float = _PROBE_SECONDS) -> FileLock | None:
    """The lane's lock, or None if a living process has it for longer than `patience` seconds."""
    lock = FileLock(folder / "lock", thread_local=False)  # taken by the caller, released by the sender thread
    try:
        lock.acquire(timeout=patience, poll_interval=0.002)
    except Timeout:
        return None
    except OSError as error:
        raise not_usable(folder, error) from error
    if is_open(folder):  # by one whose `lock` was deleted
        lock.release()
        return None
    with contextlib.suppress(OSError):  # only for messages
        (folder / "owner").write_text(str(os.getpid()))
    return lock


def lock_dead(folder: Path) -> FileLock:
    """The lock of a lane that no process uses. Raises `SpoolLockedError`."""
    lock = try_lock(folder)
    if lock is None:
        raise SpoolLockedError(f"{str(folder)!r} is in use by {owner_of(folder)}. Remedy: end that process first.")
    return lock


def owner_of(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return f"process {int((folder / 'owner').read_text() or 0)}"
    return "another process"


def identity_of(folder: Path) -> tuple[str, Identity] | None:
    """The lane's id and whose it is; None if nothing says so."""
    about = _about(folder)
    return None if about is None else (about["id"], _identity(about))


def has_records(folder: Path) -> bool:
    """Without opening the journal where the mark of its orderly end says that it is empty."""
    if mode_of(folder / FILE) is None:
        return False
    left = Journal.left_at_close(folder)
    return left is None or left > 0


def _may_have_records(folder: Path) -> bool:
    try:
        return has_records(folder)
    except OSError:
        return True


def _new_lane(spool: Spool, identity: Identity) -> Lane:
    taken = lane_folders(spool.folder)
    number = int(taken[-1].name[5:]) + 1 if taken else 0
    while True:
        folder = spool.folder / f"{_PREFIX}{number}"
        _make_folder(folder)
        passing("lane_made_before_identity")
        lock = try_lock(folder)
        if lock is not None:
            if _about(folder) is None and not (folder / FILE).exists():
                return Lane(folder, lock, spool, identity)
            lock.release()  # another process was quicker, and has gone again
        number += 1


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        about = json.loads((folder / "lane.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(about, dict) or not isinstance(about.get("cluster", 0), str | None):
        return None
    return about if all(isinstance(about.get(name), str) for name in ("id", "spool", "bootstrap")) else None


def _identity(about: dict[str, Any]) -> Identity:
    return Identity(about["spool"], about["bootstrap"], about["cluster"])


def _whose(about: dict[str, Any]) -> str:
    return f"it is of the spool {about['spool']!r} for {about['bootstrap']} (cluster {about['cluster'] or 'unknown'})"


def _nobodys(folder: Path) -> SpoolUnusableError:
    return SpoolUnusableError(
        f"{str(folder / 'lane.json')!r} is missing or unreadable, and nothing else says whose records these are. "
        "Remedy: put it back from a copy; safekafka spool export shows the records."
    )


def _tell_foreign(folder: Path, identity: Identity, why: str) -> None:
    emit(
        Event.LANE_FOREIGN,
        lane=str(folder),
        why=why,
        ours=f"{identity.spool} for {identity.bootstrap}",
        remedy="start the producer it belongs to, or look into it with: safekafka spool status"
        + ("" if identity.cluster is not None else f". {if_address_was_wrong(folder)}"),
    )


def if_address_was_wrong(folder: Path) -> str:
    """Of a lane that has never met its brokers."""
    return f"If that address was wrong, correct `bootstrap` in {folder / 'lane.json'} while no process has the lane."


def _make_folder(folder: Path) -> None:
    """Create the folder and its parents, and sync each parent: else a power loss could take away the folder with the
    records in it."""
    missing = [folder, *folder.parents]
    try:
        for path in reversed([path for path in missing if not path.exists()]):
            path.mkdir(exist_ok=True)
            sync_folder(path.parent)
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(13, "not a folder that can be written to")
        probe = folder / f".probe-{os.getpid()}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise not_usable(folder, error) from error
