"""What a run does, as its options say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.common.plan import BasePlan
from benchmarks.producer.contestants import PAIR


@dataclass(kw_only=True)
class Plan(BasePlan):
    clusters: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: dict[str, int]  # by cluster
    records: int | None  # None: as many as take `seconds`
    sizes: tuple[int, ...]
    seconds: float
    latency_rounds: int
    latency_records: int
    memory_rounds: int
    pending_records: int
    flat_records: int
    vital: ClassVar[frozenset[str]] = frozenset(PAIR)
