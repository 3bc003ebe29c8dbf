"""End to end by each way to send, one record or many a call, from one thread or many: in interleaved rounds, the raw
client in each."""

from __future__ import annotations

from benchmarks.common.clusters import Brokers, counted
from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.spool.cases import WAYS
from benchmarks.spool.contestants import BASE
from benchmarks.spool.plan import Plan, fresh_folder, run_worker


def measure(plan: Plan, brokers: Brokers) -> None:
    with brokers.round():
        plan.attempt(BASE, {"cluster": brokers.name}, _run, plan, brokers, BASE, plan.delivery_sizes[0])  # warms them
    for number in range(1, plan.way_rounds + 1):
        for size in plan.delivery_sizes:
            say(f"ways, {brokers.name}, {size} B: round {number} of {plan.way_rounds}")
            where = {"cluster": brokers.name, "size": size, "round": number}
            names = [name for name in (BASE, *WAYS) if _peer(name) not in plan.failed]
            with brokers.round():
                for name in plan.source({"ways": where}).sample(names, len(names)):
                    row = plan.attempt(_peer(name), where, _run, plan, brokers, name, size)
                    if row is not None:
                        plan.journal.add("ways", case=name, **where, **row)


def _peer(name: str) -> str:
    """Whose failure it is: an appending case of the same name is another one."""
    return name if name == BASE else f"delivered-{name}"


def _run(plan: Plan, brokers: Brokers, name: str, size: int) -> Row:
    measured, who = ("deliver", {"peer": name}) if name == BASE else ("deliver_way", {"case": name})
    with fresh_folder() as folder:

        def deliver(servers: str, topic: str) -> Row:
            where = {"cluster": brokers.name, "servers": servers, "topic": topic, "folder": folder}
            return run_worker(measured, **who, size=size, seconds=plan.way_seconds, **where)

        return counted(brokers, deliver)
