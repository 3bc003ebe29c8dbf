"""Appending, with no broker that answers: the spool beside plain files on the same disk, in interleaved rounds."""

from __future__ import annotations

from benchmarks.common.journal import Row
from benchmarks.common.plan import say
from benchmarks.spool.cases import GROUPS, Case
from benchmarks.spool.plan import Plan, fresh_folder, run_file, run_worker


def measure(plan: Plan) -> None:
    for number in range(1, plan.rounds + 1):
        for size in plan.sizes:
            say(f"append, {size} B: round {number} of {plan.rounds}")
            where = {"size": size, "round": number}
            for case in _order(plan, where):
                row = plan.attempt(case.name, where, _run, case, size, plan.append_seconds)
                if row is not None:
                    plan.journal.add("append", case=case.name, **where, **row)


def _order(plan: Plan, where: Row) -> list[Case]:
    """What is compared runs one right after the other, all of it in any order."""
    source = plan.source(where)
    groups = [source.sample(group, len(group)) for group in GROUPS]
    source.shuffle(groups)
    return [case for group in groups for case in group if case.name not in plan.failed]


def _run(case: Case, size: int, seconds: float) -> Row:
    with fresh_folder() as folder:
        options = {"case": case.name, "size": size, "seconds": seconds, "folder": folder}
        return run_file(**options) if case.is_limit else run_worker("append", **options)
