"""Handlers that sleep, as all do that wait for somebody else: how near key order comes to the same sleeps without
Kafka."""

from __future__ import annotations

import itertools
import random

from benchmarks.common.clusters import Brokers
from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.consumer.contestants import OURS
from benchmarks.consumer.plan import Plan
from benchmarks.consumer.processes import run_worker
from benchmarks.consumer.topics import Filled, check_committed, new_group

FORMS = ("sync", "async")
# As of a stream that is read as it comes: with all that a partition holds in one batch, the records in memory would be
# those of few keys.
_BATCH = 100
_MOST_PER_SECOND = 50_000  # of the sleeps of many threads: more than the interpreter can start


def measure(plan: Plan, brokers: Brokers) -> None:
    cases = list(itertools.product(FORMS, plan.milliseconds, plan.concurrencies, plan.keys))
    for number in range(1, plan.sleeping_rounds + 1):
        say(f"sleeping handlers, {brokers.name}: round {number} of {plan.sleeping_rounds}")
        random.Random(f"{plan.seed} sleeping {number}").shuffle(cases)
        with brokers.round():
            filled = Filled(brokers, _BATCH)
            for form, milliseconds, concurrency, keys in cases:
                case = {"form": form, "milliseconds": milliseconds, "concurrency": concurrency, "keys": keys}
                where = {"cluster": brokers.name, "round": number, **case}
                row = plan.attempt(OURS, where, _run, plan, brokers, filled, case)
                if row is not None:
                    plan.journal.add("sleeping", **where, **row)


def _run(plan: Plan, brokers: Brokers, filled: Filled, case: Row) -> Row:
    at_once = min(case["concurrency"], case["keys"])
    fitting = plan.seconds * min(_MOST_PER_SECOND, at_once * 1_000 / case["milliseconds"])
    records = max(at_once, round(fitting / 50) * 50, 50)
    topic, group = filled.topic(records, case["keys"]), new_group()
    options = {"cluster": brokers.name, "servers": brokers.servers, "topic": topic, "group": group}
    row = run_worker("sleeping", OURS, records=records, **options, **case)
    check_committed(brokers.servers, topic, group, records)
    return row
