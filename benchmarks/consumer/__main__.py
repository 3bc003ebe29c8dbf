"""`python -m benchmarks.consumer`: runs the benchmark and writes its report. See benchmarks/README.md."""

from __future__ import annotations

import argparse

from benchmarks.common.clusters import Brokers, open_brokers
from benchmarks.common.journal import Journal
from benchmarks.common.program import add_names, clusters_of, numbers, parser_of, run_program
from benchmarks.consumer import chart, idle, memory, report, sleeping, throughput
from benchmarks.consumer.contestants import CONTESTANTS, PAIR
from benchmarks.consumer.plan import Plan
from benchmarks.consumer.requirements import requirements

PARTS = ("throughput", "sleeping", "idle", "keys", "slow")


def main() -> None:
    options = _options()
    run_program(
        "consumer", options, lambda journal: _measure(options, journal), report.render, chart.draw, requirements
    )


def _measure(options: argparse.Namespace, journal: Journal) -> set[str]:
    plan = _plan(options, journal)
    for name in plan.clusters:
        with open_brokers(name) as brokers:
            for part in options.parts:
                _part(part, plan, brokers)
    return plan.failed


def _part(part: str, plan: Plan, brokers: Brokers) -> None:
    if part == "throughput":
        throughput.measure(plan, brokers)
    elif part == "idle":
        idle.measure(plan, brokers)
    elif part == "slow":
        memory.measure_slow(plan, brokers)
    elif brokers.name == "mock":  # what these look at has nothing to do with the brokers
        {"sleeping": sleeping.measure, "keys": memory.measure_keys}[part](plan, brokers)


def _plan(options: argparse.Namespace, journal: Journal) -> Plan:
    quick = options.quick
    rounds = options.rounds or (1 if quick else 9)
    return Plan(
        journal=journal,
        seed=options.seed,
        clusters=clusters_of(options),
        peers=options.peers,
        rounds={"mock": rounds, "real": options.real_rounds or (1 if quick else max(1, rounds * 2 // 3))},
        seconds=0.3 if quick else 1.5,
        records=2_000 if quick else None,
        sleeping_rounds=options.other_rounds or (1 if quick else 3),
        milliseconds=options.milliseconds,
        concurrencies=options.concurrencies,
        keys=options.keys,
        idle_rounds=options.other_rounds or (1 if quick else 3),
        idle_records=50 if quick else 500,
        distinct_keys=50_000 if quick else 5_000_000,
        slow_seconds=5 if quick else 30,
    )


def _options() -> argparse.Namespace:
    parser = parser_of("consumer", __doc__)
    parser.add_argument("--rounds", type=int, help="of throughput on the mock brokers (9)")
    parser.add_argument("--real-rounds", type=int, help="on the real ones (two thirds of the others)")
    parser.add_argument("--other-rounds", type=int, help="of sleeping handlers and of the idle stream (3)")
    parser.add_argument("--milliseconds", type=numbers, default=(1, 10), help="of sleeping handlers: 1,10")
    parser.add_argument("--concurrencies", type=numbers, default=(1, 16, 100), help="of them at once: 1,16,100")
    parser.add_argument("--keys", type=numbers, default=(1, 100, 10_000), help="of their records: 1,100,10000")
    add_names(parser, "--peers", CONTESTANTS, always=PAIR)  # those are what is compared
    add_names(parser, "--parts", PARTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
