"""What a run does, as its options say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from benchmarks.common.plan import BasePlan
from benchmarks.consumer.contestants import PAIR


@dataclass(kw_only=True)
class Plan(BasePlan):
    clusters: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: dict[str, int]  # by cluster
    seconds: float  # that a run of throughput or of sleeping handlers shall take
    records: int | None  # None: as many as take `seconds`
    sleeping_rounds: int
    milliseconds: tuple[int, ...]
    concurrencies: tuple[int, ...]
    keys: tuple[int, ...]
    idle_rounds: int
    idle_records: int
    distinct_keys: int
    slow_seconds: int
    vital: ClassVar[frozenset[str]] = frozenset(PAIR)
