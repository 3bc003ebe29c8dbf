"""The picture: rates beside raw `consume(500)`, and sleeping handlers beside the same sleeps without Kafka."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.common.chart import Bar, Panel
from benchmarks.common.chart import draw as draw_panels
from benchmarks.common.figures import compared, cpu_micros, per_second
from benchmarks.common.journal import Results
from benchmarks.consumer.compared import share_of_ideal
from benchmarks.consumer.contestants import BASE, CONTESTANTS

_TITLE = "Handler that does nothing, raw consume(500) = 1; sleeping handlers, the same sleeps without Kafka = 1"


def draw(results: Results, path: Path) -> None:
    rates = [_rates(results, cluster) for cluster in results.values("throughput", "cluster")]
    sleeps = [_sleeps(results, ms) for ms in sorted(results.values("sleeping", "milliseconds"))]
    draw_panels([*rates, *sleeps], _TITLE, path, height=3.9)


def _rates(results: Results, cluster: str) -> Panel:
    bars = []
    for peer, contestant in CONTESTANTS.items():
        rows = results.of("throughput", peer=peer, cluster=cluster)
        if rows:
            ratio = compared(results, "throughput", per_second, peer, BASE, cluster=cluster)
            told = f"{median(map(per_second, rows)) / 1000:,.1f} k/s, {median(map(cpu_micros, rows)):.1f} µs CPU"
            bars.append(Bar(contestant.title, ratio, told, ours=peer.startswith("safekafka")))
    return Panel("mock brokers" if cluster == "mock" else "three real brokers", bars)


def _sleeps(results: Results, milliseconds: int) -> Panel:
    bars = []
    most = max(results.values("sleeping", "keys"))
    for form, title in (("sync", "threads"), ("async", "tasks")):
        for concurrency in sorted(results.values("sleeping", "concurrency")):
            case = {"form": form, "milliseconds": milliseconds, "concurrency": concurrency, "keys": most}
            ratio = share_of_ideal(results, **case)
            if ratio is not None:
                rate = median(per_second(row) for row in results.of("sleeping", **case))
                bars.append(Bar(f"{concurrency} {title}", ratio, f"{rate:,.0f}/s", ours=True))
    return Panel(f"handlers of {milliseconds} ms, {most:,} keys", bars)
