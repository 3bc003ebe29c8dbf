"""The frame of a benchmark's program: the options that all have, the journal, and at the end the report."""

from __future__ import annotations

import argparse
import random
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from benchmarks.common import machine
from benchmarks.common.environment import ROOT
from benchmarks.common.journal import Journal, Results
from benchmarks.common.plan import say
from benchmarks.common.processes import WorkerFailedError
from benchmarks.common.requirements import Requirement


def scratch_of(name: str) -> Path:
    """Where a benchmark may leave files; git ignores it."""
    return ROOT / "var" / f"bench-{name}"


def parser_of(name: str, about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"make bench-{name}", description=about)
    parser.add_argument("--cluster", choices=["mock", "real", "both"], default="both")
    parser.add_argument("--seed", type=int, default=random.randrange(10_000), help="of orders and intervals")
    parser.add_argument("--quick", action="store_true", help="one small round, only to see that everything runs")
    parser.add_argument("--output", type=Path, help="folder of the report (benchmarks/results; var with --quick)")
    parser.add_argument("--render", type=Path, metavar="JOURNAL", help="run nothing, write the report of this journal")
    return parser


def clusters_of(options: argparse.Namespace) -> tuple[str, ...]:
    return ("mock", "real") if options.cluster == "both" else (options.cluster,)


def numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def add_names(parser: argparse.ArgumentParser, option: str, names: Iterable[str], always: Iterable[str] = ()) -> None:
    """An option that chooses among names, all unless given. `always`: are chosen in any case."""
    known = tuple(names)

    def chosen(text: str) -> tuple[str, ...]:
        asked = {*always, *text.split(",")}
        if unknown := asked - set(known):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(known)}")
        return tuple(name for name in known if name in asked)

    parser.add_argument(option, type=chosen, default=known, help=",".join(known))


def run_program(
    name: str,
    options: argparse.Namespace,
    measure: Callable[[Journal], set[str]],
    render: Callable[[Results], str],
    draw: Callable[[Results, Path], None],
    requirements: Callable[[Results], Iterable[Requirement]] = lambda _: (),
) -> None:
    """Measures, unless an earlier journal is to be rendered, says which requirements are met, and writes `<name>.md`
    and `<name>.svg`.

    `measure` returns the names of those who failed: the program fails then, but with a report.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended on the way out
    output = options.output or (scratch_of(name) if options.quick else ROOT / "benchmarks" / "results")
    path = options.render or scratch_of(name) / f"journal-{time.strftime('%Y%m%d-%H%M%S')}.jsonl"
    failed: set[str] = set()
    if options.render is None:
        try:
            journal = Journal(path)
            _describe(name, options, journal)
            failed = measure(journal)
        except WorkerFailedError:  # said already
            sys.exit(f"broken off; what was measured is in {path}")
        except KeyboardInterrupt:
            sys.exit(130)
    results = Results(path)
    for line in requirements(results):
        say(f"{line.verdict}: {line.what}: {line.found}")
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.md").write_text(render(results))
    draw(results, output / f"{name}.svg")
    say(f"written: {output / f'{name}.md'}; every single run: {path}")
    if failed:
        sys.exit(f"FAILED, and named in the report: {', '.join(sorted(failed))}")


def _describe(name: str, options: argparse.Namespace, journal: Journal) -> None:
    given = shlex.join(sys.argv[1:])
    journal.add(
        "run",
        machine=machine.description(),
        command=f"make bench-{name}" + (f" BENCH_ARGS={shlex.quote(given)}" if given else ""),
        seed=options.seed,
        date=time.strftime("%Y-%m-%d"),
    )
