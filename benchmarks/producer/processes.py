"""Running a worker in the environment of its contestant."""

from __future__ import annotations

from typing import Any

from benchmarks.common.environment import SHARED
from benchmarks.common.processes import start_worker
from benchmarks.producer.contestants import CONTESTANTS


def run_worker(measure: str, peer: str, **options: object) -> dict[str, Any]:
    environment = CONTESTANTS[peer].environment if peer in CONTESTANTS else SHARED  # a way to wait is no contestant
    return start_worker(environment.python, "benchmarks.producer.worker", measure=measure, peer=peer, **options)
