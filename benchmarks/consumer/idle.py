"""A stream with a record now and then: how long it takes from `produce()` to the handler."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers
from benchmarks.common.plan import say
from benchmarks.consumer.contestants import BASE, POLL
from benchmarks.consumer.plan import Plan
from benchmarks.consumer.processes import run_worker
from benchmarks.consumer.setup import PARTITIONS
from benchmarks.consumer.topics import new_group

PEERS = (POLL, BASE, "safekafka", "safekafka-async", "safekafka-key", "safekafka-batches", "aiokafka", "faststream")


def measure(plan: Plan, brokers: Brokers) -> None:
    for number in range(1, plan.idle_rounds + 1):
        say(f"idle stream, {brokers.name}: round {number} of {plan.idle_rounds}")
        where = {"cluster": brokers.name, "round": number}
        with brokers.round():
            for peer in plan.shuffled(f"idle {brokers.name} {number}", [one for one in PEERS if one in plan.peers]):
                topic = brokers.new_topic(PARTITIONS)
                options = {"cluster": brokers.name, "servers": brokers.servers, "topic": topic, "group": new_group()}
                row = plan.attempt(peer, where, run_worker, "idle", peer, records=plan.idle_records, **options)
                if row is not None:
                    plan.journal.add("idle", **where, **row)
