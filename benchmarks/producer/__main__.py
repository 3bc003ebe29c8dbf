"""`python -m benchmarks.producer`: runs the benchmark and writes its report. See benchmarks/README.md."""

from __future__ import annotations

import argparse

from benchmarks.common.clusters import open_brokers
from benchmarks.common.journal import Journal
from benchmarks.common.program import add_names, clusters_of, numbers, parser_of, run_program
from benchmarks.producer import chart, memory, report, throughput, waiting
from benchmarks.producer.contestants import CONTESTANTS, PAIR
from benchmarks.producer.plan import Plan

PARTS = ("throughput", "latency", "memory")


def main() -> None:
    options = _options()
    run_program("producer", options, lambda journal: _measure(options, journal), report.render, chart.draw)


def _measure(options: argparse.Namespace, journal: Journal) -> set[str]:
    plan = _plan(options, journal)
    for name in plan.clusters if set(options.parts) & {"throughput", "latency"} else ():
        with open_brokers(name) as brokers:
            if "throughput" in options.parts:
                throughput.measure(plan, brokers)
            if "latency" in options.parts:
                waiting.measure(plan, brokers)
    if "memory" in options.parts:
        memory.measure(plan)
    return plan.failed


def _plan(options: argparse.Namespace, journal: Journal) -> Plan:
    quick = options.quick
    rounds = options.rounds or (1 if quick else 15)
    return Plan(
        journal=journal,
        clusters=clusters_of(options),
        peers=options.peers,
        rounds={"mock": rounds, "real": options.real_rounds or (1 if quick else max(1, rounds * 2 // 3))},
        records=options.records or (20_000 if quick else None),
        sizes=options.sizes,
        seconds=0.2 if quick else 1.5,
        latency_rounds=1 if quick else max(1, rounds // 3),
        latency_records=100 if quick else 1_000,
        memory_rounds=1 if quick else 3,
        pending_records=20_000 if quick else 100_000,
        flat_records=50_000 if quick else 1_000_000,
        seed=options.seed,
    )


def _options() -> argparse.Namespace:
    parser = parser_of("producer", __doc__)
    parser.add_argument("--rounds", type=int, help="on the mock brokers (15)")
    parser.add_argument("--real-rounds", type=int, help="on the real ones (two thirds of the others)")
    parser.add_argument("--records", type=int, help="a run; else as many as take about 1.5 s")
    parser.add_argument("--sizes", type=numbers, default=(100, 1024), help="of the values, in bytes: 100,1024")
    add_names(parser, "--peers", CONTESTANTS, always=PAIR)  # those are what is compared
    add_names(parser, "--parts", PARTS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
