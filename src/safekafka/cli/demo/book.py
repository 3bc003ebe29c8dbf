"""The books of the demo's programs: text files that only grow, one fact a line.

A line is one `write` to the file, so it is whole and in the operating system's hands when the call returns: a SIGKILL
of the program takes nothing back. (A power loss would. The books are for counting; the library's spool is the one that
syncs.) A book has one writer at a time and any number of readers.

What the producer writes about an order, around `send()`:
    trying   <order> <key>     before the call
    accepted <order> <key>     after it returned
An order that is only `trying` when the producer was killed is in doubt: it may be in the spool or not, and nobody
promised anything about it. The restarted program places it again under a new attempt number, so that a second copy of
an *accepted* order can only be the library's doing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

Line: TypeAlias = "list[str]"

TRYING = "trying"
ACCEPTED = "accepted"
SPOOLED = "spooled"  # <records in the spool>
HANDLED = "handled"  # <order> <partition> <offset>
DEAD_LETTERED = "dead-lettered"


class Book:
    """The writer's side. A torn last line, which a full disk could leave, is cut off."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        content = path.read_bytes()
        os.ftruncate(self._file, content.rfind(b"\n") + 1)
        self.past: list[Line] = _lines(content[: content.rfind(b"\n") + 1])

    def write(self, *words: object) -> None:
        os.write(self._file, " ".join(map(str, words)).encode() + b"\n")


class Reader:
    """Follows a book while it grows; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def news(self) -> list[Line]:
        """The whole lines since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._position += len(whole)
        return _lines(whole)


def _lines(content: bytes) -> list[Line]:
    return [line.split() for line in content.decode().splitlines()]
