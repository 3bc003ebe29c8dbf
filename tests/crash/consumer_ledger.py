"""What the members of a group have written (`tests/programs/keyed_work.py`), and who had which partition when."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

End: TypeAlias = Literal["killed", "closed", "revoked", "lost", "kept"]
_ENDS: dict[str, End] = {"partitions_revoked": "revoked", "partitions_lost": "lost"}
_AT_ONCE = 1_000_000_000  # nanoseconds
# What a consumer tells when a commit or a drain did not come to its end: its records may come again.
_TROUBLE = frozenset({"commit_failed", "handler_abandoned", "close_timed_out"})


class Handling(NamedTuple):
    """One that ended. Times are nanoseconds of one clock, here and below."""

    member: str
    partition: int
    offset: int
    key: str
    start: int
    end: int


class Commit(NamedTuple):
    """Confirmed by the broker, no later than `at`."""

    member: str
    partition: int
    offset: int
    at: int


@dataclass(eq=False)
class Tenure:
    """A member's having a partition, from its assignment on."""

    member: str
    partition: int
    begun: int
    asked: int
    """No later than it asked for the committed offset."""
    ended: int | None = None
    how: End = "kept"

    @property
    def was_stale(self) -> bool:
        """Told when it had been lost already: the member stood still between asking where to begin and telling so."""
        return self.how == "lost" and self.ended is not None and self.ended - self.begun < _AT_ONCE


@dataclass
class Ledger:
    handlings: list[Handling] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    tenures: defaultdict[tuple[str, int], list[Tenure]] = field(default_factory=lambda: defaultdict(list))
    """By member and partition, in the order of time."""
    trouble: list[tuple[str, int]] = field(default_factory=list)
    """Of which member, and when."""
    killed: dict[str, int] = field(default_factory=dict)
    _asked: dict[tuple[str, int], int] = field(default_factory=dict)

    def tenure_of(self, handling: Handling) -> Tenure | None:
        """The assignment in which it began."""
        for tenure in reversed(self.tenures[handling.member, handling.partition]):
            if tenure.begun <= handling.start:
                return tenure if tenure.ended is None or handling.start <= tenure.ended else None
        return None

    def tenure_at(self, commit: Commit) -> Tenure | None:
        """The assignment that it is of: the answer to its last commit may come when the partition has left."""
        begun = [one for one in self.tenures[commit.member, commit.partition] if one.begun <= commit.at]
        return begun[-1] if begun else None

    def _tell(self, member: str, event: str, partitions: Iterable[int], at: int) -> None:
        if event == "assigning":
            self._asked.update(dict.fromkeys(((member, partition) for partition in partitions), at))
        elif event == "partitions_assigned":
            for partition in partitions:
                asked = self._asked.pop((member, partition), at)
                self.tenures[member, partition].append(Tenure(member, partition, at, asked))
        elif event in _ENDS:
            self._end(member, partitions, at, _ENDS[event])
        elif event in ("killed", "closed"):
            mine = [partition for owner, partition in self.tenures if owner == member]
            self._end(member, mine, at, "killed" if event == "killed" else "closed")
            if event == "killed":
                self.killed[member] = at
        elif event in _TROUBLE:
            self.trouble.append((member, at))

    def _end(self, member: str, partitions: Iterable[int], at: int, how: End) -> None:
        for partition in partitions:
            tenures = self.tenures[member, partition]
            if tenures and tenures[-1].ended is None:
                tenures[-1].ended, tenures[-1].how = at, how


def read_ledger(lines: Iterable[str]) -> Ledger:
    ledger = Ledger()
    for line in lines:
        kind, member, *words = line.split()
        if kind == "handled":
            partition, offset, key, start, end = words
            ledger.handlings.append(Handling(member, int(partition), int(offset), key, int(start), int(end)))
        elif kind == "committed":
            ledger.commits.append(Commit(member, *map(int, words)))
        else:
            event, partitions, at = words
            ledger._tell(member, event, map(int, partitions.split(",") if partitions != "-" else []), int(at))
    return ledger
