"""Records a second and processor time a record: interleaved rounds, each run in a fresh process."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers, counted
from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.producer.contestants import BASE, CONTESTANTS
from benchmarks.producer.plan import Plan
from benchmarks.producer.processes import run_worker

_FIRST_TRY = 2_000
_SECOND_TRY = 20
_MOST = 5_000_000


def measure(plan: Plan, brokers: Brokers) -> None:
    for size in plan.sizes:
        counts = _calibrate(plan, brokers, size)
        for number in range(1, plan.rounds[brokers.name] + 1):
            say(f"throughput, {brokers.name}, {size} B: round {number} of {plan.rounds[brokers.name]}")
            with brokers.round():
                for peer in plan.shuffled(f"{brokers.name} {size} {number}", counts):
                    where = {"cluster": brokers.name, "size": size, "round": number}
                    row = plan.attempt(peer, where, _run, brokers, peer, counts[peer], size)
                    if row is None:
                        del counts[peer]
                    else:
                        plan.journal.add("throughput", **where, **row)


def _calibrate(plan: Plan, brokers: Brokers, size: int) -> dict[str, int]:
    """How many records each contestant sends in a run, so that a run takes about as long for everybody."""
    counts: dict[str, int] = {}
    with brokers.round():
        for peer in sorted(plan.peers, key=lambda name: name != BASE):
            if CONTESTANTS[peer].as_many_as_base and BASE in counts:
                counts[peer] = counts[BASE]
                continue
            where = {"cluster": brokers.name, "size": size}
            count = plan.attempt(peer, where, _fitting, plan, brokers, peer, size)
            if count is not None:
                counts[peer] = count["records"]
    say(f"records a run, {brokers.name}, {size} B: {counts}")
    return counts


def _fitting(plan: Plan, brokers: Brokers, peer: str, size: int) -> Row:
    """From a first run, which is too short to tell, to a second one that tells."""
    most = plan.records or _MOST
    count = min(_FIRST_TRY, most)
    for share in (1 / _SECOND_TRY, 1.0):
        row = _run(brokers, peer, count, size)
        if CONTESTANTS[peer].as_many_as_base and plan.records:
            return {"records": plan.records}
        # Never many times more at once: a short run tells little about a long one.
        fitting = min(count * plan.seconds * share / row["wall"], count * 100, most)
        count = max(100, int(round(fitting, 1 - len(str(int(fitting))))))
    return {"records": count}


def _run(brokers: Brokers, peer: str, records: int, size: int) -> Row:
    def run(servers: str, topic: str) -> Row:
        options = {"cluster": brokers.name, "servers": servers, "topic": topic, "records": records, "size": size}
        return run_worker("throughput", peer, **options)

    return counted(brokers, run)
