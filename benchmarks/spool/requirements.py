"""What the spool has to reach, and whether this run saw it."""

from __future__ import annotations

from statistics import median

from benchmarks.common.figures import compared, paired, per_second
from benchmarks.common.journal import Results
from benchmarks.common.ratios import Ratio
from benchmarks.common.requirements import Check, Requirement, checked
from benchmarks.common.tables import shown
from benchmarks.spool.cases import Case
from benchmarks.spool.contestants import BASE, SPOOL

_SIZE = 200
_ONE, _CROWD = Case("disk", "send"), Case("disk", "send", threads=16)
_MANY, _READY = Case("disk", "send_many", 1_000), Case("disk", "ready", 1_000)
_MB = 1e6


def requirements(results: Results) -> list[Requirement]:
    checks: list[tuple[str, Check]] = [
        ("`send_many(1000)`, 200 B, disk: at least 150,000 records/s", _many),
        ("`send()`, one thread, 200 B, disk: at least 0.6 of write+fdatasync a record; the aim is 0.9", _alone),
        ("`send()`, 200 B, disk: 16 threads at least 3 times as fast as one", _crowd),
        ("drain after an outage: at least 0.5 of the raw client", _drain),
        ("peak memory of the draining process: at most 150 MB", _peak),
        ("memory with the smallest and the largest backlog: the same within 20 MB", _backlog),
    ]
    return checked(results, checks)


def _many(results: Results) -> tuple[str, bool] | None:
    made, ready = (_rate(results, case) for case in (_MANY, _READY))
    if made is None or ready is None:
        return None
    return f"{made:,.0f}; {ready:,.0f} when the `Record`s are made before", made >= 150_000


def _alone(results: Results) -> tuple[str, bool] | None:
    appended, overwritten = (_ratio(results, _ONE, _ONE.limit(way)) for way in ("append", "overwrite"))
    if appended is None or overwritten is None:
        return None
    aim = "aim reached" if appended.median >= 0.9 else "aim not reached"
    return f"{shown(appended)}, {aim}; {shown(overwritten)} of overwriting", appended.median >= 0.6


def _crowd(results: Results) -> tuple[str, bool] | None:
    found = _ratio(results, _CROWD, _ONE)
    return None if found is None else (shown(found), found.median >= 3)


def _drain(results: Results) -> tuple[str, bool] | None:
    if not (results.of("drain", peer=SPOOL) and results.of("drain", peer=BASE)):
        return None
    found = compared(results, "drain", per_second, SPOOL, BASE)
    return shown(found), found.median >= 0.5


def _peak(results: Results) -> tuple[str, bool] | None:
    rows = results.of("drain", peer=SPOOL) + results.of("backlog")
    if not rows:
        return None
    highest = max(row["peak"] for row in rows) / _MB
    return f"{highest:,.0f} MB, the highest of all runs with a drain or a backlog", highest <= 150


def _backlog(results: Results) -> tuple[str, bool] | None:
    rows = sorted(results.of("backlog"), key=lambda row: int(row["bytes"]))
    if len(rows) < 2:
        return None
    small, large = rows[0], rows[-1]
    apart = abs(large["peak"] - small["peak"]) / _MB
    told = [f"{row['peak'] / _MB:,.0f} MB with {row['bytes'] / _MB:,.0f} MB" for row in (small, large)]
    return f"{' and '.join(told)}: {apart:,.0f} MB apart", apart <= 20


def _rate(results: Results, case: Case) -> float | None:
    rows = results.of("append", case=case.name, size=_SIZE)
    return median(map(per_second, rows)) if rows else None


def _ratio(results: Results, ours: Case, base: Case) -> Ratio | None:
    of_ours, of_base = ({"case": case.name, "size": _SIZE} for case in (ours, base))
    if not (results.of("append", **of_ours) and results.of("append", **of_base)):
        return None
    return paired(results, "append", per_second, of_ours, of_base)
