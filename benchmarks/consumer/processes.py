"""Running a worker in the environment of its contestant."""

from __future__ import annotations

from typing import Any

from benchmarks.common.processes import start_worker
from benchmarks.consumer.contestants import CONTESTANTS


def run_worker(measure: str, peer: str, **options: Any) -> dict[str, Any]:
    python = CONTESTANTS[peer].environment.python
    return start_worker(python, "benchmarks.consumer.worker", measure=measure, peer=peer, **options)
