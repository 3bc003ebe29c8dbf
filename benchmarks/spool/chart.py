"""The picture: appending beside the disk's limit, delivery and drain beside the raw client."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import median

from benchmarks.common.chart import Bar, Panel
from benchmarks.common.chart import draw as draw_panels
from benchmarks.common.figures import paired, per_second
from benchmarks.common.journal import Results, Row
from benchmarks.spool.cases import CASES, Case, Durability
from benchmarks.spool.contestants import BASE, CONTESTANTS

_TITLE = "Spool: appending, plain file with as many records a write = 1; delivery, raw client with a callback = 1"
_LIMITS: dict[Durability, str] = {"disk": "write+fdatasync", "process": "write"}


def draw(results: Results, path: Path) -> None:
    appending = [
        _appending(results, size, durability) for size in results.values("append", "size") for durability in _LIMITS
    ]
    delivery = [
        _contest(results, "delivery", f"{cluster} brokers, {size:,} B, end to end", cluster=cluster, size=size)
        for cluster in results.values("delivery", "cluster")
        for size in results.values("delivery", "size", cluster=cluster)
    ]
    drain = [_contest(results, "drain", "real brokers, drain after an outage")] if results.of("drain") else []
    draw_panels([*appending, *delivery, *drain], _TITLE, path, height=2.6)


def _appending(results: Results, size: int, durability: Durability) -> Panel:
    ours = [case for case in CASES.values() if case.durability == durability and not case.is_limit]
    bars = [_bar(results, "append", case.title.replace("`", ""), *_beside(case, size), ours=True) for case in ours]
    return Panel(f"appending, {size:,} B, {durability}; {_LIMITS[durability]} = 1", _there(bars))


def _beside(case: Case, size: int) -> tuple[Row, Row]:
    return {"case": case.name, "size": size}, {"case": case.limit("append").name, "size": size}


def _contest(results: Results, part: str, title: str, **where: object) -> Panel:
    base = {"peer": BASE, **where}
    bars = [
        _bar(results, part, contestant.title, {"peer": peer, **where}, base, ours=contestant.durability is not None)
        for peer, contestant in CONTESTANTS.items()
    ]
    return Panel(title, _there(bars))


def _bar(results: Results, part: str, name: str, mine: Row, base: Row, ours: bool) -> Bar | None:
    rows = results.of(part, **mine)
    if not rows:
        return None
    told = f"{median(map(per_second, rows)) / 1000:,.1f} k/s"
    return Bar(name, paired(results, part, per_second, mine, base), told, ours)


def _there(bars: Iterable[Bar | None]) -> list[Bar]:
    return [bar for bar in bars if bar is not None]
