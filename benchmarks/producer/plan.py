"""What a run does, as its options say, and what all its parts have in common."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.producer.contestants import PAIR
from benchmarks.producer.journal import Journal, Row
from benchmarks.producer.processes import WorkerFailedError


@dataclass
class Plan:
    journal: Journal
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
    seed: int
    failed: set[str] = field(default_factory=set)

    def shuffled(self, where: object, peers: Iterable[str]) -> list[str]:
        """The order of one round. The pair that matters most stays together, either one first."""
        source = random.Random(f"{self.seed} {where}")
        pair = [peer for peer in peers if peer in PAIR]
        source.shuffle(pair)
        units = [[peer] for peer in peers if peer not in PAIR] + [pair]
        source.shuffle(units)
        return [peer for unit in units for peer in unit]

    def attempt(
        self, peer: str, where: Row, measure: Callable[..., Row], *arguments: Any, **options: Any
    ) -> Row | None:
        """A contestant that fails is out, loudly: it is named, and the run as a whole fails at its end.

        Without one of the two that are compared nothing would be left to measure: their failures end the run.
        """
        try:
            return measure(*arguments, **options)
        except WorkerFailedError as error:
            say(f"FAILED: {peer} {where}: {error}")
            self.journal.add("failure", peer=peer, **where, error=str(error))
            self.failed.add(peer)
            if peer in PAIR:
                raise
            return None


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
