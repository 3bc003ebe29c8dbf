"""How the commands show what they found in a spool."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from safekafka.cli.shown import age, note, one_line, printable, size_of, time_of, whole

if TYPE_CHECKING:
    from safekafka.cli.spool.looks import Look
    from safekafka.record import Fields
    from safekafka.spool.inspect import LaneStatus
    from safekafka.spool.journal import RejectedRecord

_KEY_CHARACTERS = 40
COUNTED = ("records", "bytes", "rejected", "damaged")


def note_unreadable(looks: list[Look]) -> None:
    for look in looks:
        if look.problem is not None:
            note(f"{look.lane.folder.name} can't be read: {one_line(look.problem)}")


def number_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def status_row(lane: LaneStatus) -> tuple[str, ...]:
    oldest = "-" if lane.oldest_at is None else age(time.time() - lane.oldest_at)
    whose = [text or "unknown" for text in (lane.spool, lane.cluster, lane.bootstrap)]
    counted = [f"{getattr(lane, name):,}" for name in COUNTED]
    return lane.folder.name, *counted, oldest, lane.owner or "nobody", *whose


def status_json(look: Look) -> dict[str, Any]:
    lane, problem = look
    number = number_of(lane.folder)
    if problem is not None:
        return {"lane": number, "owner": lane.owner, "problem": problem}
    paths = {"folder": str(lane.folder), "evidence": [str(path) for path in lane.evidence]}
    return {"lane": number, **lane._asdict(), **paths}


def list_row(folder: Path, seq: int, fields: Fields, size: int) -> tuple[str, ...]:
    key = "-" if fields[2] is None else printable(fields[2])
    cut = key if len(key) <= _KEY_CHARACTERS else key[: _KEY_CHARACTERS - 1] + "…"
    sizes = size_of(fields[1]), f"{size:,}"
    return folder.name, str(seq), time_of(fields[5]), fields[0], partition_of(fields), *sizes, cut


def tell_record(folder: Path, seq: int, fields: Fields, rejected: RejectedRecord | None) -> None:
    topic, value, key, headers, _, timestamp = fields
    typer.echo(f"lane:      {folder.name}\nseq:       {seq}\ntopic:     {topic}\npartition: {partition_of(fields)}")
    typer.echo(f"time:      {time_of(timestamp)}")
    if rejected is not None:
        typer.echo(f"rejected:  {time_of(rejected.at)} {one_line(rejected.reason)}")
    for name, content in headers or []:
        typer.echo(f"header:    {printable(name.encode())} = {whole(content)}")
    typer.echo(f"key:       {whole(key)}\nvalue:     {whole(value)}")


def record_json(folder: Path, seq: int, fields: Fields, rejected: RejectedRecord | None, **more: Any) -> dict[str, Any]:
    why = {} if rejected is None else {"reason": rejected.reason, "rejected_at": rejected.at}
    partition = None if fields[4] < 0 else fields[4]
    return {
        "lane": number_of(folder),
        "seq": seq,
        "topic": fields[0],
        "partition": partition,
        "timestamp": fields[5],
        **why,
        **more,
    }


def payload_json(fields: Fields, shown: Callable[[bytes | str | None], Any]) -> dict[str, Any]:
    _, value, key, headers, _, _ = fields
    pairs = None if headers is None else [[name, shown(content)] for name, content in headers]
    return {"key": shown(key), "value": shown(value), "headers": pairs}


def partition_of(fields: Fields) -> str:
    return "-" if fields[4] < 0 else str(fields[4])


def of_cluster(lane: LaneStatus) -> str:
    return "" if lane.cluster is None else f" (cluster {lane.cluster})"
