"""What appends: the spool in each of its ways, and plain files, which are the limit of what a disk can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Durability = Literal["disk", "process"]
Way = Literal["send", "send_many", "ready", "append", "overwrite"]


@dataclass(frozen=True)
class Case:
    durability: Durability
    way: Way
    records: int = 1  # a call, and so a sync
    threads: int = 1

    @property
    def name(self) -> str:
        return f"{self.durability}-{self.way}-{self.records}-{self.threads}"

    @property
    def is_limit(self) -> bool:
        return self.way in ("append", "overwrite")

    @property
    def title(self) -> str:
        if self.way == "send":
            return f"`send()`, {self.threads} thread{'s' if self.threads > 1 else ''}"
        if self.way == "ready":
            return f"`send_many({self.records:,})`, `Record`s ready"
        if self.way == "send_many":
            return f"`send_many({self.records:,})`"
        file = "file, appended" if self.way == "append" else "file, overwritten"
        sync = "write+fdatasync" if self.durability == "disk" else "write"
        return f"{file}: {sync} of {self.records:,}"

    def limit(self, way: Literal["append", "overwrite"]) -> Case:
        """The file that gets as many records at once, from one thread."""
        return Case(self.durability, way, self.records)


def _group(durability: Durability, records: int) -> list[Case]:
    """The spool and the limits that it is compared to; they run one right after the other."""
    if records == 1:
        ours = [Case(durability, "send", threads=threads) for threads in (1, 4, 16)]
    else:
        ours = [Case(durability, "send_many", records)]
        if records == 1_000:
            ours.append(Case(durability, "ready", records))
    limits = [Case(durability, "append", records)]
    if durability == "disk":
        limits.append(Case(durability, "overwrite", records))
    return ours + limits


_THOUSAND = ("send_many", 1_000)
_DURABILITIES: tuple[Durability, ...] = ("disk", "process")
GROUPS = [_group(durability, records) for durability in _DURABILITIES for records in (1, 100, 1_000)]
CASES = {case.name: case for group in GROUPS for case in group}
# What is also measured end to end; `send_many(100)` is that of `contestants.py`.
WAYS = {name: case for name, case in CASES.items() if case.way == "send" or (case.way, case.records) == _THOUSAND}

_MOST_BYTES = 256 << 20  # appended by a run: less than what the kernel begins to write to the disk by itself


def most_calls(case: Case, size: int) -> int:
    """Of each thread."""
    return max(1, _MOST_BYTES // (size * case.records * case.threads))
