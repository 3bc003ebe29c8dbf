"""A contestant beside the base, round by round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.common.figures import paired
from benchmarks.common.journal import Results, Row
from benchmarks.common.ratios import Ratio
from benchmarks.producer.contestants import BASE


def compared(results: Results, part: str, figure: Callable[[Row], float], peer: str, **where: Any) -> Ratio:
    """The contestant's figure as a multiple of the base's in the same round."""
    return paired(results, part, figure, {"peer": peer, **where}, {"peer": BASE, **where})
