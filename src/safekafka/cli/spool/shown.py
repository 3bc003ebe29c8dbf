"""How the commands show what they found: tables, lines, JSON, and text that does nothing to a terminal."""

from __future__ import annotations

import base64
import contextlib
import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from safekafka.cli.spool.looks import Look
    from safekafka.record import Fields
    from safekafka.spool.inspect import LaneStatus
    from safekafka.spool.journal import RejectedRecord

WRONG, IN_USE = 1, 3  # exit statuses; 0 is fine, 2 typer's own for a command line that it can't read
_KEY_CHARACTERS = 40
COUNTED = ("records", "bytes", "rejected", "damaged")


def note(text: str) -> None:
    typer.echo(text, err=True)


def note_unreadable(looks: list[Look]) -> None:
    for look in looks:
        if look.problem is not None:
            note(f"{look.lane.folder.name} can't be read: {one_line(look.problem)}")


def tell_json(value: dict[str, Any]) -> None:
    typer.echo(json.dumps(value))


def tell_table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A line each and never cut, so that it can be searched; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    numeric = [all(not cell.strip("-,0123456789") for cell in column) for column in zip(*rows, strict=True)]
    for row in (head, *rows):
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        typer.echo("  ".join(cells).rstrip())


def number_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def status_row(lane: LaneStatus) -> tuple[str, ...]:
    oldest = "-" if lane.oldest_at is None else _age(time.time() - lane.oldest_at)
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
    key = "-" if fields[2] is None else _printable(fields[2])
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
        typer.echo(f"header:    {_printable(name.encode())} = {_whole(content)}")
    typer.echo(f"key:       {_whole(key)}\nvalue:     {_whole(value)}")


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


def as_base64(data: bytes | str | None) -> str | None:
    return None if data is None else base64.b64encode(_bytes(data)).decode()


def shown_json(data: bytes | str | None) -> dict[str, str] | None:
    if data is None:
        return None
    text = _text(_bytes(data))
    return {"base64": base64.b64encode(_bytes(data)).decode()} if text is None else {"text": text}


def _whole(data: bytes | str | None) -> str:
    if data is None:
        return "none"
    text = _text(_bytes(data))
    kind, shown = ("hex", _bytes(data).hex()) if text is None else ("text", text)
    return f"({len(data):,} bytes, {kind}) {shown}".rstrip(" ")


def _printable(data: bytes) -> str:
    """On one line."""
    text = _text(data)
    return "0x" + data.hex() if text is None or not text.isprintable() else text or "(empty)"


def _text(data: bytes) -> str | None:
    """None where it is no text, or would do something else to a terminal than be read."""
    with contextlib.suppress(UnicodeDecodeError):
        text = data.decode()
        if all(character.isprintable() or character in "\n\t" for character in text.replace("\r\n", "\n")):
            return text
    return None


def _bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def partition_of(fields: Fields) -> str:
    return "-" if fields[4] < 0 else str(fields[4])


def length_of(data: bytes | None) -> int | None:
    return None if data is None else len(data)


def size_of(data: bytes | None) -> str:
    return "-" if data is None else f"{len(data):,}"


def of_cluster(lane: LaneStatus) -> str:
    return "" if lane.cluster is None else f" (cluster {lane.cluster})"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def time_of(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    except (ValueError, OverflowError, OSError):  # the program may give any number
        return f"{at_ms} ms"


def _age(seconds: float) -> str:
    left, parts = max(0, int(seconds)), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2]) or "0 s"
