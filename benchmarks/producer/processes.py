"""Running a worker in the environment of its contestant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.common.environment import SHARED
from benchmarks.common.processes import start_worker
from benchmarks.producer.contestants import CONTESTANTS
from benchmarks.producer.environment import QUIX


def run_worker(measure: str, peer: str, **options: object) -> dict[str, Any]:
    return start_worker(_python(peer), "benchmarks.producer.worker", measure=measure, peer=peer, **options)


def _python(peer: str) -> Path:
    contestant = CONTESTANTS.get(peer)
    environment = QUIX if contestant is not None and contestant.environment == "quix" else SHARED
    return environment.python
