"""The limit: plain files. Each call writes as many bytes as the values have that a call of the spool is given.

Run as a program it measures one of them, as `worker` does for the spool, without having loaded any of the library.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Callable
from pathlib import Path

from benchmarks.common.processes import end_worker
from benchmarks.spool.cases import CASES, Case, most_calls
from benchmarks.spool.timing import call_for

_ROOM = 32 << 20  # of the file that is overwritten, again and again


def writing(case: Case, size: int, folder: Path) -> Callable[[], object]:
    block = os.urandom(size * case.records)
    if case.way == "overwrite":
        return _overwriting(block, folder / "file")
    file = os.open(folder / "file", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    if case.durability == "process":
        return lambda: os.write(file, block)

    def append() -> None:
        os.write(file, block)
        os.fdatasync(file)

    return append


def _overwriting(block: bytes, path: Path) -> Callable[[], object]:
    """Within a file that has its size and its blocks: the sync has no metadata to write."""
    file = os.open(path, os.O_CREAT | os.O_WRONLY)
    os.write(file, bytes(_ROOM))
    os.fsync(file)
    place = 0

    def overwrite() -> None:
        nonlocal place
        if place + len(block) > _ROOM:
            place = 0
        os.pwrite(file, block, place)
        os.fdatasync(file)
        place += len(block)

    return overwrite


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=CASES, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--timeout", type=int, default=120, help="seconds until it ends itself")
    options = parser.parse_args()
    signal.alarm(options.timeout)
    case = CASES[options.case]
    call = writing(case, options.size, options.folder)
    call()
    made, start, end = call_for(options.seconds, [call], most_calls(case, options.size))
    used = end - start
    end_worker({"records": made * case.records, "wall": used.wall, "cpu": used.cpu})


if __name__ == "__main__":
    main()
