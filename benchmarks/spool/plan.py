"""What a run does, as its options say, and how all its parts start a worker."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from benchmarks.common.environment import SHARED
from benchmarks.common.journal import Row
from benchmarks.common.plan import BasePlan
from benchmarks.common.processes import start_worker
from benchmarks.common.program import scratch_of
from benchmarks.spool.cases import CASES
from benchmarks.spool.contestants import BASE

_folders = itertools.count(1)


@dataclass(kw_only=True)
class Plan(BasePlan):
    rounds: int
    clusters: tuple[str, ...]
    sizes: tuple[int, ...]
    append_seconds: float
    delivery_sizes: tuple[int, ...]
    delivery_seconds: float
    way_rounds: int  # fewer: there are many ways
    way_seconds: float
    drain_records: int
    drain_size: int
    backlogs: tuple[int, ...]  # bytes of values
    backlog_size: int
    backlog_seconds: float
    outage_seconds: int
    outage_rate: int
    outage_size: int
    vital: ClassVar[frozenset[str]] = frozenset({BASE, *(name for name, case in CASES.items() if case.is_limit)})


def run_worker(measure: str, **options: object) -> Row:
    return start_worker(SHARED.python, "benchmarks.spool.worker", measure=measure, **options)


def run_file(**options: object) -> Row:
    return start_worker(SHARED.python, "benchmarks.spool.files", **options)


@contextmanager
def fresh_folder() -> Iterator[Path]:
    """On the disk of the clone. What is left to be written or freed when it goes must not disturb the next run."""
    folder = scratch_of("spool") / f"work-{os.getpid()}-{next(_folders)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.sync()
