"""A contestant beside another, round by round."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.common.figures import paired
from benchmarks.common.journal import Results, Row
from benchmarks.common.ratios import Ratio, ratio
from benchmarks.consumer.contestants import BASE


def compared(
    results: Results, part: str, figure: Callable[[Row], float], peer: str, base: str = BASE, **where: Any
) -> Ratio:
    """The contestant's figure as a multiple of the other's in the same round."""
    return paired(results, part, figure, {"peer": peer, **where}, {"peer": base, **where})


def share_of_ideal(results: Results, **case: Any) -> Ratio | None:
    """The rate of sleeping handlers as a share of that of the same sleeps without Kafka, in the same process."""
    rows = results.of("sleeping", **case)
    if not rows:
        return None
    seed = results.of("run")[0]["seed"]
    return ratio([row["ideal"] for row in rows], [row["wall"] for row in rows], seed)


def slower_by(results: Results, peer: str, base: str, **where: Any) -> float | None:
    """Seconds by which the median of the rounds' p50 is above the other's."""
    mine, theirs = (results.of("idle", peer=name, **where) for name in (peer, base))
    return median(r["p50"] for r in mine) - median(r["p50"] for r in theirs) if mine and theirs else None
