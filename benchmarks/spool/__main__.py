"""`python -m benchmarks.spool`: runs the benchmark and writes its report. See benchmarks/README.md."""

from __future__ import annotations

import argparse

from benchmarks.common.clusters import RealBrokers, open_brokers
from benchmarks.common.journal import Journal
from benchmarks.common.program import add_names, clusters_of, numbers, parser_of, run_program
from benchmarks.spool import append, chart, delivery, drain, outage, report, ways
from benchmarks.spool.plan import Plan
from benchmarks.spool.requirements import requirements

PARTS = ("append", "delivery", "ways", "drain", "outage")


def main() -> None:
    options = _options()
    run_program("spool", options, lambda journal: _measure(options, journal), report.render, chart.draw, requirements)


def _measure(options: argparse.Namespace, journal: Journal) -> set[str]:
    plan = _plan(options, journal)
    if "append" in options.parts:
        append.measure(plan)
    for name in plan.clusters:
        drained = "drain" in options.parts and name == "real"
        if {"delivery", "ways"} & set(options.parts) or drained:
            with open_brokers(name) as brokers:
                if "delivery" in options.parts:
                    delivery.measure(plan, brokers)
                if "ways" in options.parts:
                    ways.measure(plan, brokers)
                if drained and isinstance(brokers, RealBrokers):
                    drain.measure(plan, brokers)
    if "outage" in options.parts:
        outage.measure(plan)
    return plan.failed


def _plan(options: argparse.Namespace, journal: Journal) -> Plan:
    quick = options.quick
    return Plan(
        journal=journal,
        seed=options.seed,
        rounds=options.rounds or (1 if quick else 5),
        clusters=clusters_of(options),
        sizes=options.sizes,
        append_seconds=0.2 if quick else 0.5,
        delivery_sizes=(200, 1024, 10240),
        delivery_seconds=0.2 if quick else 1.0,
        way_rounds=min(options.rounds or (1 if quick else 2), 2),
        way_seconds=0.2 if quick else 0.5,
        drain_records=50_000 if quick else 200_000,
        drain_size=200,
        backlogs=(30_000_000, 60_000_000) if quick else (100_000_000, 1_000_000_000),
        backlog_size=1_000,
        backlog_seconds=2.0 if quick else 5.0,
        outage_seconds=options.outage_seconds or (3 if quick else 20),
        outage_rate=2_000,
        outage_size=200,
    )


def _options() -> argparse.Namespace:
    parser = parser_of("spool", __doc__)
    parser.add_argument("--rounds", type=int, help="of each case (5)")
    parser.add_argument("--sizes", type=numbers, default=(200, 1024, 10240), help="appended: 200,1024,10240 bytes")
    add_names(parser, "--parts", PARTS)
    parser.add_argument("--outage-seconds", type=int, help="of sending without a broker (20)")
    return parser.parse_args()


if __name__ == "__main__":
    main()
