"""Starting and killing the programs of `tests/programs`, and reading their ledgers."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"


@contextlib.contextmanager
def program(name: str, *arguments: object, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program as a process; killed at the end of the block if it still runs. Its output goes to `log`."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, PROGRAMS / f"{name}.py", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(30)


def wait_until(condition: Callable[[], bool], seconds: float, what: str | Callable[[], str]) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what if isinstance(what, str) else what()}")
        time.sleep(0.02)


def accepted(ledger: Path) -> list[int]:
    """The numbers whose `send()` returned, in the order of sending."""
    return [int(number) for kind, number in _lines(ledger, 2) if kind == "ok"]


def in_doubt(ledger: Path) -> set[int]:
    """The numbers whose `send()` was interrupted by a kill: they may be in Kafka or not."""
    lines = _lines(ledger, 2)
    return {int(number) for kind, number in lines if kind == "try"} - {int(n) for kind, n in lines if kind == "ok"}


def handled(ledger: Path) -> list[tuple[int, int, int]]:
    """Partition, offset and number of each handled message, in the order of handling."""
    return [(int(partition), int(offset), int(value)) for partition, offset, value in _lines(ledger, 3)]


def _lines(ledger: Path, words: int) -> list[list[str]]:
    if not ledger.exists():
        return []
    lines = ledger.read_text().split("\n")[:-1]  # what follows the last newline was cut off by the kill
    return [line.split() for line in lines if len(line.split()) == words]
