"""End to end, with brokers that answer: from the first send to the last acknowledgement, in interleaved rounds."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers, counted
from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.spool.contestants import BASE, CONTESTANTS
from benchmarks.spool.plan import Plan, fresh_folder, run_worker


def measure(plan: Plan, brokers: Brokers) -> None:
    with brokers.round():
        plan.attempt(BASE, {"cluster": brokers.name}, _run, plan, brokers, BASE, plan.delivery_sizes[0])  # warms them
    for number in range(1, plan.rounds + 1):
        for size in plan.delivery_sizes:
            say(f"delivery, {brokers.name}, {size} B: round {number} of {plan.rounds}")
            where = {"cluster": brokers.name, "size": size, "round": number}
            peers = [peer for peer in CONTESTANTS if peer not in plan.failed]
            with brokers.round():
                for peer in plan.source(where).sample(peers, len(peers)):
                    row = plan.attempt(peer, where, _run, plan, brokers, peer, size)
                    if row is not None:
                        plan.journal.add("delivery", peer=peer, **where, **row)


def _run(plan: Plan, brokers: Brokers, peer: str, size: int) -> Row:
    with fresh_folder() as folder:

        def deliver(servers: str, topic: str) -> Row:
            where = {"cluster": brokers.name, "servers": servers, "topic": topic, "folder": folder}
            return run_worker("deliver", peer=peer, size=size, seconds=plan.delivery_seconds, **where)

        return counted(brokers, deliver)
