"""`python -m benchmarks.producer`: runs the benchmark and writes its report. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import random
import shlex
import signal
import sys
import time
from pathlib import Path

from benchmarks.producer import chart, machine, memory, report, throughput, waiting
from benchmarks.producer.clusters import open_brokers
from benchmarks.producer.contestants import CONTESTANTS, PAIR
from benchmarks.producer.environment import ROOT
from benchmarks.producer.journal import Journal, Results
from benchmarks.producer.plan import Plan, say
from benchmarks.producer.processes import WorkerFailedError

PARTS = ("throughput", "latency", "memory")
_SCRATCH = ROOT / "var" / "bench-producer"


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended on the way out
    output = options.output or (_SCRATCH if options.quick else ROOT / "benchmarks" / "results")
    journal = options.render or _SCRATCH / f"journal-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    failed: set[str] = set()
    if options.render is None:
        try:
            failed = _run(options, Journal(journal))
        except WorkerFailedError:  # said already
            sys.exit(f"broken off; what was measured is in {journal}")
        except KeyboardInterrupt:
            sys.exit(130)
    results = Results(journal)
    output.mkdir(parents=True, exist_ok=True)
    (output / "producer.md").write_text(report.render(results))
    chart.draw(results, output / "producer.svg")
    say(f"written: {output / 'producer.md'}; every single run: {journal}")
    if failed:
        sys.exit(f"FAILED, and named in the report: {', '.join(sorted(failed))}")


def _run(options: argparse.Namespace, journal: Journal) -> set[str]:
    plan = _plan(options, journal)
    command = f"make bench-producer BENCH_ARGS={shlex.quote(shlex.join(sys.argv[1:]))}"
    journal.add(
        "run",
        machine=machine.description(),
        command=command if sys.argv[1:] else "make bench-producer",
        seed=plan.seed,
        date=time.strftime("%Y-%m-%d"),
    )
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
        clusters=("mock", "real") if options.cluster == "both" else (options.cluster,),
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
    parser = argparse.ArgumentParser(prog="make bench-producer", description=__doc__)
    parser.add_argument("--cluster", choices=["mock", "real", "both"], default="both")
    parser.add_argument("--rounds", type=int, help="on the mock brokers (15)")
    parser.add_argument("--real-rounds", type=int, help="on the real ones (two thirds of the others)")
    parser.add_argument("--records", type=int, help="a run; else as many as take about 1.5 s")
    parser.add_argument("--sizes", type=_numbers, default=(100, 1024), help="of the values, in bytes: 100,1024")
    parser.add_argument("--peers", type=_peers, default=tuple(CONTESTANTS), help=",".join(CONTESTANTS))
    parser.add_argument("--parts", type=_parts, default=PARTS, help=",".join(PARTS))
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of orders and intervals")
    parser.add_argument("--quick", action="store_true", help="one small round, only to see that everything runs")
    parser.add_argument("--output", type=Path, help="folder of the report (benchmarks/results; var with --quick)")
    parser.add_argument("--render", type=Path, metavar="JOURNAL", help="run nothing, write the report of this journal")
    return parser.parse_args()


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _peers(text: str) -> tuple[str, ...]:
    """The two that are compared are always among them."""
    return _known({*PAIR, *text.split(",")}, tuple(CONTESTANTS))


def _parts(text: str) -> tuple[str, ...]:
    return _known(set(text.split(",")), PARTS)


def _known(asked: set[str], known: tuple[str, ...]) -> tuple[str, ...]:
    if unknown := asked - set(known):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    return tuple(name for name in known if name in asked)


if __name__ == "__main__":
    main()
