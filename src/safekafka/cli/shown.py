"""What the commands show, whatever it is about: tables, lines, JSON, and text that does nothing to a terminal."""

from __future__ import annotations

import base64
import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import typer

from safekafka.errors import SafeKafkaError, SpoolLockedError

# Exit status; 0 is fine, 2 typer's own for a command line that it can't read.
WRONG = 1
IN_USE = 3


def note(text: str) -> None:
    typer.echo(text, err=True)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Around the work of a command."""
    try:
        yield
    except BrokenPipeError:
        raise  # `| head`: typer knows what to do
    except (SafeKafkaError, sqlite3.Error, ValueError, OSError) as error:
        remedy = ". Remedy: safekafka spool verify names the damaged lane; the next start keeps what can be read of it"
        note(f"Error: {one_line(str(error))}{remedy if isinstance(error, sqlite3.Error) else ''}")
        raise typer.Exit(IN_USE if isinstance(error, SpoolLockedError) else WRONG) from error


def confirm(question: str) -> None:
    """Raises what ends the command if the answer is not yes."""
    try:
        typer.confirm(question, abort=True, err=True)
    except typer.Abort:
        note("Nothing was changed. Without a question: --yes.")
        raise


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


def as_base64(data: bytes | str | None) -> str | None:
    return None if data is None else base64.b64encode(_bytes(data)).decode()


def readable(text: str) -> str:
    """Without what would do something else to a terminal than be read."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


def shown_json(data: bytes | str | None) -> dict[str, str] | None:
    if data is None:
        return None
    text = _text(_bytes(data))
    return {"base64": base64.b64encode(_bytes(data)).decode()} if text is None else {"text": text}


def whole(data: bytes | str | None) -> str:
    if data is None:
        return "none"
    text = _text(_bytes(data))
    kind, shown = ("hex", _bytes(data).hex()) if text is None else ("text", text)
    return f"({len(data):,} bytes, {kind}) {shown}".rstrip(" ")


def printable(data: bytes) -> str:
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


def length_of(data: bytes | None) -> int | None:
    return None if data is None else len(data)


def size_of(data: bytes | None) -> str:
    return "-" if data is None else f"{len(data):,}"


def counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    return " ".join(text.split())


def time_of(at_ms: int) -> str:
    try:
        return datetime.fromtimestamp(at_ms / 1000, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    except (ValueError, OverflowError, OSError):  # the program may give any number
        return f"{at_ms} ms"


def age(seconds: float) -> str:
    left, parts = max(0, int(seconds)), []
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        if left >= length:
            parts.append(f"{left // length} {unit}")
            left %= length
    return " ".join(parts[:2]) or "0 s"
