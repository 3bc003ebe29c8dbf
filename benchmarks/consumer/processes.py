"""Running a worker in the environment of its contestant."""

from __future__ import annotations

from typing import Any

from benchmarks.common.environment import SHARED
from benchmarks.common.processes import start_worker
from benchmarks.consumer.contestants import CONTESTANTS
from benchmarks.producer.environment import QUIX


def run_worker(measure: str, peer: str, **options: Any) -> dict[str, Any]:
    contestant = CONTESTANTS.get(peer)
    environment = QUIX if contestant is not None and contestant.environment == "quix" else SHARED
    return start_worker(environment.python, "benchmarks.consumer.worker", measure=measure, peer=peer, **options)
