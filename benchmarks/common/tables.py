"""Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.common.ratios import Ratio


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], figures: bool = True) -> str:
    """The first column is text; the others are figures, or text as well."""
    lines = [columns, ["---", *["---:" if figures else "---"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def shown(ratio: Ratio) -> str:
    """A single round has no interval."""
    if ratio.low == ratio.high:
        return f"{_digits(ratio.median)}"
    return f"{_digits(ratio.median)} ({_digits(ratio.low)} - {_digits(ratio.high)})"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"
