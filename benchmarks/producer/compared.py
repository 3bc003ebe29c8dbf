"""A contestant beside the base, round by round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.producer.contestants import BASE
from benchmarks.producer.journal import Results, Row
from benchmarks.producer.ratios import Ratio, ratio


def compared(results: Results, part: str, figure: Callable[[Row], float], peer: str, **where: Any) -> Ratio:
    """The contestant's figure as a multiple of the base's in the same round."""
    base = {row["round"]: figure(row) for row in results.of(part, peer=BASE, **where)}
    ours = {row["round"]: figure(row) for row in results.of(part, peer=peer, **where) if row["round"] in base}
    seed = results.of("run")[0]["seed"]
    return ratio(list(ours.values()), [base[number] for number in ours], seed)
