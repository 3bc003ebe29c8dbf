"""Memory: of many different keys, and of large records that come faster than they are handled."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers
from benchmarks.common.plan import say
from benchmarks.consumer.contestants import OURS
from benchmarks.consumer.plan import Plan
from benchmarks.consumer.processes import run_worker
from benchmarks.consumer.setup import PARTITIONS
from benchmarks.consumer.topics import fill, new_group

_KEYS_PATIENCE = 900  # seconds
_LARGE = 1_000_000  # bytes of a value
# Mock brokers keep about 5 MB of a partition.
_LARGE_RECORDS = {"mock": 4 * PARTITIONS, "real": 16 * PARTITIONS}


def measure_keys(plan: Plan, brokers: Brokers) -> None:
    say(f"memory, {brokers.name}: {plan.distinct_keys:,} keys")
    with brokers.round():
        options = {"servers": brokers.servers, "topic": brokers.new_topic(PARTITIONS), "group": new_group()}
        where = {"cluster": brokers.name}
        options |= {"records": plan.distinct_keys, "patience": _KEYS_PATIENCE}
        row = plan.attempt(OURS, where, run_worker, "keys", OURS, **options)
    if row is not None:
        plan.journal.add("keys", **where, **row)


def measure_slow(plan: Plan, brokers: Brokers) -> None:
    records = _LARGE_RECORDS[brokers.name]
    say(f"memory, {brokers.name}: a slow handler, {records} records of {_LARGE:,} bytes")
    with brokers.round():
        topic = brokers.new_topic(PARTITIONS)
        fill(brokers.servers, topic, records, keys=records, size=_LARGE)
        options = {"servers": brokers.servers, "topic": topic, "group": new_group()}
        options |= {"records": records, "seconds": plan.slow_seconds}
        row = plan.attempt(OURS, {"cluster": brokers.name}, run_worker, "slow", OURS, **options)
    if row is not None:
        plan.journal.add("slow", cluster=brokers.name, bytes=records * _LARGE, **row)
