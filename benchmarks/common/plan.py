"""What a run has in common with those of all benchmarks: its journal, its seed, and what becomes of a failure."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar

from benchmarks.common.journal import Journal, Row
from benchmarks.common.processes import WorkerFailedError


@dataclass(kw_only=True)
class BasePlan:
    journal: Journal
    seed: int
    failed: set[str] = field(default_factory=set)
    # What others are compared to: without it nothing would be left to measure, so its failure ends the run.
    vital: ClassVar[frozenset[str]] = frozenset()

    def attempt(
        self, peer: str, where: Row, measure: Callable[..., Row], *arguments: Any, **options: Any
    ) -> Row | None:
        """A contestant that fails is out, loudly: it is named, and the run as a whole fails at its end."""
        try:
            return measure(*arguments, **options)
        except WorkerFailedError as error:
            say(f"FAILED: {peer} {where}: {error}")
            self.journal.add("failure", peer=peer, **where, error=str(error))
            self.failed.add(peer)
            if peer in self.vital:
                raise
            return None

    def source(self, where: object) -> random.Random:
        """Of the order of one round."""
        return random.Random(f"{self.seed} {where}")

    def shuffled(self, where: object, peers: Iterable[str]) -> list[str]:
        """The order of one round. The vital ones, which matter most, stay together, in any order among themselves."""
        source = self.source(where)
        together = [peer for peer in peers if peer in self.vital]
        source.shuffle(together)
        units = [[peer] for peer in peers if peer not in self.vital] + [together]
        source.shuffle(units)
        return [peer for unit in units for peer in unit]


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
