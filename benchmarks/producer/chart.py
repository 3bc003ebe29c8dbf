"""The picture: throughput beside the raw client with a callback."""

from __future__ import annotations

from pathlib import Path
from statistics import median

from benchmarks.common.chart import Bar, Panel
from benchmarks.common.chart import draw as draw_panels
from benchmarks.common.figures import compared, cpu_micros, per_second
from benchmarks.common.journal import Results
from benchmarks.producer.contestants import BASE, CONTESTANTS

_TITLE = "Throughput, acks=all and idempotence; raw confluent-kafka with a delivery callback = 1"


def draw(results: Results, path: Path) -> None:
    panels = [
        _panel(results, cluster, size)
        for cluster in results.values("throughput", "cluster")
        for size in results.values("throughput", "size", cluster=cluster)
    ]
    draw_panels(panels, _TITLE, path, height=3.9)


def _panel(results: Results, cluster: str, size: int) -> Panel:
    where = {"cluster": cluster, "size": size}
    bars = []
    for peer, contestant in CONTESTANTS.items():
        rows = results.of("throughput", peer=peer, **where)
        if rows:
            ratio = compared(results, "throughput", per_second, peer, BASE, **where)
            told = f"{median(map(per_second, rows)) / 1000:,.0f} k/s, {median(map(cpu_micros, rows)):.1f} µs CPU"
            bars.append(Bar(contestant.title, ratio, told, ours=peer.startswith("safekafka")))
    return Panel(f"{'mock brokers' if cluster == 'mock' else 'three real brokers'}, {size:,} B", bars)
