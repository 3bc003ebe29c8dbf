"""The judgement of a service that was killed: what it accepted against what is in Kafka.

It rests on what the code under test has no hand in: the ledgers that the workers write, the topic as a plain client
reads it, and the rows that a kill left in the journals, read by SQLite from a copy. A copy of a record beyond the first
is allowed only if a kill found the record in a journal, delivered or not; on mock brokers, which know no idempotence,
also if a broker cut off its answer.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from safekafka.testing.ledger import Entry, LedgerReport, audit_log, read_log
from tests.crash.spool_service import Service, named

# What is with the client (sender.WINDOW), and what Kafka has and is not yet deleted (_ACK_ROWS, or what came in 0.1 s).
WINDOW, UNACKED = 20_000, 25_000


class Copy(NamedTuple):
    """A message in the topic."""

    name: str
    number: int
    key: bytes
    id: str
    partition: int
    offset: int


def read_copies(servers: str, topic: str, seconds: float = 120) -> list[Copy]:
    copies = []
    for message in read_log(servers, topic, timeout=seconds):
        name, number = named(message.value())
        identity = dict(message.headers() or [])["safekafka.id"]
        assert isinstance(identity, bytes)
        copies.append(
            Copy(name, number, message.key() or b"", identity.decode(), message.partition() or 0, message.offset() or 0)
        )
    return copies


@dataclass
class Judgement:
    report: LedgerReport
    kills: int
    cuts: int
    rejected: list[tuple[str, int]]
    doubtful_delivered: set[tuple[str, int]]
    """Of calls that a kill broke off."""
    problems: list[str]
    most_left: int
    """Records that one kill found in a journal."""

    def __str__(self) -> str:
        found = self.report
        return (
            f"{self.kills} kills, {self.cuts} cuts, {found.accepted} accepted, {found.in_kafka} in Kafka, "
            f"{len(self.rejected)} rejected, "
            f"lost {found.lost}, out of order {found.out_of_order}, unexpected {found.unexpected}, "
            f"duplicates {found.duplicates}"
        )

    def check(self, duplicates: int | None = None) -> None:
        found = self.report
        assert (found.lost, found.out_of_order, found.unexpected) == (0, 0, 0), f"{self}\n{found}"
        assert not self.problems, f"{self}: {self.problems[:10]}"
        bound = (self.kills + self.cuts) * (WINDOW + UNACKED) if duplicates is None else duplicates
        assert found.duplicates <= bound, str(self)


def judge(service: Service, keys: int = 7, damaged: frozenset[tuple[str, int]] = frozenset()) -> Judgement:
    """`damaged`: accepted records that the test destroyed on the disk."""
    copies = read_copies(service.servers, service.topic)
    seen = {(copy.name, copy.number) for copy in copies}
    rejected = service.rejected()
    gone = {*rejected, *damaged}
    problems: list[str] = []
    accepted: list[Entry] = []
    doubtful: set[tuple[str, int]] = set()
    for name, ledger in service.ledgers.items():
        arrived: list[int] = []  # of calls that did not return
        for call in ledger.broken_off():
            calls = [n for n in range(call.first, call.last + 1) if (name, n) in seen or (name, n) in gone]
            if 0 < len(calls) <= call.last - call.first:
                problems.append(f"of {name}'s send_many() {call}, broken off, only {len(calls)} are there")
            arrived += calls
        doubtful.update((name, number) for number in arrived)
        accepted += [
            Entry(f"{name}-{number % keys}".encode(), number)
            for number in sorted([*ledger.accepted(), *arrived])
            if (name, number) not in gone
        ]
    if len(rejected) != len(set(rejected)):
        problems.append(f"rejected twice: {rejected}")
    if both := seen & gone:
        problems.append(f"rejected (or destroyed) and delivered: {both}")
    report = audit_log(accepted, (Entry(copy.key, copy.number, copy.partition, copy.offset) for copy in copies))
    problems += [*_about_ids(copies, service.left), *_about_lanes(copies)]
    return Judgement(report, service.kills, service.cuts, rejected, doubtful & seen, problems, service.most_left)


def _about_ids(copies: list[Copy], left: Counter[str]) -> Iterator[str]:
    """A number is used once, and a record that was sent again is known by it."""
    records: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
    ids: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
    times: Counter[str] = Counter()
    for copy in copies:
        records[copy.id].add((copy.name, copy.number))
        ids[copy.name, copy.number].add(copy.id)
        times[copy.id] += 1
    yield from (f"id {one} stands for {those}" for one, those in records.items() if len(those) > 1)
    yield from (f"record {one} has the ids {those}" for one, those in ids.items() if len(those) > 1)
    for one, count in times.items():
        if count - 1 > left[one]:
            yield f"{one} is there {count} times, and {left[one]} kills or cuts found it in a journal"


def _about_lanes(copies: list[Copy]) -> Iterator[str]:
    """In each partition the first copies of a lane's records stand in the order of their numbers: also those of the
    processes that had the lane one after another."""
    highest: dict[tuple[str, int], int] = {}
    seen = set()
    for copy in sorted(copies, key=lambda copy: (copy.partition, copy.offset)):
        if copy.id in seen:
            continue
        seen.add(copy.id)
        lane, _, number = copy.id.partition("-")
        where = lane, copy.partition
        if int(number) < highest.get(where, 0):
            yield f"{copy} stands behind number {highest[where]} of its lane"
        highest[where] = max(int(number), highest.get(where, 0))
