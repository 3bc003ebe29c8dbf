"""What a benchmark has to reach, and whether a run saw it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.common.journal import Results
from benchmarks.common.tables import table

Check = Callable[[Results], tuple[str, bool] | None]  # what was found, and whether it is enough; None: not measured


@dataclass(frozen=True)
class Requirement:
    what: str
    found: str
    met: bool | None  # None: not measured

    @property
    def verdict(self) -> str:
        return {True: "met", False: "NOT MET", None: "not measured"}[self.met]


def checked(results: Results, checks: Iterable[tuple[str, Check]]) -> list[Requirement]:
    found = [(what, check(results)) for what, check in checks]
    return [Requirement(what, *answer) if answer else Requirement(what, "-", None) for what, answer in found]


def requirements_section(requirements: Iterable[Requirement]) -> str:
    rows = [[line.what, line.found, line.verdict] for line in requirements]
    return f"## Requirements\n\n{table(['', 'found', ''], rows, figures=False)}"
