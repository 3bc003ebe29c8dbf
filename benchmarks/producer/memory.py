"""Memory: of records that can't be delivered, and of a long run whose receipts nobody keeps."""

from __future__ import annotations

from benchmarks.common.clusters import MockBrokers
from benchmarks.common.plan import say
from benchmarks.producer.plan import Plan
from benchmarks.producer.processes import run_worker

PENDING = ("safekafka", "safekafka-produce", "raw", "raw-callback", "raw-future", "aiokafka", "kafka-python")
FLAT = ("safekafka", "raw-callback")


def measure(plan: Plan) -> None:
    for number in range(1, plan.memory_rounds + 1):
        say(f"memory: round {number} of {plan.memory_rounds}")
        for size in plan.sizes:
            _pending(plan, size, number)
        _flat(plan, number)


def _pending(plan: Plan, size: int, number: int) -> None:
    where = {"size": size, "round": number}
    for peer in plan.shuffled(f"pending {size} {number}", [name for name in PENDING if name in plan.peers]):
        row = plan.attempt(peer, where, run_worker, "pending", peer, records=plan.pending_records, size=size)
        if row is not None:
            plan.journal.add("pending", **where, **row)


def _flat(plan: Plan, number: int) -> None:
    brokers = MockBrokers()
    for peer in plan.shuffled(f"flat {number}", FLAT):
        with brokers.round(), brokers.topic() as (servers, topic):
            options = {"servers": servers, "topic": topic, "records": plan.flat_records, "size": plan.sizes[0]}
            row = plan.attempt(peer, {"round": number}, run_worker, "flat", peer, **options)
        if row is not None:
            plan.journal.add("flat", round=number, **row)
