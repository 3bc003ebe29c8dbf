"""Records a second and processor time a record with a handler that does nothing: interleaved rounds, fresh
processes."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers
from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.consumer.contestants import BASE, CONTESTANTS, STEADY
from benchmarks.consumer.plan import Plan
from benchmarks.consumer.processes import run_worker
from benchmarks.consumer.topics import Filled, check_committed, most_records, new_group

_FIRST_TRY = 2_000
_UNIT = 500  # what the loops with batches take at once: no run ends with their waiting for the rest of one


def measure(plan: Plan, brokers: Brokers) -> None:
    counts = _calibrate(plan, brokers)
    for number in range(1, plan.rounds[brokers.name] + 1):
        say(f"throughput, {brokers.name}: round {number} of {plan.rounds[brokers.name]}")
        with brokers.round():
            filled = Filled(brokers)
            for peer in plan.shuffled(f"{brokers.name} {number}", counts):
                where = {"cluster": brokers.name, "round": number}
                row = plan.attempt(peer, where, _run, brokers, filled, peer, counts[peer])
                if row is None:
                    del counts[peer]
                else:
                    plan.journal.add("throughput", **where, **row)


def _calibrate(plan: Plan, brokers: Brokers) -> dict[str, int]:
    """How many records each contestant handles in a run, so that a run takes about as long for everybody; those with
    pauses of the client as many as they would without, so that a run has its share of them."""
    counts: dict[str, int] = {}
    steady = STEADY if STEADY in plan.peers else BASE
    with brokers.round():
        filled = Filled(brokers)
        for peer in sorted(plan.peers, key=lambda name: name != steady):
            if brokers.name not in CONTESTANTS[peer].clusters:
                continue
            if CONTESTANTS[peer].as_many_as_base and steady in counts:
                counts[peer] = counts[steady]
                continue
            found = plan.attempt(peer, {"cluster": brokers.name}, _fitting, plan, brokers, filled, peer)
            if found is not None:
                counts[peer] = found["records"]
    say(f"records a run, {brokers.name}: {counts}")
    return counts


def _fitting(plan: Plan, brokers: Brokers, filled: Filled, peer: str) -> Row:
    """From a first run, which is too short to tell, to one of nearly the whole length."""
    if plan.records:
        return {"records": plan.records}
    most = most_records(brokers.name)
    count = _FIRST_TRY
    for share in (0.2, 1.0):
        row = _run(brokers, filled, peer, count)
        # Never many times more at once: a short run tells little about a long one.
        count = _rounded(min(count * plan.seconds * share / row["wall"], count * 100, most))
    return {"records": count}


def _rounded(count: float) -> int:
    """To two digits, so that contestants share topics, and to whole batches."""
    coarse = int(round(count, 2 - len(str(int(count)))))
    return max(_UNIT, coarse - coarse % _UNIT)


def _run(brokers: Brokers, filled: Filled, peer: str, records: int) -> Row:
    topic, group = filled.topic(records), new_group()
    options = {"cluster": brokers.name, "servers": brokers.servers, "topic": topic, "group": group}
    row = run_worker("throughput", peer, records=records, **options)
    check_committed(brokers.servers, topic, group, records)
    return row
