"""Memory of a process that goes on sending while no broker answers."""

from __future__ import annotations

from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.spool.contestants import SPOOL
from benchmarks.spool.plan import Plan, fresh_folder, run_worker


def measure(plan: Plan) -> None:
    where = {"size": plan.outage_size, "rate": plan.outage_rate, "seconds": plan.outage_seconds}
    say(f"memory: {plan.outage_rate:,} records/s for {plan.outage_seconds} s without a broker")
    row = plan.attempt(SPOOL, where, _run, **where)
    if row is not None:
        plan.journal.add("outage", **where, **row)


def _run(**options: object) -> Row:
    with fresh_folder() as folder:
        return run_worker("outage", folder=folder, **options)
