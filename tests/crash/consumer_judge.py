"""The judgement of a group whose members were killed, stopped and cut off: what they wrote against what is in the log.

Pure, and it rests on nothing of what it judges but the moments at which a consumer tells that it got or gave up a
partition. A handling beyond the first of a record is explained if the one before it had not been committed when the
partition changed hands, and if there was a reason for that: a kill, a partition that was lost, a commit that failed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple

from tests.crash.consumer_ledger import Commit, Handling, Ledger, Tenure

LATE = "late"  # among the ends of assignments: the handling is of an assignment that had ended without its knowing
_SECOND = 1_000_000_000
_UNANSWERED = 15 * _SECOND  # a member killed so soon after it sent a commit could not tell that it failed
_BEFORE = 1 * _SECOND  # a commit may fail before the partition is told to be gone


class Logged(NamedTuple):
    partition: int
    offset: int
    key: str


@dataclass
class Judgement:
    records: int
    handlings: int
    commits: int
    members: int
    problems: dict[str, list[str]]
    """By promise: what broke it."""
    repeated: Counter[str]
    """Handlings beyond the first, by how the partition had left the member that handled the record before."""
    uncommitted: Counter[str]
    """What could have been repeated: finished, and not committed when the partition left, by the same."""
    most_repeated: int
    """Of one assignment of one partition."""

    def __str__(self) -> str:
        broken = ", ".join(f"{what} {len(found)}" for what, found in self.problems.items())
        return (
            f"{self.records} records, {self.handlings} handlings by {self.members} members, {self.commits} commits "
            f"told; {broken}; repeated: {self.repeats()}"
        )

    def repeats(self) -> str:
        parts = [
            f"{count} by members cut off" if how == LATE else f"{count} {how}, of {self.uncommitted[how]} uncommitted"
            for how, count in self.repeated.items()
        ]
        return f"{self.repeated.total()} ({'; '.join(parts)}), at most {self.most_repeated} of one assignment"

    def check(self) -> None:
        found = {what: cases[:10] for what, cases in self.problems.items() if cases}
        assert not found, f"{self}\n{found}"


def judge(ledger: Ledger, log: Iterable[Logged], maps: bool = True) -> Judgement:
    """`maps`: a commit tells what was finished beyond its offset too, so that after an end in order nothing is
    repeated. On mock brokers it can't: they have no topic ids, by which a map is known to be the topic's."""
    records = sorted(log)
    by_record: defaultdict[tuple[int, int], list[Handling]] = defaultdict(list)
    for handling in sorted(ledger.handlings, key=lambda one: one.end):
        by_record[handling.partition, handling.offset].append(handling)
    firsts = {where: handlings[0] for where, handlings in by_record.items()}
    repeats = _Repeats(ledger, by_record, maps)
    problems = {
        "unhandled": [str(one) for one in records if (one.partition, one.offset) not in firsts],
        "out of order": list(_out_of_order(records, firsts)),
        "overlapping": list(_overlapping(ledger.handlings)),
        "committed too far": list(_committed_too_far(ledger.commits, records, firsts)),
        "handled without having the partition": [str(one) for one in ledger.handlings if ledger.tenure_of(one) is None],
        "repeated without a reason": repeats.unexplained,
    }
    return Judgement(
        len(records),
        len(ledger.handlings),
        len(ledger.commits),
        len({member for member, _ in ledger.tenures}),
        problems,
        repeats.by_end,
        repeats.uncommitted(),
        max(repeats.by_tenure.values(), default=0),
    )


def _out_of_order(records: list[Logged], firsts: Mapping[tuple[int, int], Handling]) -> Iterator[str]:
    """Of a key, no record is handled for the first time before the one in front of it was."""
    before: dict[tuple[int, str], Handling] = {}
    for record in records:
        first = firsts.get((record.partition, record.offset))
        if first is None:
            continue
        last = before.get((record.partition, record.key))
        if last is not None and first.start < last.end:
            yield f"{first} began before the end of {last}"
        before[record.partition, record.key] = first


def _overlapping(handlings: Iterable[Handling]) -> Iterator[str]:
    """Of a key, within a process."""
    lanes: defaultdict[tuple[str, str], list[Handling]] = defaultdict(list)
    for handling in handlings:
        lanes[handling.member, handling.key].append(handling)
    for lane in lanes.values():
        lane.sort(key=lambda one: one.start)
        yield from (f"{second} began during {first}" for first, second in pairwise(lane) if second.start < first.end)


def _committed_too_far(
    commits: Iterable[Commit], records: Iterable[Logged], firsts: Mapping[tuple[int, int], Handling]
) -> Iterator[str]:
    """Everything below a committed offset had been handled by then."""
    offsets: defaultdict[int, list[int]] = defaultdict(list)
    for record in records:
        offsets[record.partition].append(record.offset)
    never = 1 << 63
    latest = {  # by partition and place in the log: when the last of the records up to there was handled first
        partition: list(
            accumulate((firsts[partition, one].end if (partition, one) in firsts else never for one in found), max)
        )
        for partition, found in offsets.items()
    }
    for commit in commits:
        below = bisect_left(offsets[commit.partition], commit.offset)
        if below and latest[commit.partition][below - 1] > commit.at:
            yield f"{commit} came before all below it were handled"


class _Repeats:
    def __init__(self, ledger: Ledger, by_record: Mapping[tuple[int, int], list[Handling]], maps: bool) -> None:
        self._ledger = ledger
        self._maps = maps
        self.by_end: Counter[str] = Counter()
        self.by_tenure: Counter[Tenure] = Counter()
        self.unexplained: list[str] = []
        self._commits: dict[int, tuple[list[int], list[int]]] = {}  # times, and what was committed then
        self._told = sorted(ledger.commits, key=lambda one: one.at)
        for partition in {one.partition for one in self._told}:
            mine = [one for one in self._told if one.partition == partition]
            self._commits[partition] = [one.at for one in mine], [one.offset for one in mine]
        for handlings in by_record.values():
            for earlier, later in pairwise(handlings):
                self._look_at(earlier, later)

    def _look_at(self, earlier: Handling, later: Handling) -> None:
        before, after = self._ledger.tenure_of(earlier), self._ledger.tenure_of(later)
        if before is None or after is None:
            return  # told by its own
        if before is after:
            self.unexplained.append(f"{later}: the same assignment had handled it")
            return
        if after.begun < before.begun or after.was_stale:  # it was cut off from the group, and did not know yet
            self.by_end[LATE] += 1
            return
        self.by_end[before.how] += 1
        self.by_tenure[before] += 1
        if self._committed(later.partition, after.asked) > later.offset:
            self.unexplained.append(f"{later}: committed before its new owner asked for that at {after.asked}")
        elif self._maps and before.how in ("revoked", "closed") and not self._troubled(before, after.asked):
            self.unexplained.append(f"{later}: its partition had been {before.how} in order, at {before.ended}")

    def _committed(self, partition: int, at: int) -> int:
        """What was known to be committed then. It may have gone back: a commit whose coordinator was killed is repeated
        by the client, behind the one that was made at the revocation meanwhile."""
        times, offsets = self._commits.get(partition, ([], []))
        place = bisect_left(times, at)
        return offsets[place - 1] if place else -1

    def _troubled(self, tenure: Tenure, asked: int) -> bool:
        """Whether its member told, when the partition left or later, that a commit or a drain had failed, or could not
        tell any more; or had the answer to its last commit when the next owner had `asked`, or to an earlier one behind
        that."""
        mine = [one for one in self._told if self._ledger.tenure_at(one) is tenure]
        if any(one.at > asked for one in mine) or any(two.offset < one.offset for one, two in pairwise(mine)):
            return True
        ended = tenure.ended or 0
        killed = self._ledger.killed.get(tenure.member)
        told = any(member == tenure.member and at > ended - _BEFORE for member, at in self._ledger.trouble)
        return told or (killed is not None and killed < ended + _UNANSWERED)

    def uncommitted(self) -> Counter[str]:
        """Counted against what had been told when the next owner asked where to begin."""
        asked = self._asked_next()
        last: dict[Tenure, int] = {}
        for commit in self._told:
            tenure = self._ledger.tenure_at(commit)
            if tenure is not None and commit.at <= asked.get(tenure, commit.at):
                last[tenure] = commit.offset
        found: Counter[str] = Counter()
        for handling in self._ledger.handlings:
            tenure = self._ledger.tenure_of(handling)
            if tenure is not None and handling.offset >= last.get(tenure, -1):
                found[tenure.how] += 1
        return found

    def _asked_next(self) -> dict[Tenure, int]:
        """By assignment, when the one behind it was asked for."""
        by_partition: defaultdict[int, list[Tenure]] = defaultdict(list)
        for (_, partition), tenures in self._ledger.tenures.items():
            by_partition[partition] += [one for one in tenures if not one.was_stale]
        for tenures in by_partition.values():
            tenures.sort(key=lambda one: one.begun)
        return {before: after.asked for tenures in by_partition.values() for before, after in pairwise(tenures)}
