"""The statistics: paired ratios, their median, and how sure it is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 5_000


@dataclass(frozen=True)
class Ratio:
    """The median of the rounds' ratios, and a 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float


def ratio(ours: Sequence[float], base: Sequence[float], seed: int) -> Ratio:
    """Pairwise: the n-th of both come from the same round."""
    each = [mine / its for mine, its in zip(ours, base, strict=True)]
    source = random.Random(seed)
    medians = sorted(statistics.median(source.choices(each, k=len(each))) for _ in range(_RESAMPLES))
    return Ratio(statistics.median(each), medians[round(_RESAMPLES * 0.025)], medians[round(_RESAMPLES * 0.975) - 1])
