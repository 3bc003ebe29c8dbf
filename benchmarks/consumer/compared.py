"""What is compared otherwise than by the ratio of two contestants."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.common.journal import Results
from benchmarks.common.ratios import Ratio, ratio


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
