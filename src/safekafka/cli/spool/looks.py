"""What the commands read of a spool's folder, in use or not."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TextIO

from safekafka.cli.shown import as_base64, note
from safekafka.cli.spool.shown import number_of, payload_json, record_json
from safekafka.errors import SafeKafkaError

if TYPE_CHECKING:
    from safekafka.record import Fields
    from safekafka.spool.inspect import LaneStatus
    from safekafka.spool.journal import RejectedRecord


class Look(NamedTuple):
    lane: LaneStatus
    problem: str | None  # why it can't be read; its figures are 0 then


def look_at(path: Path, lane: int | None) -> list[Look]:
    return [_look(folder) for folder in _lanes(path, lane)]


def _look(folder: Path) -> Look:
    from safekafka.spool.inspect import LaneStatus, LaneView, owner
    from safekafka.spool.lane import identity_of

    who = None
    try:
        who = owner(folder)
        with LaneView(folder) as view:
            return Look(view.status(who), None)
    except (SafeKafkaError, sqlite3.Error, OSError) as error:
        lane_id, whose = identity_of(folder) or (None, None)
        spool, bootstrap, cluster = whose or (None, None, None)
        evidence = tuple(sorted(folder.glob("damaged-*")))
        return Look(LaneStatus(folder, lane_id, spool, bootstrap, cluster, who, 0, 0, 0, 0, None, evidence), str(error))


def lanes_of(path: Path, number: int | None) -> list[Path]:
    """Those with something to read."""
    from safekafka.spool.journal import FILE

    readable = []
    for folder in _lanes(path, number):
        if (folder / FILE).exists():
            readable.append(folder)
        else:
            note(f"{folder.name} has lost its {FILE}: see safekafka spool status.")
    return readable


def _lanes(path: Path, number: int | None) -> list[Path]:
    from safekafka.spool.inspect import lanes

    found = lanes(path)
    chosen = [folder for folder in found if number is None or number_of(folder) == number]
    if not chosen:
        raise SafeKafkaError(f"{str(path)!r} has no lane {number}, but {', '.join(folder.name for folder in found)}.")
    return chosen


def found_in(folder: Path, seq: int) -> Iterator[tuple[Path, Fields, RejectedRecord | None]]:
    from safekafka.spool.inspect import LaneView

    with LaneView(folder) as view:
        for stored in view.records(1, seq):
            if stored.seq == seq:
                yield folder, stored.fields, None
        for one in view.rejected():
            if one.seq == seq:
                yield folder, one.fields, one


def export_to(folders: list[Path], of_rejected: bool, file: TextIO) -> tuple[int, list[str]]:
    """How many were written, and what could not be read."""
    from safekafka.spool.inspect import LaneView
    from safekafka.spool.journal import shown
    from safekafka.spool.lane import identity_of

    exported, unread = 0, []
    for folder in folders:
        about = identity_of(folder)
        lane_id = about[0] if about else None
        with LaneView(folder) as view:
            expected, found = view.status(None).records, 0
            records: Iterator[tuple[int, Fields, RejectedRecord | None]] = (
                ((one.seq, one.fields, one) for one in view.rejected())
                if of_rejected
                else ((stored.seq, stored.fields, None) for stored in view.records())
            )
            for seq, fields, rejection in records:
                found += 1
                more = {"id": lane_id and f"{lane_id}-{seq}", **payload_json(fields, as_base64)}
                file.write(json.dumps(record_json(folder, seq, fields, rejection, **more)) + "\n")
            exported += found
            if not of_rejected and found < expected:  # fewer: sent meanwhile by a living process, or damaged
                result = view.verify()
                if not result.ok:
                    unread.append(f"{folder.name}: damaged {shown(result.bad) or 'none'}, missing {result.missing}")
    return exported, unread


@contextlib.contextmanager
def new_file(path: Path | None) -> Iterator[TextIO]:
    """stdout, or a file that is there in whole and on the disk at the end, or not at all: what is exported may be
    discarded next."""
    if path is None:
        yield sys.stdout
        return
    from safekafka.spool.journal import sync_folder

    try:
        file = path.open("x", encoding="utf-8")
    except FileExistsError as error:
        raise SafeKafkaError(f"{str(path)!r} exists. Remedy: remove it, or name another file.") from error
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.absolute().parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
