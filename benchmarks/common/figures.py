"""The figures of a run, alone and beside those of the same round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.common.journal import Results, Row
from benchmarks.common.ratios import Ratio, ratio


def per_second(row: Row) -> float:
    return float(row["records"] / row["wall"])


def cpu_micros(row: Row) -> float:
    return float(row["cpu"] / row["records"] * 1e6)


def paired(results: Results, part: str, figure: Callable[[Row], float], ours: Row, base: Row) -> Ratio:
    """The figure of the rows that have `ours` as a multiple of that of the row of the same round that has `base`."""
    theirs = {row["round"]: figure(row) for row in results.of(part, **base)}
    mine = {row["round"]: figure(row) for row in results.of(part, **ours) if row["round"] in theirs}
    seed = results.of("run")[0]["seed"]
    return ratio(list(mine.values()), [theirs[number] for number in mine], seed)


def compared(results: Results, part: str, figure: Callable[[Row], float], peer: str, base: str, **where: Any) -> Ratio:
    """A contestant's figure as a multiple of another's in the same round."""
    return paired(results, part, figure, {"peer": peer, **where}, {"peer": base, **where})
