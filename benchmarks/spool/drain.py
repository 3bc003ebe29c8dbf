"""After an outage: folders filled while all brokers were dead are drained by new processes.

The outage is a real one, the brokers of the cluster are killed: a folder belongs to the brokers' addresses that it was
filled for, so it can't be filled with others.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.common.clusters import RealBrokers, appended, check_arrived
from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.spool.contestants import BASE, SPOOL
from benchmarks.spool.plan import Plan, fresh_folder, run_worker


@dataclass(frozen=True)
class _Filled:
    """A folder, and the empty topic that its records are for."""

    folder: Path
    servers: str
    topic: str
    records: int
    size: int

    def run(self, measure: str, **options: object) -> Row:
        where = {"folder": self.folder, "servers": self.servers, "topic": self.topic}
        return run_worker(measure, **where, records=self.records, size=self.size, **options)

    def run_whole(self, measure: str) -> Row:
        row = self.run(measure)
        check_arrived(appended(self.servers, self.topic), self.records)
        return row


def measure(plan: Plan, brokers: RealBrokers) -> None:
    with ExitStack() as stack:

        def empty(records: int, size: int) -> _Filled:
            servers, topic = stack.enter_context(brokers.topic())
            return _Filled(stack.enter_context(fresh_folder()), servers, topic, records, size)

        def prepared(records: int, size: int) -> _Filled:
            filled = empty(records, size)
            folders.append(filled)
            return filled

        folders: list[_Filled] = []
        drains = [prepared(plan.drain_records, plan.drain_size) for _ in range(plan.rounds)]
        backlogs = [prepared(total // plan.backlog_size, plan.backlog_size) for total in plan.backlogs]
        say(f"drain: an outage of all brokers, in which {len(folders)} folders are filled")
        with brokers.outage():
            if not all(plan.attempt(SPOOL, {"size": filled.size}, filled.run, "fill") for filled in folders):
                return
        plan.attempt(
            BASE, {"cluster": "real"}, empty(plan.drain_records, plan.drain_size).run_whole, "raw"
        )  # warms them
        for number, filled in enumerate(drains, 1):
            say(f"drain: round {number} of {plan.rounds}")
            _round(plan, number, {SPOOL: filled, BASE: empty(plan.drain_records, plan.drain_size)})
        for total, filled in zip(plan.backlogs, backlogs, strict=True):
            say(f"drain: memory with a backlog of {total / 1e6:,.0f} MB")
            row = plan.attempt(SPOOL, {"size": filled.size}, filled.run, "backlog", seconds=plan.backlog_seconds)
            if row is not None:
                plan.journal.add("backlog", bytes=total, **row)


def _round(plan: Plan, number: int, contestants: dict[str, _Filled]) -> None:
    where = {"cluster": "real", "size": plan.drain_size, "round": number}
    for peer in plan.source(f"drain {number}").sample(sorted(contestants), len(contestants)):
        row = plan.attempt(peer, where, contestants[peer].run_whole, "raw" if peer == BASE else "drain")
        if row is not None:
            plan.journal.add("drain", peer=peer, total=plan.drain_records, **where, **row)
