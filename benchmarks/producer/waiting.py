"""Latency of one record that is waited for, in interleaved rounds."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers
from benchmarks.common.plan import say
from benchmarks.common.setup import LINGER_MS
from benchmarks.producer.plan import Plan
from benchmarks.producer.processes import run_worker

PEERS = ("raw-callback", "safekafka", "safekafka-await")
LINGERS = (LINGER_MS, 0)


def measure(plan: Plan, brokers: Brokers) -> None:
    for number in range(1, plan.latency_rounds + 1):
        say(f"latency, {brokers.name}: round {number} of {plan.latency_rounds}")
        for linger in LINGERS:
            with brokers.round(), brokers.topic() as (servers, topic):
                options = {"cluster": brokers.name, "servers": servers, "topic": topic, "linger": linger}
                where = {"cluster": brokers.name, "linger": linger, "round": number}
                for peer in plan.shuffled(f"latency {brokers.name} {linger} {number}", PEERS):
                    row = plan.attempt(
                        peer, where, run_worker, "latency", peer, records=plan.latency_records, **options
                    )
                    if row is not None:
                        plan.journal.add("latency", **where, **row)
