"""The run's results, one JSON object a line, written as they come: a run that is broken off loses nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")

    def add(self, part: str, **row: Any) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps({"part": part, **row}) + "\n")


class Results:
    """What a journal holds."""

    def __init__(self, path: Path) -> None:
        self._rows: list[Row] = [json.loads(line) for line in path.read_text().splitlines()]

    def of(self, part: str, **where: Any) -> list[Row]:
        """The rows of one part in which all of these have these values, in the order of writing."""
        wanted = {"part": part, **where}.items()
        return [row for row in self._rows if all(row.get(name) == value for name, value in wanted)]

    def values(self, part: str, name: str, **where: Any) -> list[Any]:
        """The different values that these rows have there, in the order of their first appearance."""
        return list(dict.fromkeys(row[name] for row in self.of(part, **where)))
